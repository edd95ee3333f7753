"""Statistics against hand-computed cases, published definitions (scipy, exhaustive counts) and simulated coverage."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from mermaide_ray.report import statistics
from mermaide_ray.report.statistics import (
    bootstrap_interval,
    interquartile_mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    unpaired_difference,
)


def crossed(seed: int, seeds: int, tasks: int, seed_effect: float = 1.0, task_effect: float = 1.0) -> np.ndarray:
    """Scores with true mean 0 in which whole seeds, and whole tasks, are good or bad."""
    rng = np.random.default_rng([11, seed])
    own = rng.normal(size=(seeds, tasks))
    return own + seed_effect * rng.normal(size=(seeds, 1)) + task_effect * rng.normal(size=(1, tasks))


def test_interquartile_mean_of_eight_scores_is_the_mean_of_the_middle_four() -> None:
    assert interquartile_mean([[100, 1, 2, 3], [4, 5, 6, -100]]) == pytest.approx((2 + 3 + 4 + 5) / 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 5), (10, 100), (7, 13)])
def test_interquartile_mean_is_the_published_trimmed_mean(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).standard_cauchy(size=shape)
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, proportiontocut=0.25, axis=None))


@pytest.mark.parametrize("trim", [0.0, 0.25])
@pytest.mark.parametrize("chunk", [1, 50])
def test_bootstrap_is_the_aggregate_of_explicitly_resampled_matrices(trim, chunk, monkeypatch) -> None:
    scores = np.round(crossed(0, seeds=4, tasks=9), 1)
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", chunk * scores.size)
    rng = np.random.default_rng(5)
    estimates = []
    for _ in range(50 // chunk):
        drawn_seeds, drawn_tasks = (rng.integers(n, size=(chunk, n)) for n in scores.shape)
        for seeds, tasks in zip(drawn_seeds, drawn_tasks, strict=True):
            estimates.append(stats.trim_mean(scores[seeds][:, tasks], trim, axis=None))
    found = bootstrap_interval(scores, seed=5, trim=trim, resamples=50)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(estimates, [0.025, 0.975])))
    assert found.value == pytest.approx(stats.trim_mean(scores, trim, axis=None))


def test_the_seed_decides_the_interval_and_nothing_else_does() -> None:
    scores = crossed(0, seeds=5, tasks=20)
    first = bootstrap_interval(scores, seed=1)
    np.random.seed(99)  # the global generator has no say
    assert bootstrap_interval(scores, seed=1) == first
    assert bootstrap_interval(scores, seed=2) != first


def test_one_seed_resamples_tasks_only() -> None:
    # A rule's score on 40 equal tasks can't vary; over unequal ones it varies as their mean does.
    assert bootstrap_interval(np.full((1, 40), 0.3), seed=0).low == pytest.approx(0.3)
    scores = np.arange(100.0)[None]
    found = bootstrap_interval(scores, seed=0, trim=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * scores.std() / 10, rel=0.1)


def coverage(of, trials: int) -> float:
    intervals = [of(trial) for trial in range(trials)]
    return float(np.mean([interval.low <= 0 <= interval.high for interval in intervals]))


def test_95_percent_intervals_cover_the_truth_about_95_percent_of_the_time() -> None:
    def interval(trial: int):
        return bootstrap_interval(crossed(trial, seeds=20, tasks=40), seed=trial, resamples=300)

    def rule(trial: int):
        return bootstrap_interval(crossed(trial, seeds=1, tasks=80, seed_effect=0), seed=trial, resamples=300)

    assert 0.91 <= coverage(interval, 300) <= 0.98
    assert 0.91 <= coverage(rule, 300) <= 0.98


def test_negative_control_scores_taken_as_independent_runs_cover_far_less() -> None:
    def interval(trial: int):
        return bootstrap_interval(crossed(trial, seeds=20, tasks=40).reshape(1, -1), seed=trial, resamples=300)

    assert coverage(interval, 300) < 0.6


def met_again(trial: int, seeds: int, agents: int, conditions: int, alike: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores with true mean 0 of agents that are met in several conditions, and which agent each task is of."""
    rng = np.random.default_rng([12, trial])
    own = rng.normal(size=(1, agents, conditions))
    task = np.sqrt(alike) * rng.normal(size=(1, agents, 1)) + np.sqrt(1 - alike) * own
    scores = task + 0.2 * rng.normal(size=(seeds, agents, conditions))
    return scores.reshape(seeds, -1), np.repeat(np.arange(agents), conditions)


