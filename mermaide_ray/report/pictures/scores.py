"""Pictures of scores: contrasts, K-shot curve, performance profiles, success against cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from mermaide_ray.report.answer import Answer, named_conditions
from mermaide_ray.report.cells import Cell
from mermaide_ray.report.charts import (
    Point,
    contrast_bars,
    far_out,
    non_dominated,
    pareto_front,
)
from mermaide_ray.report.charts import performance_profiles as draw_profiles
from mermaide_ray.report.names import is_privileged, label, measure_name
from mermaide_ray.report.pictures.picture import (
    MOST_METHODS,
    MOST_PANELS,
    SCALE_ENDS,
    Picture,
    basis,
    left_out,
    panels_of,
    small_print,
    titled,
)
from mermaide_ray.report.run_charts import kshot_panels
from mermaide_ray.report.score_tables import MOST_VALUES
from mermaide_ray.report.statistics import Interval
from mermaide_ray.report.study import Study, short

# Settings drawn as a cloud.
MOST_DOTS = 400
# A few agents for which intervening does great harm would press all the rest into a corner.
LOWEST_TAU = -0.25


def comparison(study: Study, answer: Answer) -> Iterator[Picture]:
    """The side that the answer is about against each of the others."""
    # Of many conditions each has its place in `over_conditions`.
    apart = len(study.conditions) <= MOST_PANELS and answer.by_condition
    contrasts = list(apart or answer.contrasts)
    if not contrasts:
        return
    told = [
        f"{contrast.other} ({named_conditions(contrast.conditions, ' + ')}): {contrast.difference.value:+.3f}"
        for contrast in contrasts[: MOST_METHODS * 2]
    ]
    kept = list(dict.fromkeys(contrast.other for contrast in contrasts))[:MOST_METHODS]
    conditions = list(dict.fromkeys(contrast.conditions for contrast in contrasts))[:MOST_PANELS]
    drawn = [one for one in contrasts if one.other in kept and one.conditions in conditions]
    note = small_print(study, f"95% bootstrap intervals over training seeds and tasks. {basis(study)}")
    yield Picture(
        "comparison",
        f"{answer.name} against the others",
        f"Differences in {measure_name(answer.measure)} (right of the line: {answer.name} is higher), and the "
        "probability that it does better on a random task. Intervals that cross the line leave the order open."
        + " An arrow leads to what lies beyond the axis, with its figures."
        * bool(far_out(drawn)),
        f"Error bars of the difference between {answer.name} and each other: {'; '.join(told)}.",
        contrast_bars(answer.name, drawn, answer.measure, note=note),
    )


def kshot_curve(study: Study, fewest: int = 2) -> Iterator[Picture]:
    """Scores over K, where there are that many of them."""
    methods = _drawn_methods(study)
    scores: dict[str, dict[str, dict[int, Interval]]] = {}
    for condition in panels_of(study):
        for method in methods:
            for k in study.cells.ks(method, condition):
                interval = study.cells.interval(study.cells_of(method, k, [condition]))
                if interval is not None:
                    scores.setdefault(condition, {}).setdefault(method, {})[k] = interval
    ks = {k for found in scores.values() for points in found.values() for k in points}
    if len(ks) < fewest:
        return
    told = [
        f"{condition}: {label(study.main)} from {points[min(points)].value:.2f} at K = {min(points)} to "
        f"{points[max(points)].value:.2f} at K = {max(points)}"
        for condition, found in scores.items()
        if (points := found.get(study.main))
    ]
    note = small_print(
        study, f"Interquartile mean, 95% bootstrap interval over training seeds and tasks. {basis(study)}"
    )
    yield Picture(
        "kshot_curve",
        "Score after K support episodes",
        "What one more episode with a new agent is worth. Dashed lines: methods to which K means nothing."
        + left_out(study),
        f"Curves of the normalised score over K. {'; '.join(told)}.",
        kshot_panels(titled(study, scores), study.methods, note=note),
    )


def performance_profiles(study: Study) -> Iterator[Picture]:
    """How often each method scores above each threshold."""
    methods = [method for method in _drawn_methods(study) if method not in SCALE_ENDS]
    scores: dict[str, dict[str, pd.DataFrame]] = {}
    for condition in panels_of(study):
        for method in methods:
            matrix = study.cells.pooled(study.at_largest(method, condition))
            if matrix.size:
                scores.setdefault(condition, {})[method] = matrix
    if not scores:
        return
    every = np.concatenate([matrix.to_numpy().ravel() for found in scores.values() for matrix in found.values()])
    low, high = np.quantile(every, [0.01, 0.995])
    thresholds = np.linspace(max(min(low, 0), LOWEST_TAU), max(high, 1), 61)
    profiles = {
        condition: {method: study.cells.profile_of(matrix, thresholds) for method, matrix in found.items()}
        for condition, found in scores.items()
    }
    told = [
        f"{condition}: {label(study.main)} above 0.8 in {float((found[study.main] > 0.8).to_numpy().mean()):.0%}"
        for condition, found in scores.items()
        if study.main in found
    ]
    note = small_print(
        study, f"Largest K of each method; pointwise 95% bands over training seeds and tasks. {basis(study)}"
    )
    yield Picture(
        "performance_profiles",
        "Performance profiles",
        "Share of training seeds × tasks that score above τ (Agarwal et al. 2021): the higher a curve, the better; "
        "where curves cross, neither method is better for all agents." + left_out(study),
        f"Falling curves of the share of runs and tasks that score above a threshold. {'; '.join(told)}.",
        draw_profiles(titled(study, profiles), thresholds, study.methods, note=note),
    )


def pareto(study: Study) -> Iterator[Picture]:
    """Success rate against cost, with its front."""
    if not {"cost", "success_rate"} <= study.cells.measures:
        return
    key = study.dimensions[0] if len(study.dimensions) == 1 else None
    values = study.values_of(key) if key and study.is_numeric(key) else []
    over_setting = _pareto_over(study, key, values) if key and 1 < len(values) <= MOST_VALUES else None
    yield over_setting or _pareto_over_k(study)


def _pareto_over(study: Study, key: str, values: Sequence[float]) -> Picture | None:
    """A line per method through the values of the one setting that the sweep varied, if it moves any of them."""
    points: dict[str, list[Point]] = {}
    for condition in panels_of(study):
        for method in study.methods:
            line = []
            for value in values:
                settings = [str(setting) for setting, at in study.settings[key].items() if at == value]
                line += _points(study, method, value, [study.at_largest(method, condition, settings)])
            # Who never or always intervenes heeds no setting, and would press all others into a corner.
            if len({(point.cost, point.success) for point in line}) > 1:
                points.setdefault(condition, []).extend(line)
    if not points:
        return None
    name = short(key)
    note = small_print(study, f"Means over training seeds and tasks, largest K of each method. {basis(study, 'cost')}")
    return Picture(
        "pareto_front",
        f"Success against cost, over {key}",
        f"Upper left is better. Dotted lines join the values of {name}, written beside {label(study.main)}; rules that "
        "heed it not are left out; the grey line joins what no unprivileged method beats in both success and cost."
        + left_out(study),
        f"Scatter of success rate against cost. {_front_told(points, name)}.",
        pareto_front(titled(study, points), {}, study.methods, named=[study.main], note=note),
    )


def _pareto_over_k(study: Study) -> Picture:
    """A line per method through its K; single settings of the main method as a cloud."""
    points: dict[str, list[Point]] = {}
    cloud: dict[str, list[Point]] = {}
    for condition in panels_of(study):
        for method in study.methods:
            largest = study.largest(method, condition)
            for k in study.cells.ks(method, condition):
                cells = study.cells_of(method, k, [condition])
                points.setdefault(condition, []).extend(_points(study, method, k, [cells], is_open=[k] != largest))
        singles = study.at_largest(study.main, condition)
        if 1 < len(singles) <= MOST_DOTS:
            cloud[condition] = _points(study, study.main, singles[0].k, [[cell] for cell in singles])
    note = small_print(study, f"Means over training seeds and tasks. {basis(study, 'cost')}")
    return Picture(
        "pareto_front",
        "Success against cost",
        "Upper left is better. The grey line joins what no unprivileged method beats in both success and cost; filled "
        "markers are the largest K, open ones smaller K, dots single settings of the main method." + left_out(study),
        f"Scatter of success rate against cost. {_front_told(points, 'K')}.",
        pareto_front(titled(study, points), titled(study, cloud), study.methods, note=note),
    )


def _front_told(points: Mapping[str, Sequence[Point]], at: str) -> str:
    fronts = {
        condition: non_dominated([point for point in found if not is_privileged(point.method)])
        for condition, found in points.items()
    }
    return "; ".join(
        f"{condition}: on the front {', '.join(f'{label(point.method)} ({at} = {point.at:g})' for point in front)}"
        for condition, front in fronts.items()
    )


def _points(
    study: Study, method: str, at: float, groups: Sequence[Sequence[Cell]], is_open: bool = False
) -> list[Point]:
    """One point per group of cells."""

    def mean(cells: Sequence[Cell], measure: str) -> float:
        return float(study.cells.pooled(cells, measure).to_numpy().mean())

    known = [cells for cells in groups if cells and study.cells.pooled(cells, "cost").size]
    return [Point(method, at, mean(cells, "cost"), mean(cells, "success_rate"), is_open) for cells in known]


def _drawn_methods(study: Study) -> list[str]:
    """Trained methods and unprivileged rules, then privileged ones, as many as a figure can hold."""
    return study.methods[:MOST_METHODS]
