"""Principals that other sweeps have trained with the same settings: scored in other conditions, not trained anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mermaide_ray.config_file import one_line
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment, load_experiment
from mermaide_ray.sweep.file import SWEEP_FILE
from mermaide_ray.sweep.plan import Plan, budget_of
from mermaide_ray.sweep.results import DONE, STATUS
from mermaide_ray.sweep.run import SweepRun
from mermaide_ray.sweep.store import Store

Sources = Mapping[str, Path]
"""What a principal depends on, as text -> folder of the run that trained it."""


def trained_in(folders: Sequence[Path], plan: Plan) -> Sources:
    """The runs of other sweeps whose principals a sweep can score.

    Args:
        folders: Those of the sweeps, which may be under way.
        plan: That of the sweep which is to score them.

    Raises:
        InputError: A folder is no sweep's, none of its runs has settings of this sweep, or the trials of this one are
            not known beforehand or end before their budget.
    """
    tune = plan.sweep.tune
    if not plan.sweep.is_planned or tune.scheduler != "none" or tune.stop:
        raise InputError("--principals must stand without a searcher, a scheduler or tune.stop: these end runs early")
    wanted = {training_of(setting.with_seed(seed)) for setting in plan.settings for seed in plan.sweep.seeds}
    sources: dict[str, Path] = {}
    for folder in folders:
        if not (folder / SWEEP_FILE).is_file():
            raise InputError(f"--principals must be the folder of a sweep, which holds {SWEEP_FILE}, got {folder}")
        runs = [path for path in sorted((folder / "runs").glob("*/")) if _is_whole(path)]
        trained = {training_of(load_experiment(path / "config.yaml")): path for path in runs}
        if not trained.keys() & wanted:
            raise InputError(
                f"--principals must hold finished runs with the settings of this sweep, got {folder}, "
                + (f"in which {_nearest(trained, wanted)}" if trained else "in which none is finished")
            )
        sources |= trained
    return sources


def adopt(plan: Plan, store: Store, sources: Sources, console: Console) -> None:
    """Scores every planned run whose principal is already there.

    Args:
        plan: The sweep's.
        store: The sweep's.
        sources: Trained principals, of `trained_in`.
        console: Where it is told.
    """
    torch.set_num_threads(1)  # as where runs are trained and scored
    left = 0
    for seed in plan.sweep.seeds:
        for setting in plan.settings:
            run, source = SweepRun(plan, setting, seed, store), sources.get(training_of(setting.with_seed(seed)))
            if source is not None and not run.is_done:
                run.adopt(source)
                console.print(f"{run.name}: principal of {source}", soft_wrap=True, highlight=False)
            left += not run.is_done
    if left:
        console.print(f"{left} of {plan.num_runs} runs have none there, and are trained", highlight=False)


def _is_whole(run: Path) -> bool:
    """Whether a run was trained to the end of its budget."""
    if not (run / STATUS).is_file():
        return False
    status = json.loads((run / STATUS).read_text(encoding="utf-8"))
    return bool(status["status"] == DONE and status["env_steps"] == budget_of(load_experiment(run / "config.yaml")))


def training_of(experiment: Experiment) -> str:
    """All that the trained principal depends on: not who did the work, nor where and how often it was scored."""
    return experiment.model_dump_json(exclude={"env_runners", "evaluation"})


def _nearest(trained: Mapping[str, Path], wanted: set[str]) -> str:
    """Where the run that comes nearest to what is wanted differs from it."""

    def differences(there: str, here: str) -> list[str]:
        found, asked = dict(_flat(json.loads(there))), dict(_flat(json.loads(here)))
        return [
            f"{key} is {one_line(found.get(key))} there and {one_line(asked.get(key))} here"
            for key in dict.fromkeys([*asked, *found])
            if found.get(key) != asked.get(key)
        ]

    told = min((differences(there, here) for there in trained for here in wanted), key=len)
    return f"{told[0]}{f' (and {len(told) - 1} more differ)' if len(told) > 1 else ''}"


def _flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield path + key, value
