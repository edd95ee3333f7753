"""One method against each of the others: paired differences and the probability of improvement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mermaide_ray.report.names import SCORE, SPLIT_TITLES, is_privileged
from mermaide_ray.report.statistics import Interval, paired, paired_difference, probability_of_improvement, score_matrix
from mermaide_ray.report.table import has_score


def comparisons(rows: pd.DataFrame, method: str, *, seed: int = 0) -> pd.DataFrame:
    """A method against every unprivileged other one, and against itself at its smallest K.

    Args:
        rows: Rows of rows.parquet.
        method: The method; compared at each of its K with the others at the same K, or at their only one.
        seed: Seed of the bootstrap.

    Returns:
        Columns split, k, other, other_k, and for difference (of normalised scores, interquartile mean over tasks and
        training seeds, paired) and probability (that the method does better on a task): value, low, high.
    """
    scored = rows[has_score(rows)]
    lines = []
    for split, of_split in scored.groupby("split", sort=False):
        matrices: dict[tuple[str, int], pd.DataFrame] = {
            (str(name), int(str(k))): score_matrix(group, SCORE)
            for (name, k), group in of_split.groupby(["method", "k"], sort=False)
        }
        for k in sorted(k for name, k in matrices if name == method):
            for name, other_k in _rivals(list(matrices), method, k):
                one, other = paired(matrices[method, k], matrices[name, other_k])
                difference = paired_difference(one, other, seed=seed)
                probability = probability_of_improvement(one, other, seed=seed)
                line = {"split": split, "k": k, "other": name, "other_k": other_k}
                lines.append(line | _columns("difference", difference) | _columns("probability", probability))
    # Without a scored task there are no lines, but still a table to ask for its splits.
    return pd.DataFrame(lines) if lines else pd.DataFrame(columns=["split", "k", "other", "other_k"])


def render_comparisons(compared: pd.DataFrame, method: str, console: Console) -> None:
    """Prints one table per split."""
    for split, of_split in compared.groupby("split", sort=False):
        title = f"{method} against, {SPLIT_TITLES.get(str(split), split)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("other", "K / its K", "difference in score [95%]", "probability of improvement [95%]"):
            table.add_column(heading, justify="left" if heading == "other" else "right", no_wrap=True)
        for line in of_split.to_dict("records"):
            difference = _interval(line, "difference", "{:+.3f}")
            probability = _interval(line, "probability", "{:.2f}")
            table.add_row(*map(Text, (str(line["other"]), f"{line['k']} / {line['other_k']}", difference, probability)))
        console.print(table)
        console.print()


def _rivals(known: list[tuple[str, int]], method: str, k: int) -> Iterator[tuple[str, int]]:
    """(method, K) of all that stand against `method` at `k`."""
    smallest = min(other_k for name, other_k in known if name == method)
    if k != smallest:
        yield method, smallest
    for name in dict.fromkeys(name for name, _ in known):
        if name == method or is_privileged(name):
            continue
        ks = [other_k for other, other_k in known if other == name]
        yield name, k if k in ks else min(ks)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _interval(line: Mapping[Any, Any], name: str, form: str) -> str:
    return Interval(line[name], line[f"{name}_low"], line[f"{name}_high"]).text(form)
