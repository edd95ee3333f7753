"""The final table: rows of rows.parquet -> one line per split, family, method and K, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mermaide_ray.report.names import FEW_SEEDS, SCORE, SPLIT_TITLES, is_privileged, label
from mermaide_ray.report.statistics import QUARTILE, RESAMPLES, bootstrap_interval, score_matrix

ALL_FAMILIES = "all"
# Column of the rows -> (heading, format); all but the normalised score are plain means, as the units suggest.
MEASURES = {
    "return": ("return", "{:.1f}"),
    "success_rate": ("success\nrate", "{:.2f}"),
    "interventions": ("inter-\nventions", "{:.1f}"),
    "cost": ("cost", "{:.1f}"),
    "support_return": ("support\nreturn", "{:.1f}"),
    SCORE: ("normalised score\n[95% interval]", "{:.2f}"),
}
KEYS = ["split", "family", "method", "k"]
# What 100 columns leave; "margin_oracle (privileged)" fits.
METHOD_WIDTH = 26


def has_score(rows: pd.DataFrame) -> pd.Series[bool]:
    """Per row, whether its task has a normalised score: where the oracle gains nothing either, no method has one."""
    methods_scored: pd.Series[int] = rows.groupby(["split", "family", "task"])[SCORE].transform("count")
    return methods_scored > 0


def summary(rows: pd.DataFrame, *, seed: int = 0, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Aggregates with 95% intervals per split, family ("all" first), method and K.

    Args:
        rows: Rows of rows.parquet: one per method x training seed x task x K.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.

    Returns:
        Columns split, family, method, k, privileged, seeds, tasks, scored_tasks (those with a normalised score), and
        per measure m of `MEASURES`: m, m_low, m_high.
        The normalised score is an interquartile mean, everything else a mean; NaN where a method has no such measure.
        Splits and methods in the order of the rows, privileged methods last.
    """
    rows = rows.assign(has_score=has_score(rows))
    families = sorted(rows["family"].unique())
    groups = [ALL_FAMILIES, *families] if len(families) > 1 else families
    methods = sorted(rows["method"].unique(), key=is_privileged)
    lines = []
    for split in rows["split"].unique():
        for family in groups:
            for method in methods:
                chosen = rows[(rows["split"] == split) & (rows["method"] == method)]
                if family != ALL_FAMILIES:
                    chosen = chosen[chosen["family"] == family]
                for k, of_k in chosen.groupby("k"):
                    key = dict(zip(KEYS, (split, family, method, k), strict=True))
                    lines.append({**key, "privileged": is_privileged(method), **_measures(of_k, seed, resamples)})
    return pd.DataFrame(lines)


def _measures(rows: pd.DataFrame, seed: int, resamples: int) -> dict[str, float]:
    with_score = rows[rows["has_score"]]
    measured: dict[str, float] = {"seeds": rows["seed"].nunique(), "tasks": _count_tasks(rows)}
    measured["scored_tasks"] = _count_tasks(with_score)
    for name in MEASURES:
        chosen, trim = (with_score, QUARTILE) if name == SCORE else (rows, 0.0)
        if chosen[name].isna().all():
            measured |= {name: float("nan"), f"{name}_low": float("nan"), f"{name}_high": float("nan")}
            continue
        matrix = score_matrix(chosen, name).to_numpy()
        interval = bootstrap_interval(matrix, seed=seed, trim=trim, resamples=resamples)
        measured |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return measured


def _count_tasks(rows: pd.DataFrame) -> int:
    return len(rows[["family", "task"]].drop_duplicates())


def render_terminal(summary: pd.DataFrame, console: Console) -> None:
    """Prints one table per split, a section per family, within 100 columns."""
    for split, of_split in summary.groupby("split", sort=False):
        title = SPLIT_TITLES.get(str(split), str(split))
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.show_edge, table.padding, table.collapse_padding = False, (0, 1), True
        table.add_column("method", overflow="fold", max_width=METHOD_WIDTH)
        for heading in ("K", *(heading for heading, _ in MEASURES.values()), "seeds\nx tasks"):
            table.add_column(heading, justify="right", no_wrap=True)
        for family, of_family in of_split.groupby("family", sort=False):
            table.add_row(Text(_family_title(str(family)), style="bold"))
            for cells in _lines(of_family):
                # As Text: brackets in a method's name are no markup.
                table.add_row(*map(Text, cells))
            table.add_section()
        console.print(table)
        console.print()
    console.print(Text(caption(summary), style="dim"))


def caption(summary: pd.DataFrame) -> str:
    """What the numbers are and how far the intervals can be trusted."""
    text = (
        "Means per episode over training seeds x tasks; normalised score: interquartile mean [95% bootstrap interval "
        "over training seeds and tasks]. Cost: before environment.cost_weight. Support return: per adaptation episode."
    )
    if summary["privileged"].any():
        text += " Privileged: sees what no principal may see; a reference, not a rival."
    unscored = int((summary["tasks"] - summary["scored_tasks"]).max())
    if unscored:
        text += f" Up to {unscored} tasks have no normalised score: the oracle gains nothing there."
    seeds = summary.loc[~summary["privileged"], "seeds"]
    if seeds.eq(1).any():
        text += " One seed: the interval is over tasks only; of other training runs it says nothing."
    if seeds.between(2, FEW_SEEDS - 1).any():
        text += f" Fewer than {FEW_SEEDS} training seeds: the interval is too narrow."
    return text


def _lines(group: pd.DataFrame) -> Iterator[list[str]]:
    """Cells of each line of one table."""
    for line in group.to_dict("records"):
        cells = [label(str(line["method"])), str(line["k"])]
        for name, (_, form) in MEASURES.items():
            cells.append("-" if pd.isna(line[name]) else form.format(line[name]))
            if name == SCORE and not pd.isna(line[name]):
                cells[-1] += f" [{form.format(line[f'{name}_low'])}, {form.format(line[f'{name}_high'])}]"
        yield [*cells, f"{line['seeds']} x {line['tasks']}"]


def _family_title(family: str) -> str:
    return "all families" if family == ALL_FAMILIES else family
