"""The report's tables: methods x conditions x K, scores by swept setting, the main method against the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mermaide_ray.report.answer import Answer, Contrast, named_conditions
from mermaide_ray.report.cells import Cell
from mermaide_ray.report.claim import ANYWHERE
from mermaide_ray.report.document_table import Table
from mermaide_ray.report.names import FLOORS, SCORE, is_privileged, is_trained, label, measure_name
from mermaide_ray.report.statistics import Interval, interquartile_mean
from mermaide_ray.report.study import Study, short, shown
from mermaide_ray.report.terminal import TABLE_MEASURES

# Longer tables are read by nobody; the rows hold everything.
MOST_LINES = 40
# A setting with more values than this was drawn at random: its values are not listed one by one.
MOST_VALUES = 12
# The terminal's, whose headings are in lines.
MEANS = {
    measure: (heading.replace("-\n", "").replace("\n", " "), form)
    for measure, (heading, form) in TABLE_MEASURES.items()
    if measure != SCORE
}
NONE = "–"


def score_tables(study: Study) -> list[Table]:
    """One table per condition: every method at every K."""
    return [_of_condition(study, condition) for condition in study.conditions]


def setting_tables(study: Study) -> list[Table]:
    """One table per swept setting, or the best ones where the values were drawn at random."""
    listed = [key for key in study.dimensions if len(study.values_of(key)) <= MOST_VALUES]
    tables = [_of_setting(study, key) for key in listed]
    if len(study.dimensions) > len(listed) or len(listed) > 1:
        tables.append(_best_settings(study))
    return tables


def contrast_table(answer: Answer) -> Table | None:
    """The side that the claim is about against each of the others; None without any other."""
    if not answer.contrasts:
        return None
    contrasts = [*answer.contrasts, *answer.by_condition]
    rows = tuple(_contrast_line(contrast) for contrast in contrasts)
    measure = measure_name(answer.measure)
    are_conditions = answer.contrasts[0].conditions == (ANYWHERE,)  # of the same principals, whatever agents they met
    paired = "paired by training seed, and by task" if are_conditions else "paired by training seed and task"
    return Table(
        "comparison",
        f"{answer.name} against the others",
        ("other", "condition", "difference [95%]", "P(improvement) [95%]", "seeds × tasks"),
        rows[:MOST_LINES],
        text=2,
        caption=f"Difference in {measure}, {paired} where both sides met the same agents: "
        "an interquartile mean of differences is not the difference of interquartile means. "
        "P(improvement): that it does better on a random task." + _cut(len(rows)),
        rules=frozenset({len(answer.contrasts)} if answer.by_condition else ()),
    )


def world_model_table(study: Study) -> Table | None:
    """The main method's predictions of the next pull: by K, beside the better floor; None without a world model."""
    ks, measures = study.cells.ks(study.main), study.cells.measures
    if not {"wm_nll_after", *FLOORS} <= measures:
        return None
    others = {
        "accuracy": "wm_accuracy_after",
        "accuracy of frequencies": "wm_accuracy_frequency",
        "calibration error": "wm_ece_after",
    }
    shown = {name: measure for name, measure in others.items() if measure in measures}
    rows = []
    for condition in study.conditions:
        losses = {k: study.cells_of(study.main, k, [condition]) for k in ks}
        last = next((losses[k] for k in reversed(ks) if study.cells.pooled(losses[k], "wm_nll_after").size), None)
        if last is None:
            continue
        floor, above = study.better_floor(last)
        means = [study.cells.pooled(losses[k], "wm_nll_after") for k in ks]
        found = [study.cells.pooled(last, measure) for measure in shown.values()]
        rows.append(
            (
                condition,
                *(f"{mean.to_numpy().mean():.3f}" if mean.size else NONE for mean in means),
                f"{study.cells.pooled(last, floor).to_numpy().mean():.3f}",
                interval_text(study.cells.interval_of(above, 0), "{:+.3f}"),
                *(f"{mean.to_numpy().mean():.3f}" if mean.size else NONE for mean in found),
                basis_text(study, last, "wm_nll_after"),
            )
        )
    if not rows:
        return None
    return Table(
        "world_model",
        f"Predicting the next pull, {label(study.main)}",
        ("condition", *(f"K = {k}" for k in ks), "floor", "less floor [95%]", *shown, "seeds × tasks"),
        tuple(rows[:MOST_LINES]),
        caption="Loss in nats per pull, after K support episodes; the floor is the better of the uniform "
        "prediction and the agent's own running frequencies (Laplace), on the same pulls. Difference to it, accuracy "
        f"and calibration error at the largest K ({largest_text(study)}); each agent has a calibration error of its "
        "own, while the calibration figure pools agents." + _cut(len(rows)),
    )


