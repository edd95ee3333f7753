"""What a run ends with in the terminal: scores by condition, family, method and K; its method against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mermaide_ray.report.cells import Cell, Cells, trim_of
from mermaide_ray.report.comparison import compare
from mermaide_ray.report.names import SCORE, SEEDS_FOR_AN_INTERVAL, SPLIT_TITLES, is_privileged, label
from mermaide_ray.report.statistics import Interval

ALL_FAMILIES = "all"
# Of tables of scores: column of the rows -> (heading, format).
TABLE_MEASURES = {
    "return": ("return", "{:.1f}"),
    "success_rate": ("success\nrate", "{:.2f}"),
    "interventions": ("inter-\nventions", "{:.1f}"),
    "cost": ("cost", "{:.1f}"),
    "support_return": ("support\nreturn", "{:.1f}"),
    SCORE: ("normalised score\n[95% interval]", "{:.2f}"),
}
# What 100 columns leave; "margin_oracle (privileged)" fits.
METHOD_WIDTH = 26


def print_scores(cells: Cells, console: Console, method: str | None = None) -> None:
    """Prints what a run came to, with `method` how that one stands against the others, and what had to be left out."""
    render_summary(summary(cells), console)
    if method is not None:
        render_comparisons(comparisons(cells, method), method, console)
    for note in cells.left_out:
        console.print(Text(note, style="dim"))


def summary(cells: Cells) -> pd.DataFrame:
    """Aggregates with 95% intervals per condition, family ("all" first), method and K.

    Returns:
        Columns condition, family, method, k, privileged, seeds, tasks, scored_tasks (those with a normalised score),
        and per measure m of `TABLE_MEASURES`: m, m_low, m_high, as `Cells.interval`; NaN where a method has no such
        measure. Conditions and methods in the order of the rows, privileged methods last.
    """
    families = sorted(cells.named("family"))
    first, *single = [ALL_FAMILIES, *families] if len(families) > 1 else families
    lines = []
    for condition in cells.named("condition"):
        for family in (first, *single):
            for method in sorted(cells.named("method"), key=is_privileged):
                for k in cells.ks(method, condition):
                    measured = _measured(cells, Cell(method, "", condition, k), family)
                    if family == first or measured["tasks"]:
                        line = {"condition": condition, "family": family, "method": method, "k": k}
                        lines.append({**line, "privileged": is_privileged(method), **measured})
    return pd.DataFrame(lines)


def _measured(cells: Cells, cell: Cell, family: str) -> dict[str, float]:
    found = {}
    for measure in TABLE_MEASURES:
        values = cells.pooled([cell], measure)
        found[measure] = values.loc[:, [family in (ALL_FAMILIES, name) for name in cells.families(values.columns)]]
    scores, returns = found[SCORE], found["return"]
    measured: dict[str, float] = {"seeds": len(scores) or len(returns)}
    measured |= {"tasks": returns.shape[1], "scored_tasks": scores.shape[1]}
    for measure, values in found.items():
        measured |= _columns(measure, cells.interval_of(values, trim_of(measure)) if values.size else None)
    return measured


def comparisons(cells: Cells, method: str) -> pd.DataFrame:
    """A method against every unprivileged other one, and against itself at its smallest K.

    Args:
        cells: Those of a run.
        method: The method; compared at each of its K with the others at the same K, or the largest below.

    Returns:
        Columns condition, k, other, other_k, is_paired, and for difference (of normalised scores) and probability (that
        the method does better on a task), as `compare`: value, low, high; NaN where there is none.
    """
    lines = []
    for condition in cells.named("condition"):
        others = [name for name in cells.named("method") if name != method and not is_privileged(name)]
        scored = [k for k in cells.ks(method, condition) if cells.pooled([Cell(method, "", condition, k)]).size]
        for k in scored:
            rivals = {name: cells.k_beside(name, k, [condition]) for name in others if cells.ks(name, condition)}
            itself = {method: scored[0]} if k != scored[0] else {}
            for other, other_k in (itself | rivals).items():
                one, two = Cell(method, "", condition, k), Cell(other, "", condition, other_k)
                found = compare(cells, [one], [two], between=f"{method} against {other}, {condition}, K = {k}")
                line = {"condition": condition, "k": k, "other": other, "other_k": other_k}
                line |= {"is_paired": found is None or found.is_paired}
                line |= _columns("difference", found and found.difference)
                lines.append(line | _columns("probability", found and found.probability))
    # Without a scored task there are no lines, but still a table to ask for its conditions.
    return pd.DataFrame(lines) if lines else pd.DataFrame(columns=["condition"])


def render_summary(summary: pd.DataFrame, console: Console) -> None:
    """Prints one table per condition, a section per family, within 100 columns."""
    for condition, of_condition in summary.groupby("condition", sort=False):
        title = SPLIT_TITLES.get(str(condition), str(condition))
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.show_edge, table.padding, table.collapse_padding = False, (0, 1), True
        table.add_column("method", overflow="fold", max_width=METHOD_WIDTH)
        for heading in ("K", *(heading for heading, _ in TABLE_MEASURES.values()), "seeds\nx tasks"):
            table.add_column(heading, justify="right", no_wrap=True)
        for family, of_family in of_condition.groupby("family", sort=False):
            table.add_row(Text(_family_title(str(family)), style="bold"))
            for cells in _lines(of_family):
                # As Text: brackets in a method's name are no markup.
                table.add_row(*map(Text, cells))
            table.add_section()
        console.print(table)
        console.print()
    console.print(Text(caption(summary), style="dim"))


def render_comparisons(compared: pd.DataFrame, method: str, console: Console) -> None:
    """Prints one table per condition."""
    for condition, of_condition in compared.groupby("condition", sort=False):
        title = f"{method} against, {SPLIT_TITLES.get(str(condition), condition)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("other", "K / its K", "difference in score [95%]", "probability of improvement [95%]"):
            table.add_column(heading, justify="left" if heading == "other" else "right", no_wrap=True)
        for line in of_condition.to_dict("records"):
            difference = _interval(line, "difference", "{:+.3f}")
            probability = _interval(line, "probability", "{:.2f}")
            table.add_row(*map(Text, (str(line["other"]), f"{line['k']} / {line['other_k']}", difference, probability)))
        console.print(table)
        apart = of_condition.loc[~of_condition["is_paired"].astype(bool), "other"].unique()
        if len(apart):
            told = f"Not paired, since they have other training seeds or played another game: {', '.join(apart)}."
            console.print(Text(told, style="dim"))
        console.print()


def caption(summary: pd.DataFrame) -> str:
    """What the numbers are and how far the intervals can be trusted."""
    text = (
        "Means per episode over training seeds x tasks; normalised score: interquartile mean [95% bootstrap interval "
        "over training seeds and tasks]. Cost: before environment.cost_weight. Support return: per adaptation episode."
    )
    if summary["privileged"].any():
        text += " Privileged: sees what no principal may see; a reference, not a rival."
    groups = summary.groupby(["condition", "family"])
    most = groups["scored_tasks"].transform("max")
    unscored = int((groups["tasks"].transform("max") - most).max())
    if unscored:
        text += f" Up to {unscored} tasks have no normalised score: the oracle gains nothing there."
    if fewer := list(summary.loc[summary["scored_tasks"] < most, "method"].unique()):
        text += f" Without a score on some tasks on which others have one: {', '.join(fewer)}."
    seeds = summary.loc[~summary["privileged"], "seeds"]
    if seeds.eq(1).any():
        text += " One seed: the interval is over tasks only; of other training runs it says nothing."
    if seeds.between(2, SEEDS_FOR_AN_INTERVAL - 1).any():
        text += f" Fewer than {SEEDS_FOR_AN_INTERVAL} training seeds: the interval is too narrow."
    return text


def _lines(group: pd.DataFrame) -> Iterator[list[str]]:
    """Cells of each line of one table."""
    for line in group.to_dict("records"):
        cells = [label(str(line["method"])), str(line["k"])]
        for name, (_, form) in TABLE_MEASURES.items():
            mean = "-" if pd.isna(line[name]) else form.format(line[name])
            cells.append(_interval(line, name, form) if name == SCORE else mean)
        yield [*cells, f"{line['seeds']} x {line['tasks']}"]


def _family_title(family: str) -> str:
    return "all families" if family == ALL_FAMILIES else family


def _columns(name: str, interval: Interval | None) -> dict[str, float]:
    value, low, high = (interval.value, interval.low, interval.high) if interval else [float("nan")] * 3
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _interval(line: Mapping[Any, Any], name: str, form: str) -> str:
    interval = Interval(line[name], line[f"{name}_low"], line[f"{name}_high"])
    return "-" if pd.isna(interval.value) else interval.text(form)
