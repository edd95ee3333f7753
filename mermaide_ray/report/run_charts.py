"""Pictures of a run: learning curves, K-shot curve, intervention heatmap, world-model calibration. Reads files only.

Each figure is one function from numbers to a matplotlib `Figure`; what is drawn of a study or a run, and in which
words, is decided in `pictures/`. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mermaide_ray.calibration_bins import calibration_error, of_points, pooled_bins
from mermaide_ray.errors import InputError
from mermaide_ray.metrics import METRICS, RETURN, VALIDATION, is_validation, k_of, validation_key
from mermaide_ray.report.drawing import (
    MARKERS,
    PALETTE,
    draw_curve,
    draw_error_bars,
    draw_legend,
    finish,
    in_lines,
    panels,
    share_limits,
    styles_of,
    thinned,
)
from mermaide_ray.report.names import is_privileged, label
from mermaide_ray.report.statistics import Interval

# What the calibration's axes say: along both panels, up the curve, up the histogram.
_OF_ARMS = ("predicted probability of the likeliest arm", "share of pulls\nthat were this arm", "share of\npredictions")
_OF_POINTS = ("predicted probability of a smaller value (PIT)", "share of points\nbelow it", "share of\npoints")
BEFORE, AFTER = "before adaptation", "after adaptation"


def learning_curves(curves: Mapping[str, Sequence[pd.DataFrame]], *, note: str = "", seed: int = 0) -> Figure:
    """Training return, and validation score at each K, over environment steps; a band where there are several seeds.

    Args:
        curves: Method -> one frame per training seed, a row per iteration, metric keys as columns (`read_progress`).
        note: Small print below the figure.
        seed: Seed of the bootstrap over training seeds.
    """
    columns = {column for frames in curves.values() for frame in frames for column in frame.columns}
    ks = sorted(k_of(column) for column in columns if is_validation(column))
    keys = [*([RETURN] if RETURN in columns else []), *map(validation_key, ks)]
    if not keys:
        raise InputError(f"learning curves need `{RETURN}` or `{VALIDATION}…` in progress.jsonl, got {sorted(columns)}")
    figure, axes = panels(1, len(keys), note, sharey=False)
    styles = styles_of(list(curves))
    for axis, key in zip(axes[0], keys, strict=True):
        for method, frames in curves.items():
            if all(key in frame and frame[key].notna().any() for frame in frames):
                draw_curve(axis, label(method), [thinned(frame, key) for frame in frames], styles[method], seed)
        axis.set_title("training" if key == RETURN else f"validation, K = {k_of(key)}")
        axis.set_ylabel(f"return ({METRICS[RETURN].unit})" if key == RETURN else "normalised score")
        axis.set_xlabel("environment steps")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    share_limits(axes[0][len(keys) - len(ks) :])
    finish(figure)
    draw_legend(figure, axes, list(styles))
    return figure


def kshot_panels(
    scores: Mapping[str, Mapping[str, Mapping[int, Interval]]], methods: Sequence[str], *, note: str = ""
) -> Figure:
    """Scores by K as curves.

    A method that scores the same whatever K is drawn as a dashed line across. Such lines far below the others would
    press them together: they are listed at the foot of the panel.

    Args:
        scores: Condition -> method -> K -> score.
        methods: All methods, in the order that gives them their colours.
        note: Small print below the figure.
    """
    figure, axes = panels(1, len(scores), note, sharey=True)
    styles = styles_of(methods)
    ks = sorted({k for found in scores.values() for points in found.values() for k in points})
    # What adapts is drawn at its K even where it is scored at one alone; lines across are for what has no use for K.
    adapts = {method for found in scores.values() for method, points in found.items() if len(set(points.values())) > 1}
    moving = {
        condition: [method for method in found if found[method] and (method in adapts or len(ks) == 1)]
        for condition, found in scores.items()
    }
    for axis, (condition, found) in zip(axes[0], scores.items(), strict=True):
        for index, method in enumerate(moving[condition]):
            # Side by side, so that no error bar hides another.
            shift = 0.015 * (index - (len(moving[condition]) - 1) / 2) * max(1, ks[-1] - ks[0])
            shifted = {k + shift: interval for k, interval in found[method].items()}
            draw_error_bars(axis, label(method), shifted, styles[method])
    # Of all panels, which share the axis.
    low = axes[0][0].get_ylim()[0] if any(moving.values()) else -np.inf
    for axis, (condition, found) in zip(axes[0], scores.items(), strict=True):
        flat = {method: next(iter(found[method].values())) for method in found if method not in moving[condition]}
        far = {method: interval for method, interval in flat.items() if interval.value < low - 0.3}
        for method in [method for method in flat if method not in far]:
            colour, dashes = styles[method]["color"], styles[method]["flat"]
            axis.axhline(flat[method].value, color=colour, linestyle=dashes, linewidth=1.4, label=label(method))
            if not is_privileged(method):
                axis.axhspan(flat[method].low, flat[method].high, color=colour, alpha=0.12, linewidth=0)
        listed = [f"below: {label(method)} {interval.value:.2f}" for method, interval in far.items()]
        axis.set_xlabel("\n".join(["K (support episodes)", *listed]))
        axis.set_title(in_lines(condition))
        axis.set_xticks(ks)
    axes[0][0].set_ylabel("normalised score (0 never, 1 oracle)")
    finish(figure)
    draw_legend(figure, axes, methods)
    return figure


def intervention_heatmap(profiles: pd.DataFrame, *, note: str = "") -> Figure:
    """When a principal intervenes, for which agents: steps x agents by exploration, by condition and family.

    Args:
        profiles: Rows of profiles.parquet of one method and one K, each with its condition; training seeds are
            averaged. A row of panels per condition, a column per family.
        note: Small print below the figure.
    """
    conditions, families = list(profiles["condition"].unique()), sorted(profiles["family"].unique())
    figure, axes = panels(len(conditions), len(families), note, sharey=False)
    image = None
    for row, condition in enumerate(conditions):
        for column, family in enumerate(families):
            axis = axes[row][column]
            chosen = profiles[(profiles["condition"] == condition) & (profiles["family"] == family)]
            # A family without hyperparameters has no exploration to sort by; its agents stay in order.
            chosen = chosen.fillna({"exploration": 0.0})
            axis.set_title(f"{condition}: {family}")
            axis.grid(False)
            if chosen.empty:
                axis.set_axis_off()
                continue
            # [agents, T], the least exploring agent first (at the bottom).
            rates = chosen.pivot_table(index=["exploration", "task"], columns="step", values="intervention_rate")
            image = axis.imshow(
                rates.to_numpy(), vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower", interpolation="nearest"
            )
            ticks = np.unique(np.linspace(0, len(rates) - 1, 5).round().astype(int))
            exploration = rates.index.get_level_values("exploration")
            axis.set_yticks(ticks, [f"{exploration[tick]:.2g}" for tick in ticks])
            axis.set_ylabel("agents, by exploration" if column == 0 else "")
            axis.set_xlabel("step" if row == len(conditions) - 1 else "")
    if image is not None:
        unit = "share of query episodes with an intervention"
        figure.colorbar(image, ax=axes.ravel().tolist(), label=unit, shrink=0.9)
    finish(figure)
    return figure


def calibration_curve(calibration: pd.DataFrame, *, note: str = "") -> Figure:
    """World-model reliability before (K = 0) and after (largest K) adaptation, with the ECE; a panel per condition.

    The curve pools training seeds and families; the ECE is computed per seed, then averaged, so that errors of
    different seeds don't cancel. The lower row shows how many predictions fall into each bin. Of points (`of_points`)
    the curve is the distribution function of PIT values, over coordinates together, and the lower row their histogram;
    coordinates' errors don't cancel either.

    Args:
        calibration: Rows of calibration.parquet of one method, each with its condition.
        note: Small print below the figure.
    """
    conditions = list(calibration["condition"].unique())
    figure, axes = panels(2, len(conditions), note, sharey="row", heights=(3, 1))
    points = of_points(calibration)
    apart = ["seed", "coordinate"] if points else ["seed"]
    x, y, below = _OF_POINTS if points else _OF_ARMS
    for column, condition in enumerate(conditions):
        curve, histogram = axes[0][column], axes[1][column]
        of_condition = calibration[calibration["condition"] == condition]
        most = int(of_condition["k"].max())
        curve.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="perfect")
        if points:
            histogram.axhline(1 / (calibration["bin"].nunique() + 1), color="0.6", linewidth=1, linestyle=":")
        for index, (k, when) in enumerate({0: BEFORE, most: AFTER if most else BEFORE}.items()):
            chosen = of_condition[of_condition["k"] == k]
            if not chosen["count"].sum():
                continue
            bins = pooled_bins(chosen, ["bin"])
            ece = np.mean([calibration_error(pooled_bins(part, ["bin"])) for _, part in chosen.groupby(apart)])
            colour, marker = PALETTE[1 - index], MARKERS[index]
            name = f"{when} (K = {k}), ECE {ece:.3f}"
            curve.plot(bins["confidence"], bins["frequency"], color=colour, marker=marker, markersize=4, label=name)
            if points:
                share = np.diff(bins["frequency"], prepend=0, append=1)
                middle = (np.arange(len(share)) + 0.5) / len(share)
            else:
                share, middle = (bins["count"] / bins["count"].sum()).to_numpy(), bins["confidence"].to_numpy()
            histogram.plot(middle, share, color=colour, marker=marker, markersize=3, linewidth=1)
        # Above the panel: inside, some curve or other would run through it.
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "alignment": "left"}
        curve.legend(title=condition, frameon=False, fontsize=8, **place)
        curve.set_xlim(0, 1)
        curve.set_ylim(0, 1)
        histogram.set_xlim(0, 1)
        histogram.set_xlabel(x)
    # Once all are drawn: a limit set before would fix the other end as well.
    axes[1][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel(y)
    axes[1][0].set_ylabel(below)
    finish(figure)
    return figure