def interval_text(interval: Interval | None, form: str = "{:.2f}") -> str:
    """`0.93 [0.91, 0.95]`, or a dash."""
    return NONE if interval is None else interval.text(form)


def basis_text(study: Study, cells: Sequence[Cell], measure: str = SCORE) -> str:
    """`10 × 100`, or `10 × 96 of 100`: training seeds x tasks behind a figure."""
    seeds, tasks, met = study.cells.basis(cells, measure)
    return f"{seeds} × {tasks}" + f" of {met}" * (tasks < met)


def best_settings(study: Study) -> list[str]:
    """Settings of the main method by its score on validation agents, best first; in their order if none were met."""
    condition = ranked_on(study)
    means = {}
    for setting in map(str, study.settings.index):
        matrix = study.cells.pooled(study.at_largest(study.main, condition or study.conditions[0], [setting]))
        if matrix.size:
            means[setting] = interquartile_mean(matrix)
    return list(means) if condition is None else sorted(means, key=lambda setting: -means[setting])


def ranked_on(study: Study) -> str | None:
    """The condition that may choose a setting: one of validation agents, `validation` first; None without any."""
    found = [name for name in study.conditions if study.cells.split(name) == "validation"]
    return "validation" if "validation" in found else next(iter(found), None)


def _of_condition(study: Study, condition: str) -> Table:
    rows: list[tuple[str, ...]] = []
    rules, before = set(), 0
    for method in study.methods:
        group = 2 * is_privileged(method) + (not is_trained(method))
        if rows and group != before:
            rules.add(len(rows))
        before = group
        for k in study.cells.ks(method):
            cells = study.cells_of(method, k, [condition])
            if cells:
                rows.append((label(method), str(k), *_figures(study, cells)))
    several = len(study.settings) > 1
    over = f", over {len(study.settings)} settings" if several else ""
    caption = (
        "Score: normalised, 0 never intervening and 1 the privileged oracle; interquartile mean [95% bootstrap "
        "interval over training seeds and tasks]. The other columns are means per episode."
    )
    if several:
        caption += " A task's figures are averaged over the settings first."
    return Table(
        f"scores_{_file_name(condition)}",
        f"Scores, {study.title(condition)}{over}",
        ("method", "K", "score [95%]", *(heading for heading, _ in MEANS.values()), "seeds × tasks"),
        tuple(rows[:MOST_LINES]),
        caption=caption + _cut(len(rows)),
        rules=frozenset(rules),
    )


def _figures(study: Study, cells: Sequence[Cell]) -> Iterator[str]:
    yield interval_text(study.cells.interval(cells))
    for measure in MEANS:
        yield _mean_text(study, cells, measure)
    yield basis_text(study, cells)


def _mean_text(study: Study, cells: Sequence[Cell], measure: str) -> str:
    values = study.cells.pooled(cells, measure) if measure in study.cells.measures else None
    return NONE if values is None or not values.size else MEANS[measure][1].format(values.to_numpy().mean())


