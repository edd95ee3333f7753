"""Pictures of what a sweep varied: scores over a numeric setting, and at the crossings of two settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mermaide_ray.report.names import is_trained, label
from mermaide_ray.report.pictures.picture import (
    MOST_METHODS,
    MOST_PANELS,
    Picture,
    basis,
    left_out,
    mean_of,
    panels_of,
    small_print,
    titled,
)
from mermaide_ray.report.score_tables import MOST_VALUES
from mermaide_ray.report.setting_charts import setting_curves as draw_curves
from mermaide_ray.report.setting_charts import shift_matrix
from mermaide_ray.report.statistics import Interval
from mermaide_ray.report.study import Study, short, shown

MOST_DIMENSIONS = 3
MOST_MATRICES = 4


def setting_curves(study: Study) -> Iterator[Picture]:
    """Scores over each numeric setting."""
    methods = [method for method in study.methods if is_trained(method)][:MOST_METHODS]
    for key in [key for key in study.dimensions if study.is_numeric(key)][:MOST_DIMENSIONS]:
        values = study.values_of(key)
        many = len(values) > MOST_VALUES
        curves: dict[str, dict[str, dict[float, Interval]]] = {}
        for condition in panels_of(study):
            for method in methods:
                for value in values:
                    settings = [str(setting) for setting, at in study.settings[key].items() if at == value]
                    cells = study.at_largest(method, condition, settings)
                    point = mean_of(study, cells) if many else study.cells.interval(cells)
                    if point is not None:
                        curves.setdefault(condition, {}).setdefault(method, {})[value] = point
        if not curves:
            continue
        others = [short(other) for other in study.dimensions if other != key]
        over = f" Averaged over {', '.join(others)}." if others else ""
        told = [
            f"{condition}: {label(study.main)} best at {short(key)} = {best:g} with {points[best].value:.2f}"
            for condition, found in curves.items()
            if (points := found.get(study.main))
            for best in [max(points, key=lambda value: points[value].value)]
        ]
        what = "interquartile mean of each setting" if many else "interquartile mean, 95% bootstrap interval"
        note = small_print(study, f"Largest K of each method; {what}.{over} {basis(study)}")
        yield Picture(
            f"over_{short(key)}",
            f"Score over {key}",
            f"The normalised score at the largest K for each value of {key}." + over + left_out(study),
            f"Normalised score over {key}. {'; '.join(told)}.",
            draw_curves(
                short(key), titled(study, curves), "normalised score (0 never, 1 oracle)", study.methods, note=note
            ),
        )


def shift_matrices(study: Study) -> Iterator[Picture]:
    """Scores at the crossings of settings with conditions and with each other."""
    discrete = [key for key in study.dimensions if len(study.values_of(key)) <= MOST_VALUES]
    methods = [method for method in study.methods if is_trained(method)][:MOST_PANELS]
    drawn = 0
    for place, key in enumerate(discrete):
        # A setting against the conditions, and against each later setting.
        for other in ([None] if len(study.conditions) > 1 else []) + discrete[place + 1 :]:
            if drawn == MOST_MATRICES:
                return
            rows = study.values_of(key)
            columns = study.conditions if other is None else study.values_of(other)
            matrices = {}
            for method in methods:
                matrix = np.full((len(rows), len(columns)), np.nan)
                for (row, column), _ in np.ndenumerate(matrix):
                    matrix[row, column] = _crossing(study, method, key, rows[row], other, columns[column])
                if np.isfinite(matrix).any():
                    matrices[method] = matrix
            if not matrices:
                continue
            drawn += 1
            against = "condition" if other is None else short(other)
            at = "" if other is None else f" Condition: {study.shift_condition}."
            note = small_print(study, f"Largest K of each method; interquartile mean.{at} {basis(study)}")
            first = next(iter(matrices.values()))
            low, high = np.nanmin(first), np.nanmax(first)
            yield Picture(
                f"shift_{short(key)}_{against}",
                f"{key} against {'the conditions' if other is None else other}",
                f"Normalised score for each {short(key)} (rows) and {against} (columns)." + at,
                f"Heatmap of the normalised score by {short(key)} and {against}; {label(next(iter(matrices)))} ranges "
                f"from {low:.2f} to {high:.2f}.",
                shift_matrix(matrices, (short(key), [*map(shown, rows)]), (against, [*map(shown, columns)]), note=note),
                brightness_matters=True,
            )


def _crossing(study: Study, method: str, key: str, row: Any, other: str | None, column: Any) -> float:
    at = study.settings[key] == row
    if other is not None:
        at &= study.settings[other] == column
    condition = str(column) if other is None else study.shift_condition
    settings = [str(setting) for setting in study.settings.index[at]]
    point = mean_of(study, study.at_largest(method, condition, settings))
    return float("nan") if point is None else point.value
