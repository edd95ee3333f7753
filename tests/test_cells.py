"""Matrices by cell: complete seeds only, settings averaged, rules found by the game that they played."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from mermaide_ray.errors import InputError
from mermaide_ray.report.cells import Cell, Cells, Run


def rows(*cells: tuple[str, str, str, int, dict[int, list[float]]], never: float = 10.0) -> pd.DataFrame:
    """(method, setting, condition, K, seed -> a score per task) each."""
    return pd.DataFrame(
        {
            "method": method,
            "setting": setting,
            "condition": condition,
            "split": "test",
            "family": "ucb" if task % 2 else "exp3",
            "k": k,
            "seed": seed,
            "task": task,
            "normalised_score": score,
            "never_return": never,
            "oracle_return": 80.0,
        }
        for method, setting, condition, k, seeds in cells
        for seed, scores in seeds.items()
        for task, score in enumerate(scores)
    ).sample(frac=1, random_state=0)


def test_a_matrix_is_seeds_by_tasks_whatever_the_order_of_the_rows() -> None:
    cells = Cells(rows(("m", "", "test", 1, {3: [0.1, 0.2, 0.3], 1: [0.4, 0.5, 0.6]})))
    matrix = cells.matrix(Cell("m", "", "test", 1))
    assert list(matrix.index) == [1, 3]
    # Families in their order, then tasks: exp3 has tasks 0 and 2, ucb has task 1.
    assert matrix.to_numpy() == pytest.approx(np.array([[0.4, 0.6, 0.5], [0.1, 0.3, 0.2]]))
    assert cells.families(matrix.columns) == ["exp3", "exp3", "ucb"]


def test_a_seed_that_lacks_tasks_is_left_out_and_told() -> None:
    cells = Cells(rows(("m", "", "test", 1, {0: [0.1, 0.2], 1: [0.3]})))
    assert list(cells.matrix(Cell("m", "", "test", 1)).index) == [0]
    assert list(cells.left_out) == ["m, test, K = 1: training seeds 1 lack tasks that others have, and are left out."]


def test_a_seed_that_lacks_tasks_makes_no_other_game() -> None:
    frame = rows(("m", "", "test", 0, {0: [0.3], 1: [0.1, 0.2]}), ("rule", "", "test", 0, {0: [0.5, 0.6]}))
    cells = Cells(frame.assign(never_return=10.0 + frame["task"]))
    assert cells.same_tasks([Cell("m", "", "test", 0)], [Cell("rule", "", "test", 0)])


def test_a_gain_is_over_the_tasks_and_seeds_that_both_sides_have() -> None:
    cells = Cells(
        rows(("m", "", "test", 0, {0: [0.1], 1: [0.2]}), ("m", "", "test", 1, {1: [0.5, 0.6], 2: [0.7, 0.8]}))
    )
    gain = cells.gain([Cell("m", "", "test", 1)], [Cell("m", "", "test", 0)], between="K = 1 against K = 0")
    assert (list(gain.index), gain.to_numpy().tolist()) == ([1], [[pytest.approx(0.3)]])
    assert list(cells.left_out) == [
        "K = 1 against K = 0: compared without 2 training seed(s) and 1 task(s) that only one of them has."
    ]


def test_a_gain_over_nothing_in_common_is_told() -> None:
    cells = Cells(rows(("m", "", "test", 0, {0: [0.1]}), ("m", "", "test", 1, {1: [0.5]})))
    assert not cells.gain([Cell("m", "", "test", 1)], [Cell("m", "", "test", 0)], between="one against other").size
    assert list(cells.left_out) == [
        "one against other: not compared, since they have no training seed and task in common."
    ]


def test_infinite_values_are_refused() -> None:
    cells = Cells(rows(("m", "", "test", 0, {0: [0.1, np.inf]})))
    with pytest.raises(InputError, match="`normalised_score` must be finite, or missing, in every row, got 1 infinite"):
        cells.matrix(Cell("m", "", "test", 0))


def test_agents_stand_in_the_same_order_whoever_wrote_the_rows() -> None:
    frame = rows(("m", "", "test", 0, {0: [0.1, 0.2, 0.3]}))
    as_met = frame.assign(family=pd.Categorical(frame["family"], categories=["ucb", "exp3"]))
    one, other = (Cells(each).matrix(Cell("m", "", "test", 0)) for each in (frame, as_met))
    pd.testing.assert_frame_equal(one, other)


def test_a_rival_is_met_at_the_largest_k_that_is_no_larger_where_it_is_scored() -> None:
    scored = {"test": (0, 1, 5), "far": (0, 5)}
    cells = Cells(rows(*(("m", "", condition, k, {0: [0.1]}) for condition, ks in scored.items() for k in ks)))
    assert [cells.k_beside("m", k, ["test"]) for k in (0, 1, 2, 10)] == [0, 1, 1, 5]
    assert [cells.k_beside("m", k, ["test", "far"]) for k in (0, 1, 2, 10)] == [0, 0, 0, 5]
    assert cells.k_beside("m", 1, ["elsewhere"]) == 1


def test_tasks_without_any_score_are_left_out() -> None:
    cells = Cells(rows(("m", "", "test", 0, {0: [0.1, np.nan], 1: [0.3, np.nan]})))
    assert cells.matrix(Cell("m", "", "test", 0)).shape == (2, 1)


def test_a_task_without_a_score_for_one_seed_costs_the_task_and_not_the_seed() -> None:
    cells = Cells(rows(("m", "", "test", 0, {0: [0.1, 0.2, 0.3], 1: [0.3, np.nan, 0.5], 2: [0.4, 0.5, 0.6]})))
    pooled = cells.pooled([Cell("m", "", "test", 0)])
    assert (list(pooled.index), pooled.shape) == ([0, 1, 2], (3, 2))
    assert list(cells.left_out) == [
        "m, test, K = 0: 1 of 3 tasks have no normalised_score for some seeds, and are left out."
    ]


def test_the_same_row_twice_is_refused() -> None:
    doubled = pd.concat([rows(("m", "", "test", 0, {4: [0.1, 0.2]}))] * 2)
    with pytest.raises(InputError, match=r"one per method.* but m \(seed 4, K = 0, test, setting ''\) has task 0"):
        Cells(doubled)


def test_settings_are_averaged_seed_by_seed_and_conditions_stand_side_by_side() -> None:
    seeds = {0: [0.0, 0.2], 1: [0.4, 0.6]}
    higher = {seed: [score + 0.2 for score in scores] for seed, scores in seeds.items()}
    cells = Cells(rows(("m", "a", "test", 0, seeds), ("m", "b", "test", 0, higher), ("m", "a", "far", 0, {0: [1, 1]})))
    both = cells.pooled([Cell("m", "a", "test", 0), Cell("m", "b", "test", 0)])
    assert both.to_numpy() == pytest.approx(np.array([[0.1, 0.3], [0.5, 0.7]]))
    assert cells.left_out == {}
    # Only seed 0 was scored in both conditions.
    beside = cells.pooled([Cell("m", "a", "test", 0), Cell("m", "a", "far", 0)])
    assert (list(beside.index), beside.shape) == ([0], (1, 4))
    assert list(cells.left_out) == [LEFT_OUT]
    # Both conditions are of the same split: each agent is there twice.
    assert sorted(cells.agents(beside.columns)) == ["test 0", "test 0", "test 1", "test 1"]


def test_an_agent_met_twice_makes_no_interval_narrower() -> None:
    scores = {seed: list(np.random.default_rng(seed).random(8)) for seed in range(3)}
    cells = Cells(rows(("m", "", "test", 0, scores), ("m", "", "far", 0, scores)))
    once, twice = (cells.pooled([Cell("m", "", name, 0) for name in names]) for names in (["test"], ["test", "far"]))
    one, two = (cells.interval_of(matrix, trim=0) for matrix in (once, twice))
    assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high))
    assert cells.interval([Cell("m", "", "test", 0)]) == cells.interval_of(once)
    thresholds = np.array([0.3, 0.7])
    for end, expected in zip(cells.profile_of(twice, thresholds), cells.profile_of(once, thresholds), strict=True):
        assert end == pytest.approx(expected)


def test_a_task_without_a_score_in_one_setting_counts_in_none() -> None:
    for seeds in ((0, 0), (0, 1)):  # in common, and not
        cells = Cells(rows(("m", "a", "t", 0, {seeds[0]: [1, 1, 1]}), ("m", "b", "t", 0, {seeds[1]: [0, 0, np.nan]})))
        pooled = cells.pooled([Cell("m", "a", "t", 0), Cell("m", "b", "t", 0)])
        assert pooled.to_numpy().mean() == 0.5
        assert len(cells.agents(pooled.columns)) == 2


def test_methods_of_one_condition_that_played_other_games_are_found() -> None:
    ours, theirs = rows(("m", "", "test", 0, {0: [0.5, 0.6]})), rows(("o", "", "test", 0, {0: [0.5, 0.6]}), never=12.0)
    found = list(Cells(pd.concat([ours, theirs])).mixed_games())
    assert [(one.method, other.method) for one, other in found] == [("m", "o")]
    # Fewer of the same tasks are the same game.
    fewer = rows(("o", "", "test", 0, {0: [0.5]}))
    assert not list(Cells(pd.concat([ours, fewer])).mixed_games())


def test_tasks_without_a_value_are_told_beside_the_others() -> None:
    cells = Cells(rows(("m", "", "test", 0, {0: [0.1, np.nan, 0.2], 1: [0.3, np.nan, 0.1]})))
    cell = Cell("m", "", "test", 0)
    assert cells.basis([cell]) == (2, 2, 3)
    assert cells.basis([cell], "never_return") == (2, 3, 3)


def test_a_game_is_known_again_though_the_last_digits_of_its_returns_differ() -> None:
    """16 episodes, an intervention at 0.3: every fourth return lies where the third digit is rounded up or down."""
    grid = 10 + np.arange(40) * 0.1 / 16
    beside = grid.astype(np.float32) + np.float32(1.5e-5) * (-1) ** np.arange(40)
    frames = [
        rows((method, "", "test", 0, {0: [0.5] * 40})).sort_values("task").assign(never_return=returns)
        for method, returns in (("a", grid), ("b", beside))
    ]
    assert Cells(pd.concat(frames)).same_tasks([Cell("a", "", "test", 0)], [Cell("b", "", "test", 0)])


def test_conditions_may_have_their_agents_and_their_game_in_common() -> None:
    scores = {0: [0.1, 0.2, 0.3], 1: [0.4, 0.5, 0.6]}
    cell, others = ("m", "", "test", 0, scores), [("m", "", name, 0, scores) for name in ("unplanned", "dear", "new")]
    unplanned, dear, new = map(rows, others)
    frame = pd.concat([rows(cell), unplanned, dear.assign(never_return=5.0), new.assign(split="validation")])
    cells, one = Cells(frame), Cell(*cell[:4])
    assert [cells.same_tasks([one], [Cell(*other[:4])]) for other in others] == [True, False, False]
    moved = cells.moved(cells.matrix(Cell(*others[0][:4])), "test")
    assert moved.equals(cells.matrix(one))
    # Older rows don't tell what would show another game.
    assert not Cells(frame.drop(columns=["never_return", "oracle_return"])).same_tasks([one], [Cell(*others[0][:4])])


LEFT_OUT = (
    "m: training seeds 1 lack a setting, a condition or a task that others have, "
    "and are left out of figures over several."
)


def test_a_seed_that_failed_in_one_setting_does_not_shift_the_mean() -> None:
    cells = Cells(rows(("m", "a", "test", 0, {0: [0.0], 1: [0.0]}), ("m", "b", "test", 0, {0: [1.0]})))
    pooled = cells.pooled([Cell("m", "a", "test", 0), Cell("m", "b", "test", 0)])
    assert (list(pooled.index), pooled.iloc[0, 0]) == ([0], 0.5)
    assert list(cells.left_out) == [LEFT_OUT]


def test_settings_without_a_seed_in_common_are_runs_of_their_own() -> None:
    cells = Cells(rows(("m", "a", "test", 0, {0: [0.0]}), ("m", "b", "test", 0, {1: [1.0]})))
    pooled = cells.pooled([Cell("m", "a", "test", 0), Cell("m", "b", "test", 0)])
    assert pooled.to_numpy().ravel().tolist() == [0.0, 1.0]
    # No numbers, which could be seeds of what they are compared with.
    assert list(pooled.index) == [Run("a", 0), Run("b", 1)]


LEVELS = {"a": 0.2, "b": 0.5, "c": 0.9}
LACKING = {("a", 1), ("b", 2), ("c", 0)}


def test_no_seed_is_a_mean_over_other_settings_than_another() -> None:
    """One side lacks another seed in each setting; all runs that both have are the same."""
    runs = {
        method: [
            (method, setting, "test", 0, {seed: [level] * 4 for seed in range(3) if (setting, seed) not in lacking})
            for setting, level in LEVELS.items()
        ]
        for method, lacking in (("x", LACKING), ("y", set[tuple[str, int]]()))
    }
    rule = ("first_n", "a", "test", 0, {0: [0.7] * 4})
    cells = Cells(rows(*runs["x"], *runs["y"], rule))
    one, other = ([Cell(method, setting, "test", 0) for setting in LEVELS] for method in runs)
    names = [Run(setting, seed) for setting in LEVELS for seed in range(3) if (setting, seed) not in LACKING]
    assert list(cells.pooled(one).index) == names
    assert list(cells.pooled(other).index) == [0, 1, 2]
    gain = cells.gain(one, other, between="x against y")
    assert list(gain.index) == names
    assert not gain.to_numpy().any()
    assert list(cells.pooled_alike(one, [Cell(*rule[:4])])[1].index) == [0]
    told = "x against y: compared without 3 training seed(s) that only one of them has."
    assert list(cells.left_out) == [told]


def test_conditions_of_which_one_has_no_seed_in_common_are_runs_of_their_own_in_both() -> None:
    whole = [("m", setting, "far", 0, {0: [0.1], 1: [0.3]}) for setting in "ab"]
    apart = [("m", "a", "test", 0, {0: [0.2]}), ("m", "b", "test", 0, {1: [0.4]})]
    pooled = Cells(rows(*whole, *apart)).pooled([Cell(*cell[:4]) for cell in (*whole, *apart)])
    assert pooled.shape == (2, 2)
    assert list(pooled.index) == [Run("a", 0), Run("b", 1)]


def test_settings_that_met_other_agents_stand_side_by_side() -> None:
    ucb, exp3 = (
        rows(("m", setting, "test", 0, {0: scores, 1: scores})).assign(family=family)
        for setting, family, scores in (("a", "ucb", [0.2, 0.4]), ("b", "exp3", [0.6, 0.8]))
    )
    twice = rows(("m", "c", "test", 0, {0: [0.4, 0.6], 1: [0.4, 0.6]})).assign(family="ucb")
    cells = Cells(pd.concat([ucb, exp3, twice]))
    pooled = cells.pooled([Cell("m", setting, "test", 0) for setting in "abc"])
    assert pooled.shape == (2, 4)
    of_family = dict(zip(cells.families(pooled.columns), pooled.iloc[0], strict=True))
    assert of_family == {"ucb": pytest.approx(0.5), "exp3": pytest.approx(0.8)}
    assert pooled.iloc[0].mean() == pytest.approx((0.3 + 0.5 + 0.6 + 0.8) / 4)


def test_settings_of_the_same_agents_with_values_at_others_have_no_mean() -> None:
    nan = float("nan")
    cells = Cells(rows(("m", "a", "test", 0, {0: [0.1, nan]}), ("m", "b", "test", 0, {0: [nan, 0.9]})))
    assert not cells.pooled([Cell("m", setting, "test", 0) for setting in "ab"]).size


def test_how_settings_of_other_agents_are_grouped_does_not_depend_on_their_order() -> None:
    """A mixture shares tasks with either of its families."""
    ucb, exp3, both = (
        rows(("m", setting, "test", 0, {0: [0.2, 0.4]})).assign(family=family)
        for setting, family in (("a", "ucb"), ("b", "exp3"), ("c", ["ucb", "exp3"]))
    )
    cells = Cells(pd.concat([ucb, exp3, both]))
    shapes = {cells.pooled([Cell("m", setting, "test", 0) for setting in order]).shape for order in permutations("abc")}
    assert len(shapes) == 1


def test_methods_that_met_other_families_did_not_play_the_same_game() -> None:
    mine = rows(("m", "", "test", 0, {0: [0.2, 0.4]})).assign(family="ucb")
    other = rows(("rl2", "", "test", 0, {0: [0.2, 0.4]})).assign(family="exp3")
    assert len(list(Cells(pd.concat([mine, other])).mixed_games())) == 1
    assert not list(Cells(pd.concat([mine, other.assign(family="ucb")])).mixed_games())


def test_a_rule_is_found_by_the_game_that_it_played() -> None:
    game, other = {"never": 10.0}, {"never": 12.0}
    frame = pd.concat(
        [
            rows(("m", "arms=2, lr=1", "test", 0, {0: [0.5]}), ("m", "arms=2, lr=2", "test", 0, {0: [0.5]}), **game),
            rows(("m", "arms=5, lr=1", "test", 0, {0: [0.5]}), ("first_n", "arms=5", "test", 0, {0: [0.7]}), **other),
            rows(("first_n", "arms=2", "test", 0, {0: [0.9]}), **game),
        ]
    )
    cells = Cells(frame)
    for setting, expected in (("arms=2, lr=1", "arms=2"), ("arms=2, lr=2", "arms=2"), ("arms=5, lr=1", "arms=5")):
        assert cells.find("first_n", setting, "test", 0) == Cell("first_n", expected, "test", 0)
    assert cells.find("first_n", "arms=2, lr=1", "far", 0) is None
    assert not list(cells.mixed_games())
    # The same game, but another training.
    assert cells.find("m", "arms=2, lr=3", "test", 0) is None
    one, two = Cell("m", "arms=2, lr=1", "test", 0), Cell("m", "arms=5, lr=1", "test", 0)
    assert cells.same_tasks([one], [Cell("m", "arms=2, lr=2", "test", 0)])
    assert not cells.same_tasks([one], [two])