def _of_setting(study: Study, key: str) -> Table:
    rows: list[tuple[str, ...]] = []
    rules = set()
    methods = [method for method in study.methods if is_trained(method)]
    held_out = study.shift_condition
    adapts = any(len(study.cells.ks(method, held_out)) > 1 for method in methods)
    # Beside the score: a high return from cheap and from costly interventions are different results.
    beside = [measure for measure in ("success_rate", "interventions") if measure in study.cells.measures]
    for value in study.values_of(key):
        settings = [str(setting) for setting, at in study.settings[key].items() if at == value]
        if rows:
            rules.add(len(rows))
        for method in methods:
            columns = [study.at_largest(method, condition, settings) for condition in study.conditions]
            if any(columns):
                figures = [interval_text(study.cells.interval(cells)) for cells in columns]
                most, last = max(columns, key=len), study.at_largest(method, held_out, settings)
                means = [_mean_text(study, last, measure) for measure in beside]
                gains = [_gain_text(study, method, held_out, settings)] if adapts else []
                rows.append((shown(value), label(method), *figures, *gains, *means, basis_text(study, most)))
    others = [short(other) for other in study.dimensions if other != key]
    caption = f"Normalised score at the largest K ({largest_text(study)}): interquartile mean [95% bootstrap interval]."
    if adapts:
        caption += " Gain of K: the score at the largest K less that at the smallest, paired."
    if others:
        caption += f" Averaged over {', '.join(others)}."
    return Table(
        f"by_{_file_name(short(key))}",
        f"Scores by {key}",
        (
            short(key),
            "method",
            *study.conditions,
            *([f"gain of K, {held_out}"] if adapts else []),
            *(f"{MEANS[measure][0]}, {held_out}" for measure in beside),
            "seeds × tasks",
        ),
        tuple(rows[:MOST_LINES]),
        text=2,
        caption=caption + _cut(len(rows)),
        rules=frozenset(rules),
    )


def _gain_text(study: Study, method: str, condition: str, settings: Sequence[str]) -> str:
    gain = study.gain_of_k(method, condition, settings)
    return interval_text(study.cells.interval_of(gain) if gain.size else None, "{:+.3f}")


def _best_settings(study: Study) -> Table:
    ranked = best_settings(study)
    most = MOST_LINES // 2
    rows = []
    for setting in ranked[:most]:
        columns = [study.at_largest(study.main, condition, [setting]) for condition in study.conditions]
        values = [shown(study.settings.loc[setting, key]) for key in study.dimensions]
        figures = [interval_text(study.cells.interval(cells)) for cells in columns]
        rows.append((*values, *figures, basis_text(study, max(columns, key=len))))
    chosen = ranked_on(study)
    order = "not ranked: no validation agents were met" if chosen is None else f"in the order of the score on {chosen}"
    caption = f"{label(study.main)}, largest K ({largest_text(study)}); normalised score [95%], {order}."
    if len(ranked) > most:
        caption += f" The first {most} of {len(ranked)} settings; rows.parquet holds all."
    head = (*map(short, study.dimensions), *study.conditions, "seeds × tasks")
    title = "Settings" if chosen is None else "Settings, best first"
    return Table("settings", title, head, tuple(rows), text=len(study.dimensions), caption=caption)


def largest_text(study: Study) -> str:
    """`2`, or `validation 1, test 2` where conditions are scored at other K."""
    found = {condition: k for condition in study.conditions for k in study.largest(study.main, condition)}
    if len(set(found.values())) == 1:
        return str(next(iter(found.values())))
    return ", ".join(f"{condition} {k}" for condition, k in found.items())


def _contrast_line(contrast: Contrast) -> tuple[str, ...]:
    return (
        contrast.other,
        named_conditions(contrast.conditions, " + "),
        interval_text(contrast.difference, "{:+.3f}"),
        interval_text(contrast.probability),
        f"{contrast.seeds} × {contrast.tasks}",
    )


def _cut(lines: int) -> str:
    return f" The first {MOST_LINES} of {lines} lines; rows.parquet holds all." if lines > MOST_LINES else ""


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)
