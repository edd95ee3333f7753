"""Pictures of what a principal learns about agents: the gain of adaptation, and its world model's losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mermaide_ray.report.charts import adaptation_gain as draw_gains
from mermaide_ray.report.charts import world_model_losses
from mermaide_ray.report.names import FLOORS, SCORE, is_trained, label
from mermaide_ray.report.pictures.picture import (
    MOST_FAMILIES,
    MOST_METHODS,
    MOST_PANELS,
    Picture,
    basis,
    left_out,
    panels_of,
    small_print,
    titled,
)
from mermaide_ray.report.sources import PARAM
from mermaide_ray.report.statistics import Interval
from mermaide_ray.report.study import Study


def adaptation_gain(study: Study) -> Iterator[Picture]:
    """What adapting to an agent brings, against its exploration."""
    params = [column for column in study.rows.columns if column.startswith(PARAM)]
    ends = {}
    for condition in panels_of(study):
        ks = study.cells.ks(study.main, condition)
        if len(ks) > 1:
            ends[condition] = ks[0], ks[-1]
    if not ends or not params:
        return
    rows = study.rows[study.rows["method"] == study.main]
    gains: dict[str, dict[str, tuple[Any, Any]]] = {}
    names: dict[str, str] = {}
    for family, of_family in rows.groupby("family", observed=True):
        known = [column for column in params if of_family[column].notna().any()]
        if not known or len(gains) == MOST_FAMILIES:
            continue
        explores = _exploration(of_family, known)
        names[str(family)] = explores.removeprefix(PARAM)
        for condition, (low, high) in ends.items():
            chosen = of_family[(of_family["condition"] == condition) & of_family["k"].isin([low, high])]
            means = chosen.groupby(["task", "k"])[SCORE].mean().unstack("k")
            if means.shape[1] == 2:
                gain = (means[high] - means[low]).dropna()
                at = chosen.groupby("task")[explores].mean().loc[gain.index]
                if len(gain):
                    gains.setdefault(str(family), {})[condition] = at.to_numpy(float), gain.to_numpy(float)
    if not gains:
        return
    pairs = dict.fromkeys(ends.values())
    gained = ", ".join(f"K = {high} minus score at K = {low}" for low, high in pairs)
    told = [
        f"{family}, {condition}: {gain.mean():+.3f} on average"
        for family, found in gains.items()
        for condition, (_, gain) in found.items()
    ]
    note = small_print(
        study,
        f"{label(study.main)}; a dot per task (mean over training seeds), lines join means of groups of equal size. "
        f"{basis(study)}",
    )
    drawn = {family: titled(study, found) for family, found in gains.items()}
    yield Picture(
        "adaptation_gain",
        "What adaptation brings, by how much the agent explores",
        f"Score after {gained}, against the agent's first hyperparameter.",
        f"Scatter of the gain of adaptation over the exploration parameter. {'; '.join(told)}.",
        draw_gains(drawn, names, f"score at {gained}" if len(pairs) == 1 else "gain in score, largest K", note=note),
    )


def _exploration(rows: pd.DataFrame, params: Sequence[str]) -> str:
    """Which hyperparameter of a family is its exploration: the first that it declares; of older rows, the first."""
    if "exploration" not in rows:
        return params[0]
    told = rows["exploration"].to_numpy(float)
    return next((name for name in params if np.array_equal(rows[name].to_numpy(float), told)), params[0])


def world_model_loss(study: Study) -> Iterator[Picture]:
    """Losses of the world models beside their floors; many conditions have their place in `world_model_conditions`."""
    if "wm_nll_after" not in study.cells.measures or len(study.conditions) > MOST_PANELS:
        return
    losses: dict[str, dict[str, Interval]] = {}
    for condition in panels_of(study):
        for method in [method for method in study.methods if is_trained(method)][:MOST_METHODS]:
            cells = study.at_largest(method, condition)
            if not study.cells.pooled(cells, "wm_nll_after").size:
                continue
            of_condition = losses.setdefault(condition, {})
            for floor, named in FLOORS.items():
                name = f"floor: {named}"
                if name not in of_condition and (interval := study.cells.interval(cells, floor)) is not None:
                    of_condition[name] = interval
            for when in ("before", "after"):
                interval = study.cells.interval(cells, f"wm_nll_{when}")
                if interval is not None:
                    of_condition[f"{label(method)}, {when}"] = interval
    if not losses:
        return
    told = [
        f"{condition}: {', '.join(f'{name} {interval.value:.2f}' for name, interval in found.items())}"
        for condition, found in losses.items()
    ]
    note = small_print(
        study, f"Before and after adaptation at the largest K; mean, 95% interval. {basis(study, 'wm_nll_after')}"
    )
    yield Picture(
        "world_model_loss",
        "How well the next pull is predicted",
        "Loss of each world model before and after adaptation, beside two predictors that learn nothing: less is "
        "better, and a model right of a floor has learned nothing." + left_out(study),
        f"Losses in nats per pull. {'; '.join(told)}.",
        world_model_losses(titled(study, losses), note=note),
    )
