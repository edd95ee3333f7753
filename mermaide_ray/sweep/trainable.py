"""What Ray Tune runs: one trial of a sweep, step by step, in a process of its own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from mermaide_ray.errors import InputError, WorkersLost
from mermaide_ray.sweep.file import SWEEP_FILE, read_sweep
from mermaide_ray.sweep.plan import HAIR, Plan, Trial, Values, member_name
from mermaide_ray.sweep.run import SweepRun, line_of
from mermaide_ray.sweep.sections import label_of
from mermaide_ray.sweep.store import Store

# What a failed trial reports to search and scheduler: worse than any score, and finite, which both need.
WORST = -1e6
# Share of the budget spent: the clock of schedulers, the same for trials whose iterations differ in size.
SPENT = "budget_spent"
# Whether a trial has come to its own end: Tune sets `done` where it stops one before that, too.
OVER = "over"
# What a worker says of a trial that can't be begun there.
REFUSED = "refused"


class SweepTrial(tune.Trainable):
    """One setting with some training seeds, each step to the next milestone of all of them.

    `config`: `root` (the sweep's folder), `path` (where the driver finds modules), `metric` (the plan's, which takes
    settings that may be refused here), and either `trial` (a planned one) or `drawn` (what Tune draws: dotted key to
    number or label).
    """

    def setup(self, config: dict[str, Any], trusted: bool = False) -> None:
        """See base; `trusted`: whether checkpoints that others may have written are loaded."""
        torch.set_num_threads(1)
        for name in ("ray", "ray.rllib", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        sys.path += [place for place in config["path"] if place not in sys.path]
        self._runs: list[SweepRun] = []
        self._refusal: InputError | None = None
        try:
            self._begin(config, trusted)
        except InputError as error:
            # Not raised: Tune would start one process after the other, only to hear the same.
            self._refusal = error

    def _begin(self, config: Mapping[str, Any], trusted: bool) -> None:
        self._store = Store(config["root"])
        self._plan = plan_of(self._store)
        self._breeds = self._plan.sweep.tune.scheduler == "pbt"
        self._trial = trial_of(self._plan, config, self.trial_id)
        self._runs = [
            SweepRun(self._plan, self._trial.setting, seed, self._store, self._breeds, trusted)
            for seed in self._trial.seeds
        ]

    def step(self) -> dict[str, Any]:
        """Every run on to its next milestone. One that fails is on record, and the others go on without it."""
        if self._refusal is not None:
            return {
                self.config["metric"]: WORST,
                "failed": line_of(self._refusal),
                REFUSED: str(self._refusal),
                "env_steps": 0,
                SPENT: 0.0,
                "done": True,
                OVER: True,
            }
        told = []
        for run in self._runs:
            if run.error is not None:
                continue
            try:
                told.append(run.advance())
                self._rest(run)
            except WorkersLost:
                raise  # as a trial whose own process died: started again from its checkpoint, elsewhere perhaps
            except Exception as error:
                # Not raised: Tune would take it for a crash, and start the trial again only to see it fail again.
                run.fail(error)
        metric, env_steps = self._plan.metric, sum(run.env_steps for run in self._runs)
        failures = [run.error for run in self._runs if run.error is not None]
        shared = [key for key in told[0] if all(key in part for part in told)] if told else []
        over = all(run.is_over or run.error is not None for run in self._runs)
        return {
            **{key: float(np.mean([part[key] for part in told])) for key in shared},
            metric: WORST if failures else float(np.mean([part.get(metric, WORST) for part in told])),
            "failed": failures[0] if failures else None,
            "env_steps": env_steps,
            SPENT: min(1.0, env_steps / self._trial.env_steps + HAIR),
            "done": over,
            OVER: over,
        }

    def _rest(self, run: SweepRun) -> None:
        """Ends the actors of a run whose turn is over, where others wait for theirs: there is room for one run's."""
        if len(self._runs) > 1 and self._trial.setting.experiment.env_runners.actors:
            run.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For population based training: what another member may go on from."""
        for run in self._runs:
            run.save_to(Path(checkpoint_dir) / str(run.seed))
            self._rest(run)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on from another member's weights with settings of its own."""
        for run in self._runs:
            run.load_from(Path(checkpoint) / str(run.seed))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serves another trial: starting a process takes longer than many a trial."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """See base."""
        for run in self._runs:
            run.close()


def trial_of(plan: Plan, config: Mapping[str, Any], trial_id: str) -> Trial:
    """The trial that a configuration of Tune's means."""
    values, preset, seeds = _choice_of(plan, config)
    setting = plan.setting(values, preset)
    if plan.sweep.tune.scheduler == "pbt":
        setting = replace(setting, name=_member(trial_id))
    return Trial(setting, seeds)


def runs_of(plan: Plan, config: Mapping[str, Any], trial_id: str) -> tuple[str, tuple[int, ...]]:
    """The name of a trial's setting, and its seeds."""
    values, preset, seeds = _choice_of(plan, config)
    breeds = plan.sweep.tune.scheduler == "pbt"
    return _member(trial_id) if breeds else plan.name(values, preset), seeds


def _choice_of(plan: Plan, config: Mapping[str, Any]) -> tuple[Values, str | None, tuple[int, ...]]:
    if "trial" in config:
        planned = config["trial"]
        return planned["values"], planned["preset"], tuple(planned["seeds"])
    return {key: label_of(value) for key, value in config["drawn"].items()}, None, plan.sweep.seeds


def _member(trial_id: str) -> str:
    """The name of a population's member. Tune numbers trials: a1b2c_00003.

    Not by its configuration: a member that copies another takes over all of it.
    """
    return member_name(int(trial_id.rpartition("_")[2]))


def plan_of(store: Store) -> Plan:
    """The plan of the sweep in a store."""
    where = store.uri(SWEEP_FILE)
    return Plan(read_sweep(store.read_text(SWEEP_FILE, "a sweep's folder"), where), where)
