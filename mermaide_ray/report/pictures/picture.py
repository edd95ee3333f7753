"""A picture of a study: a figure with its words; and what all pictures say alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.figure import Figure

from mermaide_ray.report.cells import Cell
from mermaide_ray.report.names import SCORE, label
from mermaide_ray.report.statistics import Interval, interquartile_mean
from mermaide_ray.report.study import Study

Value = TypeVar("Value")

# More panels side by side can't be read; more curves in one can't be told apart.
MOST_PANELS = 3
MOST_METHODS = 8
MOST_FAMILIES = 4
# The ends of the normalised scale, the upper one first.
SCALE_ENDS = ("oracle", "never")


@dataclass(frozen=True)
class Picture:
    """A figure and its words.

    Attributes:
        name: Of its files.
        title: A heading.
        caption: What is drawn and how to read it.
        alt: What it shows, for those who can't see it.
        figure: The figure.
        brightness_matters: Whether bright means more: dark mode must then leave the colours as they are.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    brightness_matters: bool = False


def small_print(study: Study, text: str) -> str:
    """What stands below every figure: what it rests on, and the commit."""
    commits = dict.fromkeys(str(source.provenance.get("commit") or "")[:10] for source in study.sources)
    told = ", ".join(filter(None, commits))
    return text + (f" Commit {told}." if told else "")


def panels_of(study: Study) -> list[str]:
    """Conditions to draw: test first if not all fit."""
    wanted = study.conditions
    if len(wanted) <= MOST_PANELS:
        return wanted
    first = [name for name in ("validation", "test") if name in wanted]
    return [*first, *(name for name in wanted if name not in first)][:MOST_PANELS]


def titled(study: Study, found: Mapping[str, Value]) -> dict[str, Value]:
    """What there is of each condition, by the condition's title."""
    return {study.title(condition): value for condition, value in found.items()}


def left_out(study: Study) -> str:
    """A sentence, where some conditions are not drawn."""
    missing = len(study.conditions) - MOST_PANELS
    return f" {missing} further conditions are in the tables." if missing > 0 else ""


def basis(study: Study, measure: str = SCORE) -> str:
    """What the main method's figures rest on: 5 training seeds × 20 tasks per condition (mermaide; fewest …)."""
    every = {name: study.cells.basis(study.at_largest(study.main, name), measure) for name in study.conditions}
    scored = {name: found for name, found in every.items() if found[2]}
    seeds, tasks = (sorted({found[at] for found in scored.values() if found[1]}) for at in (0, 2))
    told = [label(study.main) + (f", {len(study.settings)} settings" if len(study.settings) > 1 else "")]
    fewest = min(scored, key=lambda name: scored[name][1], default="")
    if fewest and scored[fewest][1] < scored[fewest][2]:
        told.append(f"fewest with a {'score' if measure == SCORE else 'value'}: {scored[fewest][1]}, {fewest}")
    per = " per condition" if len(study.conditions) > 1 else ""
    return f"{_span(seeds)} training seed{'s' * (seeds != [1])} × {_span(tasks)} tasks{per} ({'; '.join(told)})."


def _span(counts: Sequence[int]) -> str:
    """`5`, or `3 to 5`."""
    return " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:])))) or "0"


def mean_of(study: Study, cells: Sequence[Cell]) -> Interval | None:
    """Interquartile mean without an interval: cheap, for many settings."""
    matrix = study.cells.pooled(cells)
    if not matrix.size:
        return None
    value = interquartile_mean(matrix)
    return Interval(value, value, value)