def test_an_agent_that_is_met_in_several_conditions_is_drawn_as_one() -> None:
    """Control: drawn as several, the same intervals cover far too little."""
    covered = {True: 0, False: 0}
    for trial in range(200):
        scores, agents = met_again(trial, seeds=10, agents=40, conditions=5, alike=0.85)
        for as_one in covered:
            found = bootstrap_interval(scores, seed=trial, agents=agents if as_one else None, trim=0, resamples=300)
            covered[as_one] += found.low <= 0 <= found.high
    assert covered[True] >= 0.9 * 200
    assert covered[False] <= 0.75 * 200


@pytest.mark.parametrize("trim", [0.0, 0.25])
def test_agents_with_other_numbers_of_tasks_are_resampled_whole(trim: float) -> None:
    scores, agents = np.round(crossed(3, seeds=3, tasks=7), 1), np.array([4, 4, 9, 1, 1, 1, 4])
    rng = np.random.default_rng(5)
    drawn_seeds, drawn_agents = rng.integers(3, size=(40, 3)), rng.integers(3, size=(40, 3))
    of_agent = [np.flatnonzero(agents == label) for label in (4, 9, 1)]  # in the order met
    estimates = [
        stats.trim_mean(scores[seeds][:, np.concatenate([of_agent[agent] for agent in whole])], trim, axis=None)
        for seeds, whole in zip(drawn_seeds, drawn_agents, strict=True)
    ]
    found = bootstrap_interval(scores, seed=5, agents=agents, trim=trim, resamples=40)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(estimates, [0.025, 0.975])))
    with pytest.raises(ValueError, match="each of 7 tasks is of, got 2"):
        bootstrap_interval(scores, seed=0, agents=[1, 2])


def test_probability_of_improvement_draws_whole_agents() -> None:
    x, agents = met_again(0, seeds=6, agents=20, conditions=5, alike=1.0)
    y = x + 0.5 * met_again(1, seeds=6, agents=20, conditions=5, alike=1.0)[0]
    one, several = (probability_of_improvement(x, y, seed=0, agents=which) for which in (agents, None))
    assert one.value == several.value
    assert one.high - one.low > 1.5 * (several.high - several.low)


def test_agents_that_both_sides_met_are_drawn_for_both_at_once() -> None:
    """The same agents with other training seeds: nearly as sharp as pairs. Agents of only one side change nothing."""
    x, y = crossed(7, seeds=8, tasks=60, seed_effect=0.1, task_effect=5), np.zeros((3, 60))
    y += x.mean(axis=0) - 0.5
    tasks = np.arange(60)
    alone = unpaired_difference(x, y, seed=0, trim=0)
    shared = unpaired_difference(x, y[:, ::-1], seed=0, trim=0, agents=(tasks, tasks[::-1]))
    assert alone.low < 0 < 0.2 < shared.low < 0.5 < shared.high < 0.8 < alone.high
    more = np.concatenate([y, np.full((3, 20), y.mean())], axis=1)
    partly = unpaired_difference(x, more, seed=0, trim=0, agents=(tasks, np.arange(80)))
    assert shared.high - shared.low < partly.high - partly.low < alone.high - alone.low


def test_principals_that_are_on_both_sides_are_drawn_for_both_at_once() -> None:
    """The same training seeds with other agents, in any order: their own level falls out of the difference."""
    x = crossed(7, seeds=8, tasks=60, seed_effect=5, task_effect=0.1)
    y = crossed(8, seeds=8, tasks=40, seed_effect=0, task_effect=0.1) + x.mean(axis=1, keepdims=True) - 0.5
    seeds = np.arange(8)
    alone = unpaired_difference(x, y, seed=0, trim=0)
    shared = unpaired_difference(x, y[::-1], seed=0, trim=0, seeds=(seeds, seeds[::-1]))
    assert shared.value == pytest.approx(alone.value)
    assert alone.low < 0 < shared.low < 0.5 < shared.high < 1 < alone.high
    wrong = unpaired_difference(x, y[::-1], seed=0, trim=0, seeds=(seeds, seeds))
    assert wrong.high - wrong.low > 3 * (shared.high - shared.low)


def test_probability_of_improvement_by_hand() -> None:
    # Task 0: pairs (1 > 0), (1 < 2), (3 > 0), (3 > 2) = 3/4. Task 1: all ties = 1/2. Mean 5/8.
    found = probability_of_improvement([[1, 5], [3, 5]], [[0, 5], [2, 5]], seed=0)
    assert found.value == pytest.approx(5 / 8)


@pytest.mark.parametrize("seeds", [(3, 4), (1, 4), (5, 1), (1, 1)])
def test_probability_of_improvement_is_the_published_mann_whitney_mean(seeds: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.integers(0, 4, size=(count, 6)) for count in seeds)
    by_task = [stats.mannwhitneyu(x[:, t], y[:, t]).statistic / (seeds[0] * seeds[1]) for t in range(6)]
    found = probability_of_improvement(x, y, seed=0)
    assert found.value == pytest.approx(np.mean(by_task))
    assert found.low <= found.value <= found.high
    mirrored = probability_of_improvement(y, x, seed=0)
    assert mirrored.value == pytest.approx(1 - found.value)


