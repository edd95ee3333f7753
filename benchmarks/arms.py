"""Question 3, the number of arms: one figure and one table of two sweeps, and what a step costs at each size.

    python -m benchmarks.arms OWN TRANSFER --out FIGURE.png

OWN is the folder of `tune_configs/action_space.yaml` (flat and equivariant networks, trained at every size), TRANSFER
that of `action_space_transfer.yaml` (equivariant networks, trained at 10 arms, scored at every size).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from benchmarks.speed import measure, of_mermaide
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.experience import experience_of
from mermaide_ray.kshot import KShot
from mermaide_ray.learners.maml import meta_loss
from mermaide_ray.models.method import Method
from mermaide_ray.noise import Key
from mermaide_ray.report.cells import Cell
from mermaide_ray.report.drawing import draw_error_bars, draw_legend, finish, panels, save_figure, styles_of
from mermaide_ray.report.statistics import QUARTILE, Interval, bootstrap_interval
from mermaide_ray.report.study import Study, read_study

CONDITION = "validation"
TRANSFERRED = "equivariant, trained at 10 arms"
RULE = "first n (best on validation)"
CURVES = ("flat", "equivariant", TRANSFERRED, RULE)
MEASURES = ("score", "gain", "loss", "cost")
TITLES = {
    "score": "normalised score, largest K",
    "gain": "score at K = 1 less at K = 0",
    "loss": "world model's loss / ln |A|",
    "cost": "CPU microseconds per env step",
}
# Tasks of the meta-iteration whose cost is measured.
TASKS = 12

Curve = dict[float, Interval]


@dataclass(frozen=True)
class Scored:
    """What one kind of networks was scored on.

    Attributes:
        study: The sweep.
        cells: Number of arms -> K -> cell.
    """

    study: Study
    cells: Mapping[float, Mapping[int, Cell]]


def results(scored: Scored) -> dict[str, Curve]:
    """The three measures of one kind of networks by number of arms."""
    found: dict[str, Curve] = {"score": {}, "gain": {}, "loss": {}}
    study = scored.study
    for arms, by_k in sorted(scored.cells.items()):
        low, high = by_k[min(by_k)], by_k[max(by_k)]
        score, loss = study.cells.interval([high]), study.cells.interval([high], "wm_nll_after")
        if score is not None:
            found["score"][arms] = score
        if loss is not None and not math.isnan(loss.value):
            found["loss"][arms] = Interval(*(value / math.log(arms) for value in (loss.value, loss.low, loss.high)))
        gain = study.cells.gain([high], [low], between=f"K = {high.k} against K = {low.k}, {arms:g} arms")
        if low != high and gain.size:
            found["gain"][arms] = study.cells.interval_of(gain)
    return found


def own(study: Study, kind: str) -> Scored:
    """Networks of one kind, each trained at the size at which it is scored."""
    chosen = study.settings[study.settings["world_model.arms"] == kind]
    ks = study.cells.ks(study.main, CONDITION)
    return Scored(
        study,
        {
            float(arms): {k: Cell(study.main, str(setting), CONDITION, k) for k in ks}
            for setting, arms in chosen["environment"].items()
        },
    )


def transferred(study: Study) -> Scored:
    """Networks trained at 10 arms, by the size at which they are scored."""
    found: dict[float, dict[int, Cell]] = {}
    for cell in study.cells:
        if cell.method == study.main:
            found.setdefault(float(cell.condition.removeprefix("arms_")), {})[cell.k] = cell
    return Scored(study, found)


def rule(scored: Scored) -> Scored:
    """The best fixed rule in the same games."""
    find, games = scored.study.cells.find, {arms: by_k[0] for arms, by_k in scored.cells.items()}
    played = {arms: find("first_n", cell.setting, cell.condition, 0) for arms, cell in games.items()}
    return Scored(scored.study, {arms: {0: cell} for arms, cell in played.items() if cell is not None})


def differences(one: Scored, other: Scored) -> Curve:
    """Score at the largest K of one kind of networks less the other's, paired over agents and seeds, by arms."""
    found: Curve = {}
    for arms in sorted(one.cells.keys() & other.cells.keys()):
        mine, theirs = (side.study.cells.matrix(side.cells[arms][max(side.cells[arms])]) for side in (one, other))
        assert mine.shape == theirs.shape, "both met the same agents"
        found[arms] = bootstrap_interval(mine.to_numpy() - theirs.to_numpy(), seed=0, trim=QUARTILE)
    return found


