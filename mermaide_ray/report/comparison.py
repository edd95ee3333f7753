"""One side less another, over the agents and training seeds that both have: terminal, reports and verdicts ask here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mermaide_ray.report.cells import Cell, Cells, Run, trim_of
from mermaide_ray.report.names import SCORE
from mermaide_ray.report.statistics import (
    SEED,
    Interval,
    paired_difference,
    probability_of_improvement,
    unpaired_difference,
)


class Comparison(NamedTuple):
    """What was compared, and what came out.

    Attributes:
        x, y: The values of either side, [S, T].
        difference: The one side less the other.
        probability: That the one does better on a random task; None where they met other agents, or had other luck.
        is_paired: Whether by training seed and task.
        runs_of: Settings whose training runs stand one by one in place of seeds, which they do not share; 0 if none do.
    """

    x: pd.DataFrame
    y: pd.DataFrame
    difference: Interval
    probability: Interval | None
    is_paired: bool
    runs_of: int


def compare(
    cells: Cells, one: Sequence[Cell], other: Sequence[Cell], measure: str = SCORE, *, between: str, sign: int = 1
) -> Comparison | None:
    """Paired by training seed and task where both sides met the same agents with the same luck.

    Where they did not, agents that both met are drawn for both at once; so are training seeds where the sides are
    conditions, which the same principals met. All else is drawn for each side alone.

    Args:
        cells: Those of a study. Its `left_out` is told what only one side has.
        one: A side.
        other: The side that it is compared with.
        measure: What is compared.
        between: Both sides' names, for `left_out`.
        sign: 1 where more of the measure is better, -1 where less is.

    Returns:
        None where the sides have no values that could be compared.
    """
    x, y = cells.pooled_alike(one, other, measure)
    if not (x.size and y.size):
        return None
    trim, is_paired, probability = trim_of(measure), False, None
    are_conditions = one[0].condition != other[0].condition
    if cells.same_tasks(one, other):
        if are_conditions:
            y = cells.moved(y, one[0].condition)
        shapes = x.shape, y.shape
        tasks, seeds = x.columns.intersection(y.columns), x.index.intersection(y.index)
        if tasks.empty:
            cells.left_out[f"{between}: not compared, since they have no task with a value in common."] = None
            return None
        x, y = x[tasks], y[tasks]
        # Where only some seeds of either side are the other's, pairing would throw the rest of both away. Training runs
        # of their own are of several settings: either side's rest may be of other ones.
        is_paired = min(len(x), len(y)) in (1, len(seeds)) or any(isinstance(seed, Run) for seed in seeds)
        if is_paired and min(len(x), len(y)) > 1:
            x, y = x.loc[seeds], y.loc[seeds]
        cells.tell_dropped(between, np.subtract(shapes, (x.shape, y.shape)))
        signed = (x, y) if sign > 0 else (y, x)
        probability = probability_of_improvement(*signed, seed=SEED, agents=cells.agents(tasks))
    agents = cells.agents(x.columns), cells.agents(y.columns)
    if is_paired:
        difference = paired_difference(x, y, seed=SEED, agents=agents[0], trim=trim)
    else:
        principals = (x.index, y.index) if are_conditions else None
        difference = unpaired_difference(x, y, seed=SEED, agents=agents, seeds=principals, trim=trim)
    runs = {seed.setting for seed in x.index if isinstance(seed, Run)}
    return Comparison(x, y, difference, probability, is_paired, len(runs))
