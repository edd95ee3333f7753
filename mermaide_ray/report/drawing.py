"""How every figure looks: colours, panels, curves, error bars, legend, small print; and how it is saved.

Nothing here knows what is drawn, or leaves a trace in matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mermaide_ray.disk import whole_file
from mermaide_ray.errors import RunFault
from mermaide_ray.metrics import STEPS
from mermaide_ray.report.names import is_privileged, label
from mermaide_ray.report.statistics import Interval, bootstrap_interval

# Okabe and Ito's palette for all kinds of colour vision, without the yellow that white paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PRIVILEGED = ("#000000", "#777777")
MARKERS = "osD^vPX*"
DOTS_PER_INCH = 150
NOTE_LETTERS_PER_INCH = 18
# A curve with one point per iteration is averaged down to this many, so that its trend can be seen.
MOST_POINTS = 100
# Markers on a denser curve would hide it.
MOST_MARKERS = 25

Style = dict[str, Any]
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def panels(
    rows: int, columns: int, note: str, sharey: bool | Literal["row"], heights: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """A figure with an array of axes [rows, columns] and small print below."""
    tall = 2.4 * sum(heights or [1.2] * rows) / (heights[0] if heights else 1)
    figure = Figure(figsize=(3.2 * columns + 1.6, tall + 0.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey, height_ratios=heights)
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
    lines = wrap(note, int(NOTE_LETTERS_PER_INCH * figure.get_figwidth()))
    figure.supxlabel("\n".join(lines), fontsize=7, color="0.35", x=0.01, ha="left")
    return figure, axes


def finish(figure: Figure) -> None:
    """Type sizes that can be read in print, and tell headings from labels from ticks."""
    for axis in figure.axes:
        axis.title.set_fontsize(10)
        axis.xaxis.label.set_fontsize(9)
        axis.yaxis.label.set_fontsize(9)
        axis.tick_params(labelsize=8)


def styles_of(methods: Sequence[str]) -> dict[str, Style]:
    """Colour, marker and dashes of each method; `flat` are the dashes of a line across.

    Privileged methods are black. Beyond the palette, colours come again with another marker and other dashes.
    """
    privileged = [method for method in methods if is_privileged(method)]
    others = [method for method in methods if not is_privileged(method)]
    styles = {}
    for group, palette in ((others, PALETTE), (privileged, PRIVILEGED)):
        for index, method in enumerate(group):
            again = index // len(palette)
            styles[method] = {
                "color": palette[index % len(palette)],
                "marker": MARKERS[index % len(MARKERS)],
                "linestyle": ("-", "--", ":")[again % 3],
                "flat": ("--", "-.", ":")[(again + (group is privileged)) % 3],
            }
    return styles


def thinned(frame: pd.DataFrame, key: str) -> Points:
    """Environment steps and values, float [points] each, averaged over neighbours down to MOST_POINTS."""
    known = frame[[STEPS, key]].dropna().to_numpy(dtype=np.float64)
    parts = np.array_split(known, min(len(known), MOST_POINTS))
    means = np.stack([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]


def on_common_steps(curves: Sequence[Points]) -> Points:
    """Curves where all of them have been: environment steps, float [points], and values, float [curves, points].

    The steps are the first curve's; between those of another its values are interpolated.
    """
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    steps = curves[0][0]
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.stack([np.interp(steps, *points) for points in curves])


def draw_curve(axis: Axes, name: str, seeds: Sequence[Points], style: Style, seed: int) -> None:
    """The mean over training seeds where all of them have been, with a 95% band if there are several."""
    steps, values = on_common_steps(seeds)
    (line,) = axis.plot(steps, values.mean(axis=0), label=name, color=style["color"], linestyle=style["linestyle"])
    if len(steps) <= MOST_MARKERS:
        line.set(marker=style["marker"], markersize=4)
    if len(seeds) > 1:
        band = [bootstrap_interval(values[:, [point]], seed=seed, trim=0) for point in range(len(steps))]
        low, high = [interval.low for interval in band], [interval.high for interval in band]
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def draw_error_bars(axis: Axes, name: str, points: Mapping[float, Interval], style: Style) -> None:
    """A line through points with error bars."""
    values, errors = values_and_errors(list(points.values()))
    drawn = {key: style[key] for key in ("color", "marker", "linestyle")}
    axis.errorbar(list(points), values, yerr=errors, label=name, linewidth=1.4, markersize=5, capsize=2, **drawn)


def in_lines(title: str) -> str:
    """A title in two lines, where it has a part in brackets."""
    return title.replace(" (", "\n(")


def values_and_errors(intervals: Sequence[Interval]) -> Points:
    """Values, float [N], and how far their error bars reach below and above, float [2, N]."""
    values = np.array([interval.value for interval in intervals])
    return values, np.abs(np.array([[interval.low, interval.high] for interval in intervals]) - values[:, None]).T


def share_limits(axes: Sequence[Axes]) -> None:
    """The same y range for panels that are to be compared."""
    limits = [axis.get_ylim() for axis in axes]
    for axis in axes:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def draw_legend(figure: Figure, axes: Any, methods: Sequence[str]) -> None:
    """One legend for all panels, to their right, in the order of `methods`, privileged ones last."""
    handles: dict[str, Artist] = {}
    for axis in axes.ravel():
        # The last panel that shows a method decides: with markers, where there are any.
        found, names = axis.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    names = [label(method) for method in sorted(methods, key=is_privileged) if label(method) in handles]
    figure.legend([handles[name] for name in names], names, loc="outside right upper", frameon=False, fontsize=8)


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a picture, in the format that the path's suffix names, whole or not at all.

    The same figure gives the same bytes, and text in a PDF is text in a font that journals accept (TrueType).
    """
    kind = path.suffix.removeprefix(".")
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    try:
        with whole_file(path) as unfinished, rc_context({"pdf.fonttype": 42, "svg.hashsalt": path.stem}):
            figure.savefig(unfinished, format=kind, metadata=undated)
    except OSError as error:
        raise RunFault(f"figures must be writable, but {path} is not: {error.strerror or error}") from None
    return path