def costs(sizes: Mapping[float, int]) -> dict[str, Curve]:
    """CPU microseconds per env step of a meta-iteration (second order), by kind of networks and number of arms."""
    jobs: dict[str, tuple[Callable[[], Any], int]] = {}
    for kind in ("flat", "equivariant"):
        for arms, horizon in sizes.items():
            experiment = of_mermaide(
                {
                    "environment": {"num_arms": int(arms), "horizon": horizon},
                    "world_model": {"arms": kind},
                    "meta_learning": {"meta_batch_size": TASKS},
                }
            )
            jobs[f"{kind} {arms:g}"] = _meta_iteration(experiment), experiment.env_steps_per_iteration
    rates = measure(jobs, rounds=3)
    return {
        kind: {arms: Interval(*[1e6 / rates[f"{kind} {arms:g}"]] * 3) for arms in sizes}
        for kind in ("flat", "equivariant")
    }


def _meta_iteration(experiment: Any) -> Callable[[], None]:
    method, distribution = Method.of(experiment), AgentDistribution(experiment)
    kshot = KShot(experiment.environment, method)
    weights = method.architecture.initial_weights(torch.Generator().manual_seed(0))
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    rates = {name: torch.tensor(0.1) for name in method.adaptable()}
    tasks = distribution.tasks("train", range(TASKS))
    tasks = tasks.select(torch.argsort(tasks.family, stable=True))

    def run() -> None:
        meeting = kshot.meet(tasks, weights, rates, 1, 4, Key(0, "train", "bench", 0))
        assert meeting.support is not None
        support, query = (experience_of(kshot.environment, part) for part in (meeting.support, meeting.query))
        meta_loss(method, weights, rates, support, query, 0.01).loss.backward()  # type: ignore[no-untyped-call]

    return run


def draw(found: Mapping[str, Mapping[str, Curve]], note: str) -> Figure:
    """A panel per measure, a curve per kind of networks."""
    figure, axes = panels(2, 2, note, sharey=False)
    styles = styles_of(CURVES)
    for axis, key in zip(axes.ravel(), MEASURES, strict=True):
        for name in CURVES:
            if points := found[name].get(key):
                draw_error_bars(axis, name, points, styles[name])
        axis.set(title=TITLES[key], xscale="log", xlabel="arms of the agent, |A|")
        sizes = sorted({arms for curves in found.values() for curve in curves.values() for arms in curve})
        axis.set_xticks(sizes, [f"{arms:g}" for arms in sizes])
        axis.set_xticks([], minor=True)
    axes[1, 1].set_yscale("log")
    axes[1, 1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1, 1].yaxis.set_major_formatter(ScalarFormatter())
    axes[1, 1].yaxis.set_minor_formatter(NullFormatter())
    finish(figure)
    draw_legend(figure, axes, CURVES)
    return figure


def _tell(what: str, curve: Curve) -> None:
    for arms, point in curve.items():
        print(f"{what:64s} |A| = {arms:3g}  {point.value:+8.3f} [{point.low:+.3f}, {point.high:+.3f}]")


def main() -> None:
    """Reads both sweeps, measures the costs, prints all numbers, draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("own", type=Path)
    parser.add_argument("transfer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    study, elsewhere = read_study([args.own]), transferred(read_study([args.transfer]))
    flat, equivariant = (own(study, kind) for kind in ("flat", "equivariant"))
    kinds = dict(zip(CURVES, (flat, equivariant, elsewhere, rule(elsewhere)), strict=True))
    found = {name: results(scored) for name, scored in kinds.items()}
    # The horizons of the sweeps: what is left after each arm was pulled once.
    for kind, curve in costs({arms: int(90 + arms) for arms in sorted({*flat.cells, *elsewhere.cells})}).items():
        found[kind]["cost"] = curve
    for key in MEASURES:
        for name in CURVES:
            _tell(f"{key:5s} {name}", found[name].get(key, {}))
    for what, one, other in (("equivariant", equivariant, flat), (TRANSFERRED, elsewhere, flat)):
        _tell(f"score {what}, less flat", differences(one, other))
    _tell(f"score {TRANSFERRED}, less trained there", differences(elsewhere, equivariant))
    note = (
        f"Agents of the training range, {len(study.cells.seeds(flat.cells[10][1]))} training seeds; 95% bootstrap "
        "intervals over seeds and tasks; scores: interquartile mean, 0 never intervene, 1 oracle; loss: 1 is that of "
        "predicting every arm alike. Cost: a meta-iteration of 12 tasks, second order, one core."
    )
    save_figure(draw(found, note), args.out)


if __name__ == "__main__":
    main()
