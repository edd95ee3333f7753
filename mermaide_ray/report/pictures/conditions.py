"""Pictures of more conditions than fit side by side: scores and gains, and the predictions of the world model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mermaide_ray.report.answer import Answer
from mermaide_ray.report.charts import fitted
from mermaide_ray.report.condition_charts import Row, condition_rows
from mermaide_ray.report.drawing import styles_of
from mermaide_ray.report.names import FLOORS, SCORE, is_trained, label, measure_name
from mermaide_ray.report.pictures.picture import MOST_METHODS, MOST_PANELS, SCALE_ENDS, Picture, basis, small_print
from mermaide_ray.report.statistics import Interval
from mermaide_ray.report.study import Study, short, shown

BOTH_SIDES = {"return": "return", "interventions": "interventions", "agent earns": "agent_return"}


def over_conditions(study: Study, answer: Answer) -> Iterator[Picture]:
    """Scores, differences and the gain of adapting in every condition."""
    if len(study.conditions) <= MOST_PANELS:
        return
    trained = [method for method in study.methods if is_trained(method)][:MOST_METHODS]
    scores = {label(method): _means(study, method, SCORE) for method in trained}
    gains = {label(method): _gains(study, method) for method in trained}
    against: dict[str, dict[str, Interval]] = {}
    for contrast in answer.by_condition:
        # The score is itself the difference to never intervening.
        if len(contrast.conditions) == 1 and contrast.other not in SCALE_ENDS:
            against.setdefault(contrast.other, {})[contrast.conditions[0]] = contrast.difference
    rows = [
        Row("normalised score", {name: found for name, found in scores.items() if found}),
        Row(
            f"{fitted(answer.name)}\nless the other,\n{measure_name(answer.measure)}",
            dict(list(against.items())[:MOST_METHODS]),
            zero=True,
        ),
        Row(
            "score at largest K\nless score at smallest",
            {name: found for name, found in gains.items() if found},
            zero=True,
        ),
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
        f"The normalised score of each trained method; {answer.name} against each other, paired: above the line "
        f"{answer.name} is higher; and what the support episodes bring to each method that adapts, paired.",
        f"Points over {len(study.conditions)} conditions. {'; '.join(told[: 4 * MOST_METHODS])}.",
        condition_rows(
            [row for row in rows if row.series],
            study.conditions,
            {label(method): style for method, style in styles_of(study.methods).items()},
            note=small_print(study, f"{what}. {basis(study)}"),
        ),
    )


def settings_over_conditions(study: Study) -> Iterator[Picture]:
    """What both sides get in every condition, by each setting that is told in words, such as the agents trained on."""
    if len(study.conditions) <= MOST_PANELS:
        return
    for key in study.dimensions:
        values = study.values_of(key)
        if study.is_numeric(key) or not 1 < len(values) <= MOST_METHODS:
            continue
        rows = []
        for name, measure in BOTH_SIDES.items():
            if measure not in study.cells.measures:
                continue
            series: dict[str, dict[str, Interval]] = {}
            for value in values:
                settings = [str(setting) for setting in study.settings.index[study.settings[key] == value]]
                series[f"{short(key)} = {shown(value)}"] = _means(study, study.main, measure, settings)
            bounds = {bound: _means(study, bound, measure) for bound in SCALE_ENDS if bound in study.methods}
            rows.append(Row(name, series, bounds))
        what = "Means, 95% bootstrap intervals over training seeds and tasks"
        told = [
            f"{name}, {condition}: {interval.value:.1f}"
            for name, found in rows[0].series.items()
            for condition, interval in found.items()
        ]
        yield Picture(
            f"{short(key)}_over_conditions",
            f"Return, interventions and what the agent earns by {key}",
            f"{label(study.main)} at its largest K in every condition, by {short(key)}. "
            f"Lines: {' and '.join(SCALE_ENDS)}.",
            f"Points over {len(study.conditions)} conditions. Return: {'; '.join(told)}.",
            condition_rows(
                rows,
                study.conditions,
                {},
                note=small_print(study, f"{what}. {basis(study, 'return')}"),
            ),
        )


def world_model_conditions(study: Study) -> Iterator[Picture]:
    """How well the next pull is predicted in every condition, after each number of support episodes."""
    if len(study.conditions) <= MOST_PANELS or "wm_nll_after" not in study.cells.measures:
        return
    frequencies = FLOORS["wm_nll_frequency"]
    measures: dict[str, tuple[str, dict[str, str]]] = {
        "loss (nats per pull)": ("wm_nll_after", FLOORS),
        "accuracy": ("wm_accuracy_after", {"wm_accuracy_frequency": frequencies}),
        "calibration error": ("wm_ece_after", {}),
    }
    rows = []
    for name, (measure, floors) in measures.items():
        if measure not in study.cells.measures:
            continue
        series = {
            f"K = {k}": _means(study, study.main, measure, k=k) for k in study.cells.ks(study.main)[:MOST_METHODS]
        }
        below = {
            floor: _means(study, study.main, column)
            for column, floor in floors.items()
            if column in study.cells.measures
        }
        if any(series.values()):
            rows.append(Row(name, series, below))
    if not rows:
        return
    told = [
        f"{condition}: {interval.value:.2f} against {rows[0].floors[frequencies][condition].value:.2f}"
        for condition, interval in list(rows[0].series.values())[-1].items()
        if condition in rows[0].floors.get(frequencies, {})
    ]
    yield Picture(
        "world_model_conditions",
        "How well the next pull is predicted in every condition",
        f"The world model of {label(study.main)} on pulls that it never saw, after K episodes with the agent; lines "
        "are predictors that learn nothing beforehand. Loss and calibration error: less is better.",
        f"Points over {len(study.conditions)} conditions. Loss at the largest K against {frequencies}: "
        f"{'; '.join(told)}.",
        condition_rows(
            rows,
            study.conditions,
            {},
            note=small_print(study, f"Means, 95% bootstrap intervals over training seeds and tasks. {basis(study)}"),
        ),
    )


def _gains(study: Study, method: str) -> dict[str, Interval]:
    """What the largest K adds to the score, by condition; nothing where a method scores alike at every K."""
    found = {}
    for condition in study.conditions:
        gain = study.gain_of_k(method, condition)
        if gain.size:
            found[condition] = study.cells.interval_of(gain)
    return found


def _means(
    study: Study, method: str, measure: str, settings: Sequence[str] | None = None, k: int | None = None
) -> dict[str, Interval]:
    """(Trimmed) means by condition, over some settings (default: all), at one K (default: the largest)."""
    found = {}
    for condition in study.conditions:
        ks = study.largest(method, condition) if k is None else [k]
        cells = [cell for k in ks for cell in study.cells_of(method, k, [condition], settings)]
        found[condition] = study.cells.interval(cells, measure)
    return {condition: interval for condition, interval in found.items() if interval is not None}
