"""Principals that another sweep has trained with the same settings: scored in other conditions, not trained anew."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment, load_experiment
from mermaide_ray.sweep.file import SWEEP_FILE
from mermaide_ray.sweep.plan import Plan, budget_of
from mermaide_ray.sweep.results import STATUS
from mermaide_ray.sweep.run import SweepRun
from mermaide_ray.sweep.store import Store


def adopt(plan: Plan, store: Store, folder: Path, console: Console) -> None:
    """Scores every planned run whose principal is already there.

    Args:
        plan: The sweep's.
        store: The sweep's.
        folder: The other sweep's, which may be under way.
        console: Where it is told.

    Raises:
        InputError: The folder is no sweep's, or the trials of this one are not known beforehand.
    """
    if not (folder / SWEEP_FILE).is_file():
        raise InputError(f"--principals must be the folder of a sweep, which holds {SWEEP_FILE}, got {folder}")
    if not plan.sweep.is_planned or plan.sweep.tune.scheduler != "none":
        raise InputError("--principals must stand without a searcher or a scheduler: these choose as they train")
    runs = [path for path in sorted((folder / "runs").glob("*/")) if _is_whole(path)]
    trained = {_training(load_experiment(path / "config.yaml")): path for path in runs}
    for seed in plan.sweep.seeds:
        for setting in plan.settings:
            run, source = SweepRun(plan, setting, seed, store), trained.get(_training(setting.with_seed(seed)))
            if source is not None and not run.is_done:
                run.adopt(source)
                console.print(f"{run.name}: principal of {source}", soft_wrap=True, highlight=False)


def _is_whole(run: Path) -> bool:
    """Whether a run was trained to the end of its budget."""
    if not (run / STATUS).is_file():
        return False
    status = json.loads((run / STATUS).read_text(encoding="utf-8"))
    return bool(status["status"] == "done" and status["env_steps"] == budget_of(load_experiment(run / "config.yaml")))


def _training(experiment: Experiment) -> str:
    """All that the trained principal depends on: not who did the work, nor where and how often it was scored."""
    return experiment.model_dump_json(exclude={"env_runners", "evaluation"})
