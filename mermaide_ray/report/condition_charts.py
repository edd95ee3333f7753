"""A chart over many conditions: a row per measure, above each condition the points of every series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mermaide_ray.report.charts import fitted
from mermaide_ray.report.drawing import MARKERS, PALETTE, Style, finish, panels, values_and_errors
from mermaide_ray.report.statistics import Interval

# Of the width between two conditions, what their points fill.
SPREAD = 0.64
FLOOR_STYLES: tuple[Style, ...] = ({"color": "#000000", "linestyle": "-"}, {"color": "#777777", "linestyle": ":"})


@dataclass(frozen=True)
class Row:
    """One measure over the conditions.

    Attributes:
        measure: What it is called.
        series: Series -> condition -> measure.
        floors: What a series is to be compared with, likewise; drawn as a short line, without intervals.
        zero: Whether 0 is worth a line.
    """

    measure: str
    series: Mapping[str, Mapping[str, Interval]]
    floors: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    zero: bool = False


def condition_rows(
    rows: Sequence[Row], conditions: Sequence[str], styles: Mapping[str, Style], *, note: str = ""
) -> Figure:
    """Points with 95% intervals above each condition, side by side; series of one name look alike in all rows.

    Args:
        rows: The measures, from the top.
        conditions: In their order.
        styles: Series -> how it looks; one that is not there takes the palette's next colour.
        note: Small print below the figure.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.series))
    floors = list(dict.fromkeys(name for row in rows for name in row.floors))
    unstyled = [name for name in names if name not in styles]
    own = {
        name: {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
        for index, name in enumerate(unstyled, start=len(set(names) & styles.keys()))
    } | {name: {key: style[key] for key in ("color", "marker")} for name, style in styles.items()}
    figure, axes = panels(len(rows), 1, note, sharey=False)
    figure.set_size_inches(2.6 + 0.7 * len(conditions), 1.5 + 1.75 * len(rows))
    for axis, row in zip(axes[:, 0], rows, strict=True):
        for index, name in enumerate(row.series):
            offset = (index - (len(row.series) - 1) / 2) * SPREAD / max(len(row.series), 2)
            _points(axis, name, row.series[name], conditions, offset, own[name])
        for index, name in enumerate(floors):
            _levels(axis, name, row.floors.get(name, {}), conditions, FLOOR_STYLES[index % len(FLOOR_STYLES)])
        if row.zero:
            axis.axhline(0, color="0.3", linewidth=1)
        axis.set_ylabel(row.measure)
        axis.set_xlim(-0.5, len(conditions) - 0.5)
        axis.set_xticks(range(len(conditions)), [""] * len(conditions))
    labels = [fitted(condition) for condition in conditions]
    axes[-1][0].set_xticks(range(len(conditions)), labels, rotation=40, ha="right", rotation_mode="anchor")
    finish(figure)
    handles: dict[str, Artist] = {}
    for axis in axes[:, 0]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    shown = [name for name in (*names, *floors) if name in handles]
    figure.legend([handles[name] for name in shown], shown, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _points(
    axis: Axes, name: str, found: Mapping[str, Interval], conditions: Sequence[str], offset: float, style: Style
) -> None:
    at = [place for place, condition in enumerate(conditions) if condition in found]
    if not at:
        return
    values, errors = values_and_errors([found[conditions[place]] for place in at])
    places = np.array(at) + offset
    axis.errorbar(places, values, yerr=errors, linestyle="", markersize=4.5, capsize=2, label=name, **style)


def _levels(axis: Axes, name: str, found: Mapping[str, Interval], conditions: Sequence[str], style: Style) -> None:
    for place, condition in enumerate(conditions):
        if condition in found:
            ends = [place - SPREAD / 2, place + SPREAD / 2]
            axis.plot(ends, [found[condition].value] * 2, linewidth=1.5, label=name, zorder=1, **style)
