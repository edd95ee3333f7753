"""From rows to what may be claimed: curves, episodes until a target, a figure and a verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mermaide_ray.report.cells import Cells
from mermaide_ray.report.comparison import compare
from mermaide_ray.report.drawing import draw_error_bars, draw_legend, finish, panels, styles_of
from mermaide_ray.report.statistics import INTERVAL_ENDS, RESAMPLES, Interval

NOISE = "setting.game.response_noise"
REGRET = "normalised_regret"
METHODS = ("mermaide", "rl2", "scratch")
TITLES = {"test": "held-out followers", "unstructured": "followers without structure"}
Array = NDArray[np.float64]


def curve(rows: pd.DataFrame) -> dict[int, Interval]:
    """Mean normalised regret after each number of episodes; rows of one method, noise and condition."""
    cells = Cells.of_run(rows)
    return {cell.k: regret for cell in cells if (regret := cells.interval([cell], REGRET))}


def episodes_to_target(rows: pd.DataFrame, target: float, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Episodes until the mean normalised regret is at most `target`; infinite where that never happens.

    Linear between the k that were scored. A resample draws training seeds and tasks as `bootstrap_interval` does, the
    same ones for all k.

    Args:
        rows: Of one method, noise and condition.
        target: Normalised regret.
        seed: Seed of the resampling.
        resamples: Their number.
    """
    cells = Cells.of_run(rows)
    ks = np.array([float(cell.k) for cell in cells])
    scores = np.stack([cells.pooled([cell], REGRET).to_numpy() for cell in cells])
    rng = np.random.default_rng(seed)
    _, seeds, tasks = scores.shape
    drawn_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    drawn_tasks = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=resamples)
    means = np.einsum("kst,rs,rt->rk", scores, drawn_seeds, drawn_tasks, optimize=True) / (seeds * tasks)
    reached = np.array([first_crossing(ks, mean, target) for mean in means])
    # Not interpolated between order statistics: between a number and infinity there is none.
    low, high = np.quantile(reached, INTERVAL_ENDS, method="nearest")
    return Interval(first_crossing(ks, scores.mean((1, 2)), target), float(low), float(high))


def first_crossing(ks: Array, values: Array, target: float) -> float:
    """The first k, linearly interpolated, at which `values` is at most `target`; infinity if there is none."""
    below = np.flatnonzero(values <= target)
    if not len(below):
        return float("inf")
    last = int(below[0])
    if last == 0:
        return float(ks[0])
    share = (values[last - 1] - target) / (values[last - 1] - values[last])
    return float(ks[last - 1] + share * (ks[last] - ks[last - 1]))


def figure(rows: pd.DataFrame, target: float, note: str = "") -> Figure:
    """Regret against episodes, a panel per noise, and episodes until the target against noise; a row per condition."""
    noises, conditions = sorted(rows[NOISE].unique()), list(rows["condition"].unique())
    methods = [method for method in METHODS if method in set(rows["method"])]
    styles = styles_of(methods)
    drawn, axes = panels(len(conditions), len(noises) + 1, note, sharey=False)
    for line, condition in enumerate(conditions):
        of_condition = rows[rows["condition"] == condition]
        for axis, noise in zip(axes[line], noises, strict=False):
            for method in methods:
                chosen = of_condition[(of_condition[NOISE] == noise) & (of_condition["method"] == method)]
                draw_error_bars(axis, method, {float(k): value for k, value in curve(chosen).items()}, styles[method])
            axis.axhline(target, color="0.6", linewidth=0.8, linestyle=":")
            axis.set_xscale("symlog", base=2, linthresh=1)
            most = int(rows["k"].max())
            ks = [0, *(2**power for power in range(most.bit_length()))]
            axis.set_xticks(ks, [str(k) for k in ks])
            axis.set_xlim(-0.3, 1.2 * most)
            axis.set_ylim(0, 1.25)
            axis.set(title=f"{TITLES[condition]}\nobservation noise {noise:g}", xlabel="adaptation episodes")
        axes[line][0].set_ylabel("normalised regret")
        last = axes[line][-1]
        for method in methods:
            of_method = of_condition[of_condition["method"] == method]
            reached = {
                float(noise): found
                for noise in noises
                if np.isfinite((found := episodes_to_target(of_method[of_method[NOISE] == noise], target)).value)
            }
            if reached:
                longest = float(rows["k"].max())
                shown = {
                    noise: Interval(found.value, found.low, min(found.high, longest))
                    for noise, found in reached.items()
                }
                draw_error_bars(last, method, shown, styles[method])
                beyond = [noise for noise, found in reached.items() if found.high > longest]
                last.plot(beyond, [longest] * len(beyond), "^", color=styles[method]["color"], markersize=6)
        last.set(title=f"episodes until {target:g}\n(▲: beyond)", xlabel="observation noise p", ylabel="episodes")
        last.set_ylim(bottom=0)
    draw_legend(drawn, axes, methods)
    finish(drawn)
    return drawn


def comparison(rows: pd.DataFrame, other: str, k: int) -> Interval:
    """Normalised regret of mermaide less that of another method, paired; rows of one noise and condition."""
    cells = Cells.of_run(rows)
    one, two = ([cell for cell in cells if (cell.method, cell.k) == (method, k)] for method in ("mermaide", other))
    found = compare(cells, one, two, REGRET, between=f"mermaide against {other}")
    assert found is not None
    return found.difference


def verdict(rows: pd.DataFrame, target: float, ks: Sequence[int] = (1, 2, 4)) -> str:
    """A Markdown table of episodes until the target, and one of differences, with 95% intervals."""
    lines = [
        f"Episodes until the normalised regret is at most {target:g} (0: strong Stackelberg equilibrium, 1: best "
        "commitment without knowing the follower) [95% interval]:",
        "",
        "| followers | noise p | " + " | ".join(METHODS) + " |",
        "|---|---:|" + "---:|" * len(METHODS),
    ]
    cases = list(rows.groupby(["condition", NOISE], sort=False))
    for (condition, noise), of_case in cases:
        reached = [episodes_to_target(of_case[of_case["method"] == method], target) for method in METHODS]
        cells = [f"{_number(x.value)} [{_number(x.low)}, {_number(x.high)}]" for x in reached]
        lines.append(f"| {condition} | {noise:g} | " + " | ".join(cells) + " |")
    known = [k for k in ks if k in set(rows["k"])]
    others = [method for method in METHODS if method != "mermaide"]
    lines += [
        "",
        "Normalised regret of mermaide less that of the other, paired (negative: mermaide is nearer the equilibrium):",
        "",
        "| followers | noise p | against | " + " | ".join(f"K = {k}" for k in known) + " |",
        "|---|---:|---|" + "---:|" * len(known),
    ]
    for (condition, noise), of_case in cases:
        for other in others:
            found = [comparison(of_case, other, k) for k in known]
            cells = [difference.text("{:+.3f}") for difference in found]
            lines.append(f"| {condition} | {noise:g} | {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(episodes: float) -> str:
    return f"{episodes:.1f}" if np.isfinite(episodes) else "never"