def test_probability_of_improvement_is_1_for_the_always_better_and_unsure_for_equals() -> None:
    x, y = crossed(0, 6, 30), crossed(1, 6, 30)
    better = probability_of_improvement(x + 100, y, seed=0)
    assert (better.value, better.low, better.high) == (1, 1, 1)
    assert probability_of_improvement(x, x, seed=0).value == pytest.approx(0.5)


def test_probability_of_improvement_resamples_seeds_of_both_and_shared_tasks() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 4, size=(3, 5)), rng.integers(0, 4, size=(4, 5))
    rng = np.random.default_rng(8)
    estimates = []
    for x_seeds, y_seeds, tasks in zip(*(rng.integers(n, size=(40, n)) for n in (3, 4, 5)), strict=True):
        difference = x[x_seeds][:, None, tasks] - y[y_seeds][None, :, tasks]
        estimates.append(np.mean((difference > 0) + 0.5 * (difference == 0)))
    found = probability_of_improvement(x, y, seed=8, resamples=40)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(estimates, [0.025, 0.975])))


def test_paired_differences_see_what_unpaired_intervals_cannot() -> None:
    x = crossed(0, seeds=5, tasks=40, task_effect=20)
    y = x - 0.1
    difference = paired_difference(x, y, seed=0)
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert bootstrap_interval(x, seed=0).low < bootstrap_interval(y, seed=0).high


def test_a_single_seed_is_paired_by_task() -> None:
    x, rule = crossed(0, seeds=5, tasks=7), crossed(1, seeds=1, tasks=7)
    found = paired_difference(x, rule, seed=0)
    assert found == bootstrap_interval(x - np.repeat(rule, 5, axis=0), seed=0)
    with pytest.raises(ValueError, match=r"same S and T, got \(5, 7\) and \(3, 7\)"):
        paired_difference(x, x[:3], seed=0)


def test_nan_scores_and_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 not"):
        bootstrap_interval([[1.0, np.nan]], seed=0)
    with pytest.raises(ValueError, match="matrix, training seeds x tasks, got shape"):
        interquartile_mean([1.0, 2.0])


def test_the_report_room_imports_neither_ray_nor_torch() -> None:
    rooms = ", ".join(f"mermaide_ray.report.{name}" for name in ("statistics", "terminal", "pictures"))
    code = f"import sys, {rooms}; sys.exit(str([m for m in ('ray', 'torch') if m in sys.modules]))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.stderr.strip() == "[]"


def test_an_unpaired_difference_is_the_difference_of_the_aggregates() -> None:
    one, other = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[0.0, 1.0], [1.0, 2.0], [0.5, 1.5]])
    for trim, expected in ((0.25, 2.5 - 1.0), (0.0, 2.5 - 1.0)):
        assert unpaired_difference(one, other, seed=0, trim=trim).value == pytest.approx(expected)
    constant = unpaired_difference(np.full((3, 5), 2.0), np.full((2, 4), 0.5), seed=0)
    assert (constant.low, constant.value, constant.high) == pytest.approx((1.5, 1.5, 1.5))


def test_pairing_narrows_the_interval_where_tasks_matter() -> None:
    rng = np.random.default_rng(0)
    tasks = rng.normal(size=(1, 40))
    one, other = (tasks + 0.1 * rng.normal(size=(5, 40)) for _ in range(2))
    paired_width, unpaired_width = (
        interval.high - interval.low
        for interval in (paired_difference(one, other, seed=0), unpaired_difference(one, other, seed=0))
    )
    assert paired_width < unpaired_width / 3


def test_a_performance_profile_counts_runs_and_tasks_above_each_threshold() -> None:
    scores = np.array([[0.1, 0.5, 0.9], [0.3, 0.5, 0.7]])
    share, low, high = performance_profile(scores, [0.0, 0.3, 0.5, 0.9], seed=0)
    assert share.tolist() == pytest.approx([1, 4 / 6, 2 / 6, 0])
    assert (low <= share).all()
    assert (share <= high).all()
    assert (low[0], high[0], low[-1], high[-1]) == (1, 1, 0, 0)


def test_the_band_of_a_performance_profile_is_that_of_the_mean_of_its_indicators() -> None:
    scores = np.random.default_rng(1).normal(size=(6, 30))
    share, low, high = performance_profile(scores, [0.2], seed=0, resamples=4000)
    mean = bootstrap_interval((scores > 0.2).astype(float), seed=0, trim=0, resamples=4000)
    assert (share[0], low[0], high[0]) == pytest.approx((mean.value, mean.low, mean.high), abs=0.01)
