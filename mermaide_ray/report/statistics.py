"""What may be claimed from scores: aggregates with intervals, probability of improvement, paired differences.

Scores are float [S, T]: S training seeds x T tasks, the same tasks in the same order for every seed and every method. A
deterministic rule has one seed, S = 1. One agent may be met in several conditions, which makes several tasks of it:
`agents`, [T], tells which agent each task is of, and it is agents that are drawn. Definitions follow [1], written from
the paper; the resampling differs, see `bootstrap_interval`.

[1] Agarwal, Schwarzer, Castro, Courville, Bellemare: Deep Reinforcement Learning at the Edge of the Statistical
Precipice, NeurIPS 2021, arXiv 2108.13264.
[2] Owen: The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007), arXiv 0712.1111.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Estimate = Callable[[Array, Array], Array]

RESAMPLES = 2000
# Of the resampling in reports.
SEED = 0
# Quantiles at which a 95% interval ends.
INTERVAL_ENDS = (0.025, 0.975)
# Share cut off at each end by the interquartile mean [1]; 0 gives the plain mean.
QUARTILE = 0.25
# Elements of a chunk's largest temporary array: 16 MB, whatever the number of seeds, tasks and resamples.
CHUNK_ELEMENTS = 2**21


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval, in the unit of the scores."""

    value: float
    low: float
    high: float

    def text(self, form: str = "{:.2f}") -> str:
        """`0.93 [0.91, 0.95]`."""
        return f"{form.format(self.value)} [{form.format(self.low)}, {form.format(self.high)}]"


