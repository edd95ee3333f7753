"""Principals that other sweeps have trained with the same settings: scored in other conditions, not trained anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mermaide_ray.config_file import flat, one_line
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment
from mermaide_ray.storage import RunDirectory
from mermaide_ray.sweep.file import SWEEP_FILE, read_sweep
from mermaide_ray.sweep.plan import Plan, budget_of
from mermaide_ray.sweep.status import read_statuses
from mermaide_ray.sweep.store import Store

Sources = Mapping[str, Path]
"""Name of a run -> folder of another sweep's run that trained its principal."""


def trained_in(folders: Sequence[Path], plan: Plan) -> Sources:
    """Those runs of a sweep whose principals other sweeps have trained.

    Args:
        folders: Those of the sweeps, which may be under way.
        plan: That of the sweep which is to score them.

    Raises:
        InputError: A folder is no sweep's, none of its runs has settings of this sweep, or the trials of this one are
            not known beforehand or end before their budget.
    """
    tune = plan.sweep.tune
    if not plan.sweep.is_enumerated or tune.scheduler != "none" or tune.stop or tune.env_steps:
        raise InputError(
            "--principals must stand without a searcher, a scheduler, tune.stop or tune.env_steps: these end runs early"
        )
    wanted = {
        setting.run_name(seed): training_of(setting.with_seed(seed))
        for seed in plan.sweep.seeds
        for setting in plan.settings
    }
    found: dict[str, Path] = {}
    for folder in folders:
        if not (folder / SWEEP_FILE).is_file():
            raise InputError(f"--principals must be the folder of a sweep, which holds {SWEEP_FILE}, got {folder}")
        file = folder / SWEEP_FILE
        if read_sweep(file.read_text(encoding="utf-8"), str(file)).tune.scheduler == "pbt":
            raise InputError(
                "--principals must be of a sweep whose runs keep their settings, got a population, whose members "
                f"change them while they are trained ({file}, tune.scheduler)"
            )
        trained = dict(_trained(folder / "runs"))
        if not trained.keys() & set(wanted.values()):
            raise InputError(
                f"--principals must hold finished runs with the settings of this sweep, got {folder}, "
                + (f"in which {_nearest(trained, set(wanted.values()))}" if trained else "in which none is finished")
            )
        found |= trained
    return {name: found[training] for name, training in wanted.items() if training in found}


def adopt(plan: Plan, store: Store, sources: Sources, console: Console) -> None:
    """Gives every planned run its principal, where that is already there; its trial scores it.

    Args:
        plan: The sweep's.
        store: The sweep's.
        sources: Trained principals, of `trained_in`.
        console: Where it is told.
    """
    from mermaide_ray.sweep.run import SweepRun

    left = 0
    for seed in plan.sweep.seeds:
        for setting in plan.settings:
            run = SweepRun(plan, setting, seed, store)
            if run.is_scored:
                continue
            if run.name in sources:
                run.adopt(sources[run.name])
                console.print(f"{run.name}: principal of {sources[run.name]}", soft_wrap=True, highlight=False)
            left += run.name not in sources
    if left:
        console.print(f"{left} of {plan.num_runs} runs have none there, and are trained", highlight=False)


def _trained(runs: Path) -> Iterator[tuple[str, Path]]:
    """Those trained to the end of their budget, by what their principal depends on."""
    for name, status in read_statuses(Store(str(runs.parent))).items():
        if status.is_done:
            run = runs / name
            experiment = RunDirectory(run).experiment()
            if status.env_steps == budget_of(experiment):
                yield training_of(experiment), run


def training_of(experiment: Experiment) -> str:
    """All that the trained principal depends on: not who did the work, nor where and how often it was scored."""
    return experiment.model_dump_json(exclude={"env_runners", "evaluation"})


def _nearest(trained: Mapping[str, Path], wanted: set[str]) -> str:
    """Where the run that comes nearest to what is wanted differs from it."""

    def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
        return [
            f"{key} is {one_line(found.get(key))} there and {one_line(asked.get(key))} here"
            for key in dict.fromkeys([*asked, *found])
            if found.get(key) != asked.get(key)
        ]

    theirs, mine = ([dict(flat(json.loads(text))) for text in texts] for texts in (trained, wanted))
    told = min((differences(found, asked) for found in theirs for asked in mine), key=len)
    return f"{told[0]}{f' (and {len(told) - 1} more differ)' if len(told) > 1 else ''}"
