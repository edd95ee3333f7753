"""Charts over what a sweep varied: a measure over a numeric setting, and scores at the crossings of two settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from mermaide_ray.report.charts import fitted
from mermaide_ray.report.drawing import draw_error_bars, draw_legend, finish, in_lines, panels, styles_of
from mermaide_ray.report.names import label
from mermaide_ray.report.statistics import Interval

Array = NDArray[np.float64]
# From this ratio of the largest to the smallest value on, a setting is drawn on a logarithmic axis.
LOG_RATIO = 20
SMALL = 0.01
LOWEST_COLOUR = -0.25
# Letters side by side in a panel.
PANEL_LETTERS = 36


def setting_curves(
    key: str,
    curves: Mapping[str, Mapping[str, Mapping[float, Interval]]],
    measure: str,
    methods: Sequence[str],
    *,
    note: str = "",
) -> Figure:
    """A measure over a numeric setting, per method; a panel per condition. Intervals without width are points alone.

    Args:
        key: What the setting is called.
        curves: Condition -> method -> value of the setting -> measure.
        measure: What it is called.
        methods: All methods of the study, in the order that gives them their colours.
        note: Small print below the figure.
    """
    figure, axes = panels(1, len(curves), note, sharey=True)
    styles = styles_of(methods)
    values = sorted({value for found in curves.values() for points in found.values() for value in points})
    for axis, (condition, found) in zip(axes[0], curves.items(), strict=True):
        for method, points in found.items():
            ordered = {value: points[value] for value in sorted(points)}
            if all(point.low == point.high for point in ordered.values()):
                at = [point.value for point in ordered.values()]
                style = {"color": styles[method]["color"], "marker": styles[method]["marker"]}
                axis.plot(list(ordered), at, linestyle="", markersize=4, alpha=0.8, label=label(method), **style)
            else:
                draw_error_bars(axis, label(method), ordered, styles[method])
        axis.set_title(in_lines(condition))
        axis.set_xlabel(key)
        _scale(axis, values)
    axes[0][0].set_ylabel(measure)
    finish(figure)
    draw_legend(figure, axes, methods)
    return figure


def shift_matrix(
    matrices: Mapping[str, Array],
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    *,
    note: str = "",
) -> Figure:
    """Scores at the crossings of two settings (or a setting and the conditions), a panel per method, values written in.

    Args:
        matrices: Method -> scores [rows, columns], NaN where there is none.
        rows: What the rows are, and their labels.
        columns: What the columns are, and their labels.
        note: Small print below the figure.
    """
    figure, axes = panels(1, len(matrices), note, sharey=True)
    height = 1.6 + 0.34 * len(rows[1])
    # In lines where the words fit into a column, else upright.
    width = PANEL_LETTERS // len(columns[1])
    turned = any(len(word) > width for name in columns[1] for word in name.split())
    names = [fitted(name) if turned else "\n".join(wrap(name, width)) for name in columns[1]]
    lines = 0.45 * max(map(len, names)) if turned else max(name.count("\n") for name in names)
    figure.set_figheight(height + 0.14 * lines)
    figure.set_figwidth(max(figure.get_figwidth(), len(matrices) * (0.5 * len(columns[1]) + 0.6) + 2.2))
    every = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices.values()])
    # Where the oracle gains next to nothing, scores far below 0 would take all colours from the rest.
    high = float(every.max())
    low = min(max(float(every.min()), LOWEST_COLOUR), high)
    image = None
    for axis, (method, matrix) in zip(axes[0], matrices.items(), strict=True):
        image = axis.imshow(matrix, vmin=low, vmax=high, cmap="cividis", aspect="auto", interpolation="nearest")
        axis.grid(False)
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                # White on the dark half of the colours, black on the light one.
                dark = value < low + 0.55 * (high - low)
                shown = f"{round(value, 2) + 0.0:.2f}"  # never -0.00
                axis.text(column, row, shown, ha="center", va="center", color="w" if dark else "k", fontsize=8)
        axis.set_xticks(range(len(names)), names, rotation=90 if turned else 0)
        axis.set_yticks(range(len(rows[1])), [fitted(name) for name in rows[1]])
        axis.set_title(label(method))
        axis.set_xlabel(columns[0])
    axes[0][0].set_ylabel(rows[0])
    assert image is not None
    figure.colorbar(image, ax=axes.ravel().tolist(), label="normalised score", shrink=0.9)
    finish(figure)
    return figure


def _scale(axis: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the values span decades; each value ticked where they are few."""
    logarithmic = values[0] > 0 and values[-1] / values[0] >= LOG_RATIO
    if logarithmic:
        axis.set_xscale("log")
    if len(values) <= 6:
        axis.set_xticks(values, [_tick(value) for value in values])
        axis.xaxis.set_minor_formatter(NullFormatter())
    elif not logarithmic:
        axis.xaxis.set_major_formatter(ScalarFormatter())


def _tick(value: float) -> str:
    """`1e-4`: shorter than 0.0001, and neighbours must not touch."""
    if value and abs(value) < SMALL:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"