def trimmed_mean(scores: ArrayLike, trim: float) -> float:
    """Mean of all scores [S, T] but the lowest and the highest floor(trim * S * T)."""
    ordered = np.sort(_checked(scores), axis=None)
    cut = int(trim * ordered.size)
    return float(ordered[cut : ordered.size - cut].mean())


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all S * T scores [S, T]. Source: [1], section 4.3."""
    return trimmed_mean(scores, QUARTILE)


def bootstrap_interval(
    scores: ArrayLike,
    *,
    seed: int,
    agents: ArrayLike | None = None,
    trim: float = QUARTILE,
    resamples: int = RESAMPLES,
) -> Interval:
    """Aggregate of scores [S, T] with a percentile bootstrap interval, stratified over training seeds and tasks.

    A resample draws S training seeds and T tasks with replacement, independently, and takes every score at their
    crossings [2]. The tasks are the same for all seeds, so a hard task is hard for all of them: drawing other tasks for
    each seed (or drawing the S * T scores one by one) would count one task S times, and its intervals are far too
    narrow. Likewise an agent is drawn with all tasks that are of it. Differs from [1], which holds the tasks fixed;
    here they are a sample of the agents that there are. With S = 1 only agents are drawn, and the interval says nothing
    about other training seeds.

    Measured on Gaussian scores with seed, task and residual effects of one size, T = 50, 1,000 trials: a 95% interval
    covers 69%, 80%, 87%, 92%, 95% for S = 2, 3, 5, 10, 20. Resampling score by score covers a third, whatever S is.

    Args:
        scores: float [S, T].
        seed: Seed of the resampling.
        agents: [T], a label of the agent that each task is of; each of its own if not given.
        trim: Share cut off at each end: 0.25 is the interquartile mean, 0 the mean.
        resamples: Number of resamples.
    """
    matrix = _checked(scores)
    value = trimmed_mean(matrix, trim)
    estimate = _trimmed_estimate(matrix, trim) if trim else _mean_estimate(matrix)
    count, agent_of = _numbered(agents, matrix.shape[1])
    draws = _resample(np.random.default_rng(seed), resamples, (len(matrix), count), matrix.size)
    return _interval(value, [estimate(seeds, drawn[:, agent_of]) for seeds, drawn in draws])


def probability_of_improvement(
    one: ArrayLike,
    other: ArrayLike,
    *,
    seed: int,
    agents: ArrayLike | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """P(X > Y) + P(X = Y) / 2 for a random task and a random run of each method, with a bootstrap interval.

    Source: [1], section 4.3 (mean over tasks of the Mann-Whitney statistic over pairs of runs). The resample draws the
    seeds of either method, and the agents, which both share.

    Args:
        one: float [S, T], scores X.
        other: float [S', T], scores Y on the same tasks.
        seed: Seed of the resampling.
        agents: [T], see `bootstrap_interval`.
        resamples: Number of resamples.
    """
    x, y = _checked(one), _checked(other)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both methods must be scored on the same tasks, got {x.shape[1]} and {y.shape[1]} tasks")
    tasks = x.shape[1]
    # Where each x stands among the sorted y of its task: [S, T] counts of y below, and of y below or equal.
    columns = [(np.sort(y[:, task]), x[:, task]) for task in range(tasks)]
    below = np.stack([np.searchsorted(ys, xs, side="left") for ys, xs in columns], axis=1)
    up_to = np.stack([np.searchsorted(ys, xs, side="right") for ys, xs in columns], axis=1)
    order = np.argsort(y, axis=0, kind="stable")

    def estimate(x_seeds: Array, y_seeds: Array, drawn: Array) -> Array:
        # [R, S' + 1, T]: how often the lowest 0 … S' scores of y were drawn.
        drawn_below = np.zeros((len(drawn), len(y) + 1, tasks))
        np.cumsum(y_seeds[:, order], axis=1, out=drawn_below[:, 1:])
        wins = np.take_along_axis(drawn_below, below[None], axis=1)
        wins += np.take_along_axis(drawn_below, up_to[None], axis=1)
        per_task: Array = np.einsum("rst,rs->rt", wins, x_seeds)
        return np.asarray((per_task * drawn).sum(axis=1) / (2 * len(x) * len(y) * drawn.sum(axis=1)))

    ones = [np.ones((1, size)) for size in (len(x), len(y), tasks)]
    largest = (max(len(x), len(y)) + 1) * tasks
    count, agent_of = _numbered(agents, tasks)
    draws = _resample(np.random.default_rng(seed), resamples, (len(x), len(y), count), largest)
    estimates = [estimate(x_seeds, y_seeds, drawn[:, agent_of]) for x_seeds, y_seeds, drawn in draws]
    return _interval(float(estimate(*ones)[0]), estimates)


def paired_difference(
    one: ArrayLike,
    other: ArrayLike,
    *,
    seed: int,
    agents: ArrayLike | None = None,
    trim: float = QUARTILE,
    resamples: int = RESAMPLES,
) -> Interval:
    """Aggregate of X - Y, score by score, with a bootstrap interval as in `bootstrap_interval`.

    Pairs have the same task and training seed. Where a method has a single seed, each score of the other is paired with
    its score on the same task. The interquartile mean of differences is not the difference of interquartile means.

    Args:
        one: float [S, T] or [1, T], scores X.
        other: float [S, T] or [1, T], scores Y.
        seed: Seed of the resampling.
        agents: [T], see `bootstrap_interval`.
        trim: Share of the differences cut off at each end.
        resamples: Number of resamples.
    """
    x, y = _checked(one), _checked(other)
    if x.shape[1] != y.shape[1] or (len(x) != len(y) and min(len(x), len(y)) > 1):
        raise ValueError(f"paired scores must be [S, T] or [1, T] with the same S and T, got {x.shape} and {y.shape}")
    return bootstrap_interval(x - y, seed=seed, agents=agents, trim=trim, resamples=resamples)


def unpaired_difference(
    one: ArrayLike,
    other: ArrayLike,
    *,
    seed: int,
    agents: tuple[ArrayLike, ArrayLike] | None = None,
    seeds: tuple[ArrayLike, ArrayLike] | None = None,
    trim: float = QUARTILE,
    resamples: int = RESAMPLES,
) -> Interval:
    """Aggregate of X minus aggregate of Y, for scores that can't be paired one by one, with a bootstrap interval.

    Agents that both sides met (in another game, or with other training seeds) are drawn for both at once, since an easy
    one is easy for both; so are training seeds of principals that are on both sides (with other agents, or in another
    game), since a good one is good on both. What only one side has is drawn alone.

    Args:
        one: float [S, T], scores X.
        other: float [S', T'], scores Y.
        seed: Seed of the resampling.
        agents: [T] and [T'], labels of the agents that the tasks are of; no two the same if not given.
        seeds: [S] and [S'], labels of the principals that the rows are of; no two the same if not given.
        trim: Share cut off at each end, of X and of Y.
        resamples: Number of resamples.
    """
    x, y = _checked(one), _checked(other)
    of_x, of_y = (_trimmed_estimate(matrix, trim) if trim else _mean_estimate(matrix) for matrix in (x, y))
    seed_sizes, seeds_of = _at_once(*(seeds or _all_different(len(x), len(y))))
    agent_sizes, agents_of = _at_once(*(agents or _all_different(x.shape[1], y.shape[1])))
    sizes, largest = (*seed_sizes, *agent_sizes), max(x.size, y.size)
    estimates = []
    for drawn in _resample(np.random.default_rng(seed), resamples, sizes, largest):
        (x_seeds, y_seeds), (x_tasks, y_tasks) = seeds_of(drawn[:3]), agents_of(drawn[3:])
        estimates.append(of_x(x_seeds, x_tasks) - of_y(y_seeds, y_tasks))
    return _interval(trimmed_mean(x, trim) - trimmed_mean(y, trim), estimates)


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    *,
    seed: int,
    agents: ArrayLike | None = None,
    resamples: int = RESAMPLES,
) -> tuple[Array, Array, Array]:
    """Share of runs x tasks that score above each threshold, with pointwise intervals as in `bootstrap_interval`.

    Source: [1], section 4.2 (score distributions).

    Args:
        scores: float [S, T].
        thresholds: float [N], tau.
        seed: Seed of the resampling.
        agents: [T], see `bootstrap_interval`.
        resamples: Number of resamples.

    Returns:
        Share, lower and upper end, float [N] each.
    """
    matrix = _checked(scores)
    above = (matrix[:, :, None] > np.asarray(thresholds, dtype=np.float64)).astype(np.float64)
    flat = above.reshape(len(matrix), -1)
    count, agent_of = _numbered(agents, matrix.shape[1])
    estimates = []
    for seeds, drawn in _resample(np.random.default_rng(seed), resamples, (len(matrix), count), above[0].size):
        tasks = drawn[:, agent_of]
        total = np.einsum("rtn,rt->rn", (seeds @ flat).reshape(len(seeds), *above.shape[1:]), tasks)
        # As many tasks as drawn: agents may have different numbers of them.
        estimates.append(total / (len(matrix) * tasks.sum(axis=1, keepdims=True)))
    low, high = np.quantile(np.concatenate(estimates), INTERVAL_ENDS, axis=0)
    return above.mean(axis=(0, 1)), low, high


def _mean_estimate(matrix: Array) -> Estimate:
    """Mean of resamples, from how often each seed, float [R, S], and task, float [R, T], was drawn."""

    def estimate(seeds: Array, tasks: Array) -> Array:
        total: Array = np.einsum("rt,rt->r", seeds @ matrix, tasks)
        # As many tasks as drawn: agents may have different numbers of them.
        return np.asarray(total / (len(matrix) * tasks.sum(axis=1)))

    return estimate


def _trimmed_estimate(matrix: Array, trim: float) -> Estimate:
    """Trimmed mean of resamples, from how often each seed and task was drawn: nothing is copied or sorted again."""
    order = np.argsort(matrix, axis=None, kind="stable")
    ordered = matrix.ravel()[order]
    seed_of, task_of = np.divmod(order, matrix.shape[1])

    def estimate(seeds: Array, tasks: Array) -> Array:
        # [R, S * T]: rank that the drawn copies of each score reach, clipped to the ranks that are kept.
        ranks = np.take(seeds, seed_of, axis=1)
        ranks *= np.take(tasks, task_of, axis=1)
        np.cumsum(ranks, axis=1, out=ranks)
        # Agents may have different numbers of tasks, so resamples may be of different size.
        first = np.floor(trim * ranks[:, -1])
        last = ranks[:, -1] - first
        np.clip(ranks, first[:, None], last[:, None], out=ranks)
        # Sum of score * (copies kept), by parts: the copies kept are the steps of `ranks`.
        kept: Array = last * ordered[-1] - first * ordered[0] - ranks[:, :-1] @ np.diff(ordered)
        return kept / (last - first)

    return estimate


def _resample(
    rng: np.random.Generator, resamples: int, sizes: tuple[int, ...], elements: int
) -> Iterator[tuple[Array, ...]]:
    """Chunks of resamples: for each size n, float [R, n], how often each of n was drawn in n draws."""
    if resamples < 1:
        raise ValueError(f"`resamples` must be >= 1, got {resamples}")
    chunk = max(1, CHUNK_ELEMENTS // elements)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        yield tuple(_times_drawn(rng, count, n) for n in sizes)


def _times_drawn(rng: np.random.Generator, count: int, n: int) -> Array:
    """Float [count, n]: how often each of n came up in n draws. Several times faster than `rng.multinomial`."""
    if not n:
        return np.zeros((count, 0))
    drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _numbered(agents: ArrayLike | None, tasks: int) -> tuple[int, NDArray[np.int64]]:
    """How many agents there are, and the number of each task's, int64 [T]."""
    if agents is None:
        return tasks, np.arange(tasks)
    number, known = pd.factorize(np.asarray(agents))
    if len(number) != tasks:
        raise ValueError(f"`agents` must tell which agent each of {tasks} tasks is of, got {len(number)}")
    return len(known), number


def _all_different(x: int, y: int) -> tuple[ArrayLike, ArrayLike]:
    """Labels for both sides, no two the same."""
    return np.arange(x), np.arange(y) + x


def _at_once(x: ArrayLike, y: ArrayLike) -> tuple[tuple[int, ...], Callable[[Sequence[Array]], tuple[Array, Array]]]:
    """How two sides with these labels are drawn: at once what both have, alone what one has.

    Returns:
        How many labels both have, x alone, and y alone; and what makes of draws of these, float [R, n] each, how often
        each entry of x and of y was drawn.
    """
    label_of, known = pd.factorize(np.concatenate((x, y)))
    of_x, of_y = np.split(label_of, [len(np.asarray(x))])
    in_x, in_y = (np.isin(np.arange(len(known)), of_side) for of_side in (of_x, of_y))
    parts = [np.flatnonzero(part) for part in (in_x & in_y, in_x & ~in_y, ~in_x & in_y)]
    back = np.argsort(np.concatenate(parts))

    def spread(drawn: Sequence[Array]) -> tuple[Array, Array]:
        every = np.concatenate(drawn, axis=1)[:, back]
        return every[:, of_x], every[:, of_y]

    return tuple(map(len, parts)), spread


def _interval(value: float, estimates: list[Array]) -> Interval:
    low, high = np.quantile(np.concatenate(estimates), INTERVAL_ENDS)
    return Interval(value, float(low), float(high))


def _checked(scores: ArrayLike) -> Array:
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"scores must be a matrix, training seeds x tasks, got shape {matrix.shape}")
    lacking = int((~np.isfinite(matrix)).sum())
    if lacking:
        raise ValueError(f"scores must be finite for every training seed x task, got {lacking} not")
    return matrix
