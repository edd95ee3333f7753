"""Charts of a study: performance profiles, contrasts, cost, gains, world-model losses.

Each is a function from numbers to a matplotlib `Figure`; what is drawn of a study, and in which words it is described,
is decided in `pictures/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mermaide_ray.report.answer import Contrast
from mermaide_ray.report.drawing import (
    MARKERS,
    PALETTE,
    Style,
    draw_legend,
    finish,
    in_lines,
    panels,
    styles_of,
    values_and_errors,
)
from mermaide_ray.report.names import is_privileged, label, measure_name
from mermaide_ray.report.statistics import Interval

Array = NDArray[np.float64]
BINS = 8
LETTERS = 26
# Differences further out than this many times the reach of the nearer half would press that into a corner. So does the
# one to never intervening, which is the score itself.
FAR = 4


@dataclass(frozen=True)
class Point:
    """What one method costs and reaches, at one K or with one value of a setting.

    Attributes:
        method: Which.
        at: Its place on the method's line: K, or the setting's value.
        cost: Per episode.
        success: Share of pulls on the target.
        is_open: Whether to draw it open.
    """

    method: str
    at: float
    cost: float
    success: float
    is_open: bool = False


def performance_profiles(
    profiles: Mapping[str, Mapping[str, tuple[Array, Array, Array]]],
    thresholds: Array,
    methods: Sequence[str],
    *,
    note: str = "",
) -> Figure:
    """Share of runs x tasks that score above tau, with pointwise 95% bands; a panel per condition.

    Args:
        profiles: Condition -> method -> share, lower and upper end, [N] each.
        thresholds: tau, [N].
        methods: All methods of the study, in the order that gives them their colours.
        note: Small print below the figure.
    """
    figure, axes = panels(1, len(profiles), note, sharey=True)
    styles = styles_of(methods)
    for axis, (condition, found) in zip(axes[0], profiles.items(), strict=True):
        for method, (share, lower, upper) in found.items():
            style = styles[method]
            axis.plot(thresholds, share, color=style["color"], linestyle=style["linestyle"], label=label(method))
            if not is_privileged(method):
                axis.fill_between(thresholds, lower, upper, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_title(in_lines(condition))
        axis.set_xlabel("normalised score τ")
        axis.set_ylim(0, 1.02)
    axes[0][0].set_ylabel("share of runs × tasks above τ")
    finish(figure)
    draw_legend(figure, axes, methods)
    return figure


def contrast_bars(name: str, contrasts: Sequence[Contrast], measure: str, *, note: str = "") -> Figure:
    """One side, by its name, against each of the others: difference, probability of improvement, 95% intervals.

    What is `far_out` is told in figures, at an arrow.
    """
    conditions = list(dict.fromkeys(contrast.conditions for contrast in contrasts))
    others = list(dict.fromkeys(contrast.other for contrast in contrasts))
    likely = any(contrast.probability is not None for contrast in contrasts)
    figure, axes = panels(1, 1 + likely, note, sharey=True)
    figure.set_figheight(1.6 + 0.16 * len(conditions) * len(others) + 0.22 * len(others))
    spread, far = 0.7 / len(conditions), far_out(contrasts)
    arrows: list[tuple[Interval, float, Style]] = []
    for index, condition in enumerate(conditions):
        style: Style = {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
        chosen = [contrast for contrast in contrasts if contrast.conditions == condition]
        heights = [-others.index(contrast.other) - (index - (len(conditions) - 1) / 2) * spread for contrast in chosen]
        title = " + ".join(condition)
        places = list(zip(chosen, heights, strict=True))
        near = [(contrast.difference, at) for contrast, at in places if contrast not in far]
        _across(axes[0][0], title, [interval for interval, _ in near], [at for _, at in near], style)
        # Of a condition that has nothing near, an arrow stands in the legend.
        named = style | ({} if near else {"label": title})
        arrows += [(contrast.difference, at, named) for contrast, at in places if contrast in far]
        if likely:
            found = [(contrast.probability, at) for contrast, at in places if contrast.probability is not None]
            _across(axes[0][1], title, [interval for interval, _ in found], [at for _, at in found], style)
    axes[0][0].set_yticks(-np.arange(len(others)), [fitted(other) for other in others])
    axes[0][0].set_ylim(-len(others) + 0.4, 0.6)
    axes[0][0].axvline(0, color="0.3", linewidth=1)
    axes[0][0].set_xlabel(f"difference in {measure_name(measure)}")
    axes[0][0].set_title(f"{fitted(name)} less …")
    axes[0][0].locator_params(axis="x", nbins=6)
    _draw_arrows(axes[0][0], arrows)
    if likely:
        axes[0][1].axvline(0.5, color="0.3", linewidth=1)
        axes[0][1].set_xlim(-0.02, 1.02)
        axes[0][1].set_xlabel("probability of improvement")
        axes[0][1].set_title(f"{fitted(name)} better than …")
    finish(figure)
    if len(conditions) > 1:
        found, names = axes[0][0].get_legend_handles_labels()
        handles = dict(zip(names, found, strict=True))
        shown = [name for name in map(" + ".join, conditions) if name in handles]
        figure.legend([handles[name] for name in shown], shown, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def far_out(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Those whose difference is so large that the axis which holds it would show nothing of the nearer half."""
    reaches = sorted(max(abs(contrast.difference.low), abs(contrast.difference.high)) for contrast in contrasts)
    most = FAR * reaches[(len(reaches) - 1) // 2]
    return [contrast for contrast in contrasts if most and abs(contrast.difference.value) > most]


def _draw_arrows(axis: Axes, arrows: Sequence[tuple[Interval, float, Style]]) -> None:
    """Arrows at the axis's ends, at their heights, to what lies beyond; which value that is stands beside each."""
    low, high = axis.get_xlim()
    for interval, height, style in arrows:
        at, marker, inwards, side = (high, ">", -6, "right") if interval.value > 0 else (low, "<", 6, "left")
        drawn = {**style, "marker": marker}
        axis.plot(at, height, linestyle="", markersize=6, clip_on=False, **drawn)
        place: Style = {"xytext": (inwards, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        axis.annotate(interval.text("{:+.3f}"), (at, height), color=style["color"], fontsize=7, **place)
    axis.set_xlim(low, high)


def pareto_front(
    points: Mapping[str, Sequence[Point]],
    cloud: Mapping[str, Sequence[Point]],
    methods: Sequence[str],
    *,
    named: Sequence[str] = (),
    note: str = "",
) -> Figure:
    """Success rate against cost, a panel per condition; a line joins what no unprivileged method beats in both.

    Args:
        points: Condition -> methods at each K, or with each value of a setting.
        cloud: Condition -> single settings, drawn small.
        methods: All methods of the study, in the order that gives them their colours.
        named: Methods at whose points their place is written.
        note: Small print below the figure.
    """
    figure, axes = panels(1, len(points), note, sharey=True)
    styles = styles_of(methods)
    for axis, (condition, found) in zip(axes[0], points.items(), strict=True):
        for point in cloud.get(condition, ()):
            colour = styles[point.method]["color"]
            axis.plot(point.cost, point.success, marker=".", markersize=3, color=colour, alpha=0.4, linestyle="")
        front = non_dominated([point for point in found if not is_privileged(point.method)])
        at = [point.cost for point in front], [point.success for point in front]
        axis.plot(*at, color="0.5", linewidth=1, drawstyle="steps-post", zorder=1)
        for method in methods:
            own = sorted((point for point in found if point.method == method), key=lambda point: point.at)
            if not own:
                continue
            style = {key: styles[method][key] for key in ("color", "marker")}
            at = [point.cost for point in own], [point.success for point in own]
            axis.plot(*at, linestyle=":", linewidth=1, markersize=6, label=label(method), **style)
            for point in own:
                if point.is_open:
                    axis.plot(point.cost, point.success, markersize=5, markerfacecolor="w", linestyle="", **style)
                if method in named:
                    place = {"xytext": (3, -10), "textcoords": "offset points", "fontsize": 7}
                    axis.annotate(f"{point.at:g}", (point.cost, point.success), color=style["color"], **place)
        axis.set_title(in_lines(condition))
        axis.set_xlabel("cost of interventions per episode")
    axes[0][0].set_ylabel("success rate (share of pulls)")
    finish(figure)
    draw_legend(figure, axes, methods)
    return figure


def non_dominated(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in cost and in success, by cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.success)):
        if not front or point.success > front[-1].success:
            front.append(point)
    return front


def adaptation_gain(
    gains: Mapping[str, Mapping[str, tuple[Array, Array]]], names: Mapping[str, str], ylabel: str, *, note: str
) -> Figure:
    """What adapting to an agent brings, against how much that agent explores; a panel per family.

    Args:
        gains: Family -> condition -> (exploration [T], gain in score [T]).
        names: Family -> the hyperparameter on the axis.
        ylabel: What the gain is called.
        note: Small print below the figure.
    """
    conditions = list(dict.fromkeys(condition for found in gains.values() for condition in found))
    figure, axes = panels(1, len(gains), note, sharey=True)
    for axis, (family, found) in zip(axes[0], gains.items(), strict=True):
        axis.axhline(0, color="0.3", linewidth=1)
        for condition, (exploration, gain) in found.items():
            index = conditions.index(condition)
            style = {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
            axis.plot(exploration, gain, linestyle="", markersize=3, alpha=0.35, **style)
            middle, means = binned(exploration, gain)
            axis.plot(middle, means, linewidth=1.6, markersize=6, label=condition, **style)
        axis.set_title(family)
        axis.set_xlabel(names[family])
    axes[0][0].set_ylabel(ylabel)
    finish(figure)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def binned(at: Array, values: Array, bins: int = BINS) -> tuple[Array, Array]:
    """Mean position and mean value of groups of equal size, in the order of `at`."""
    order = np.argsort(at, kind="stable")
    groups = [group for group in np.array_split(order, min(bins, max(1, len(order) // 4))) if len(group)]
    return np.array([at[group].mean() for group in groups]), np.array([values[group].mean() for group in groups])


def world_model_losses(losses: Mapping[str, Mapping[str, Interval]], *, note: str = "") -> Figure:
    """The next-pull loss of each world model and of the floors, a panel per condition.

    Args:
        losses: Condition -> predictor -> nats per pull. Predictors that learn nothing start with "floor: ".
        note: Small print below the figure.
    """
    names = list(dict.fromkeys(name for found in losses.values() for name in found))
    figure, axes = panels(1, len(losses), note, sharey=True)
    figure.set_figheight(1.5 + 0.28 * len(names))
    for axis, (condition, found) in zip(axes[0], losses.items(), strict=True):
        for floor, style in (
            (True, {"color": "#000000", "marker": "s"}),
            (False, {"color": PALETTE[0], "marker": "o"}),
        ):
            chosen = [name for name in found if name.startswith("floor: ") == floor]
            heights = [-float(names.index(name)) for name in chosen]
            _across(axis, "", [found[name] for name in chosen], heights, style)
        axis.set_title(in_lines(condition))
        axis.set_xlabel("loss on the next pull (nats per pull)")
        if min(interval.low for interval in found.values()) >= 0:  # a density's (continuous game) may be negative
            axis.set_xlim(left=0)
    axes[0][0].set_yticks(-np.arange(len(names)), names)
    finish(figure)
    return figure


def _across(
    axis: Axes, name: str, intervals: Sequence[Interval], heights: Sequence[float], style: Mapping[str, Any]
) -> None:
    """Horizontal error bars."""
    if intervals:
        values, errors = values_and_errors(intervals)
        axis.errorbar(values, heights, xerr=errors, linestyle="", markersize=5, capsize=2, label=name, **style)


def fitted(text: str) -> str:
    """A label as a figure can hold it: in two lines, what is longer cut off."""
    lines = wrap(text, LETTERS, break_on_hyphens=False)
    return "\n".join(lines if len(lines) <= 2 else [lines[0], lines[1][: LETTERS - 1] + "…"])
