"""Pictures of more conditions than fit side by side: scores and gains, and the predictions of the world model."""

from __future__ import annotations

from collections.abc import Iterator

from mermaide_ray.report.answer import Answer, measure_name
from mermaide_ray.report.condition_charts import Row, condition_rows
from mermaide_ray.report.drawing import styles_of
from mermaide_ray.report.pictures.picture import MOST_METHODS, MOST_PANELS, Picture, basis, small_print
from mermaide_ray.report.statistics import QUARTILE, Interval, bootstrap_interval
from mermaide_ray.report.study import Study
from mermaide_ray.report.table import SCORE, label

NLL_FLOORS = {"every arm alike": "wm_nll_uniform", "running frequencies": "wm_nll_frequency"}


def over_conditions(study: Study, answer: Answer) -> Iterator[Picture]:
    """Scores, differences and the gain of adapting in every condition."""
    if len(study.conditions) <= MOST_PANELS:
        return
    trained = [method for method in study.methods if study.is_trained(method)][:MOST_METHODS]
    scores = {label(method): _levels(study, method) for method in trained}
    gains = {label(method): _gains(study, method) for method in trained}
    against: dict[str, dict[str, Interval]] = {}
    for contrast in answer.by_condition:
        if len(contrast.conditions) == 1:
            against.setdefault(contrast.other, {})[contrast.conditions[0]] = contrast.difference
    rows = [
        Row("normalised score", {name: found for name, found in scores.items() if found}),
        Row(
            f"{measure_name(answer.measure)}:\n{answer.name} less …",
            dict(list(against.items())[:MOST_METHODS]),
            zero=True,
        ),
        Row("score, largest less\nsmallest K", {name: found for name, found in gains.items() if found}, zero=True),
    ]
    told = [
        f"{condition}, less {other}: {difference.value:+.3f}"
        for other, found in against.items()
        for condition, difference in found.items()
    ]
    what = "Interquartile means at the largest K, 95% bootstrap intervals over training seeds and tasks"
    yield Picture(
        "over_conditions",
        "Scores and gains in every condition",
        f"The normalised score of each trained method; {answer.name} against each other, paired; and what the support "
        "episodes bring to each method that adapts, paired. Above the line is better for the first named.",
        f"Points over {len(study.conditions)} conditions. {'; '.join(told[: 4 * MOST_METHODS])}.",
        condition_rows(
            [row for row in rows if row.series],
            study.conditions,
            {label(method): style for method, style in styles_of(study.methods).items()},
            note=small_print(study, f"{what}. {basis(study)}"),
        ),
    )


def world_model_conditions(study: Study) -> Iterator[Picture]:
    """How well the next arm is predicted in every condition, after each number of support episodes."""
    if len(study.conditions) <= MOST_PANELS or "wm_nll_after" not in study.cells.measures:
        return
    measures = {
        "loss (nats per pull)": ("wm_nll_after", NLL_FLOORS),
        "accuracy": ("wm_accuracy_after", {"running frequencies": "wm_accuracy_frequency"}),
        "calibration error": ("wm_ece_after", {}),
    }
    rows = []
    for name, (measure, floors) in measures.items():
        if measure not in study.cells.measures:
            continue
        series = {f"K = {k}": _means(study, measure, [k]) for k in study.cells.ks(study.main)[:MOST_METHODS]}
        below = {
            floor: _means(study, column, study.cells.ks(study.main)[-1:])
            for floor, column in floors.items()
            if column in study.cells.measures
        }
        if any(series.values()):
            rows.append(Row(name, series, below))
    if not rows:
        return
    told = [
        f"{condition}: {interval.value:.2f} against {rows[0].floors['running frequencies'][condition].value:.2f}"
        for condition, interval in list(rows[0].series.values())[-1].items()
        if condition in rows[0].floors.get("running frequencies", {})
    ]
    yield Picture(
        "world_model_conditions",
        "How well the next arm is predicted in every condition",
        f"The world model of {label(study.main)} on pulls that it never saw, after K episodes with the agent; lines "
        "are predictors that learn nothing beforehand. Loss and calibration error: less is better.",
        f"Points over {len(study.conditions)} conditions. Loss at the largest K against running frequencies: "
        f"{'; '.join(told)}.",
        condition_rows(
            rows,
            study.conditions,
            {},
            note=small_print(study, f"Means, 95% bootstrap intervals over training seeds and tasks. {basis(study)}"),
        ),
    )


def _levels(study: Study, method: str) -> dict[str, Interval]:
    found = {
        condition: study.cells.interval(study.at_largest(method, condition), SCORE, QUARTILE)
        for condition in study.conditions
    }
    return {condition: interval for condition, interval in found.items() if interval is not None}


def _gains(study: Study, method: str) -> dict[str, Interval]:
    """What the largest K adds to the score, by condition; nothing where a method scores alike at every K."""
    found = {}
    for condition in study.conditions:
        ks = study.cells.ks(method, condition)
        if len(ks) > 1:
            low, high = (study.cells_of(method, k, [condition]) for k in (ks[0], ks[-1]))
            gain = study.cells.gain(high, low)
            if gain.size and gain.to_numpy().any():
                found[condition] = bootstrap_interval(gain.to_numpy(), seed=0)
    return found


def _means(study: Study, measure: str, ks: list[int]) -> dict[str, Interval]:
    found = {
        condition: study.cells.interval(study.cells_of(study.main, k, [condition]), measure, 0)
        for condition in study.conditions
        for k in ks
    }
    return {condition: interval for condition, interval in found.items() if interval is not None}
