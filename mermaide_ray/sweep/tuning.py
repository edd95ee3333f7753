"""A sweep under Ray Tune: which trials are left, and what becomes of them.

Importing this module also makes the algorithm known to Tune by name:

    >>> import mermaide_ray.sweep.tuning  # doctest: +SKIP
    >>> tuner = tune.Tuner("MERMAIDE", param_space=MermaideConfig().training(meta_lr=tune.grid_search([1e-3, 3e-3])))
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator

from mermaide_ray.algorithm import Mermaide
from mermaide_ray.disk import written_by_others
from mermaide_ray.errors import InputError
from mermaide_ray.metrics import STEPS
from mermaide_ray.sweep.panel import Panel
from mermaide_ray.sweep.plan import Plan, Trial, trial_name
from mermaide_ray.sweep.run import SweepRun
from mermaide_ray.sweep.search import domain_of, optuna_search, scheduler_of
from mermaide_ray.sweep.status import (
    FAILED,
    UNFINISHED,
    RunStatus,
    Statuses,
    only_scores,
    read_status,
    read_statuses,
    spent,
    unfinished,
)
from mermaide_ray.sweep.store import Store, below
from mermaide_ray.sweep.trainable import OVER, REFUSED, WORST, SweepTrial, runs_of, trial_of

NAME = "MERMAIDE"
TUNE_FOLDER = "tune"

tune.register_trainable(NAME, Mermaide)


class _Budget(tune.Stopper):
    """Ends the sweep when its environment steps are spent.

    Args:
        env_steps: The budget.
        before: What was spent by trials that ended in earlier attempts, and are not told again.
    """

    def __init__(self, env_steps: int, before: int) -> None:
        self._budget = env_steps
        self._spent: dict[str, int] = {"": before}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """See base."""
        self._spent[trial_id] = int(result["env_steps"])
        return self.stop_all()

    def stop_all(self) -> bool:
        """See base."""
        return sum(self._spent.values()) >= self._budget


class _Watch(tune.Callback):
    """Tells the panel what happens to trials. Tune pickles callbacks, so it holds nothing itself."""

    panel: ClassVar[Panel]
    plan: ClassVar[Plan]
    store: ClassVar[Store]
    budget: ClassVar[_Budget | None]
    begun: ClassVar[Container[str]]
    """Names of the runs that earlier attempts have begun."""

    def _name(self, trial: Any) -> str:
        return _label(self.plan, *runs_of(self.plan, trial.config, trial.trial_id))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See base."""
        setting, seeds = runs_of(self.plan, trial.config, trial.trial_id)
        is_new = not any(trial_name(setting, (seed,)) in self.begun for seed in seeds)
        self.panel.started(_label(self.plan, setting, seeds), is_new)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See base."""
        score = result.get(self.plan.metric)
        has_score = score is not None and score > WORST  # agents on which the oracle gains nothing have none
        self.panel.told(self._name(trial), result["env_steps"], score if has_score else None, result.get("failed"))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See base."""
        told = trial.last_result
        if told and not told.get(OVER):
            by_budget = self.budget is not None and self.budget.stop_all()
            _stop(self.plan, self.store, trial_of(self.plan, trial.config, trial.trial_id), told, by_budget)
        self.panel.ended(self._name(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See base."""
        self.panel.died(self._name(trial), _last_words(trial))


def _last_words(trial: Any) -> str | None:
    """What a trial's process died of, in a line, as far as Tune has written it down."""
    written = Path(trial.error_file or "")
    lines = written.read_text(encoding="utf-8").strip().splitlines() if written.is_file() else []
    return lines[-1] if lines else None


def _stop(plan: Plan, store: Store, trial: Trial, told: Mapping[str, Any], by_budget: bool = False) -> None:
    """Puts on record that a scheduler, or the sweep's budget, has ended a trial early.

    Not where one of its runs has failed: that is why it did badly, and it is tried again, with the others.
    """
    if told.get("failed"):
        return
    # Per run, as if each had had its share: what Tune was told is of the trial as a whole.
    metrics = {key: value for key, value in told.items() if isinstance(value, float) and "/" in key}
    metrics[STEPS] = told["env_steps"] / len(trial.seeds)
    for seed in trial.seeds:
        status = read_status(store, trial.setting.run_name(seed))
        if status is not None and status.status == UNFINISHED:
            SweepRun(plan, trial.setting, seed, store).stop(metrics, by_budget)


def fit(plan: Plan, store: Store, panel: Panel, trusted: bool = False) -> None:
    """Runs every trial that the plan asks for and the store does not know. Ray must be up.

    Args:
        plan: The sweep's.
        store: The sweep's.
        panel: Where it is told.
        trusted: Whether checkpoints that others may have written may be unpickled.

    A planned sweep starts afresh each time: its runs know what they have done. What Tune draws goes on from the runs
    that are finished (Optuna) or from Tune's own state (population based training).
    """
    _Watch.panel, _Watch.plan, _Watch.store = panel, plan, store
    # The panel tells what Tune would print; its loggers would write TensorBoard events of their own.
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    known, env_steps = read_statuses(store), plan.sweep.tune.env_steps
    budget = _Budget(env_steps, spent(plan, known)) if env_steps else None
    _Watch.budget, _Watch.begun = budget, known.keys()
    if budget and budget.stop_all():
        return
    tuner = _tuner(plan, store, known, budget, trusted)
    if tuner is not None:
        _close(plan, store, tuner.fit())


def _tuner(plan: Plan, store: Store, known: Statuses, budget: _Budget | None, trusted: bool) -> tune.Tuner | None:
    """The tuner that goes on with the sweep, or None where nothing is left to do.

    Raises:
        InputError: Of a population that is half done, Tune's record is gone.
    """
    trainable = _trainable(plan, trusted)
    if plan.sweep.tune.scheduler == "pbt":
        # Tune ends members that have failed, and takes none up again: with nobody else it would do nothing.
        if any(status.status != FAILED for status in known.values()) and (
            restored := _restored(store, trainable, trusted)
        ):
            return restored
        # Half a population is of no use without Tune's record of who copied from whom.
        if any(status.is_done for status in known.values()):
            raise InputError(
                f"a population must go on from {store.uri(TUNE_FOLDER)}, which is gone, and some of its runs are "
                f"done (give another --out, or delete {store.uri('runs')} to start it afresh)"
            )
        store.delete("runs")
    store.delete(TUNE_FOLDER)
    return _fresh(plan, store, known, trainable, _run_config(plan, store, budget))


def _trainable(plan: Plan, trusted: bool) -> Any:
    """What Tune runs, with what it takes."""
    # Not by its settings: those of a restored trial are as they were.
    trial_class = tune.with_parameters(SweepTrial, trusted=True) if trusted else SweepTrial
    training, scoring = map(tune.PlacementGroupFactory, (plan.bundles, plan.scoring_bundles))
    return tune.with_resources(
        trial_class, lambda config: scoring if config.get("trial", {}).get("only_scores") else training
    )


def _run_config(plan: Plan, store: Store, budget: _Budget | None) -> tune.RunConfig:
    tuning = plan.sweep.tune
    return tune.RunConfig(
        name=TUNE_FOLDER,
        storage_path=_root(store),
        callbacks=[_Watch()],
        stop=budget,
        failure_config=tune.FailureConfig(max_failures=tuning.max_failures),
        checkpoint_config=tune.CheckpointConfig(
            # All are kept: another member may be about to copy any of them, and they are small.
            checkpoint_frequency=int(tuning.scheduler == "pbt"),
            checkpoint_at_end=False,
        ),
        verbose=0,
    )


def _close(plan: Plan, store: Store, results: tune.ResultGrid) -> None:
    """Puts on record what no trial could say of itself: that the budget was spent, or that it could not go on."""
    # A result of a trial whose process has never told any knows no settings.
    configs = {trial.trial_id: trial.config for trial in results._experiment_analysis.trials}
    for result in results:
        trial_id = Path(result.path).name
        trial = trial_of(plan, result.config or configs[trial_id], trial_id)
        if result.error is None and result.metrics and not result.metrics.get(OVER):  # when the budget was spent
            _stop(plan, store, trial, result.metrics, by_budget=True)
        refusal = (result.metrics or {}).get(REFUSED)
        # Else its process died more often than allowed.
        if error := InputError(refusal) if refusal else result.error:
            for seed in trial.seeds:
                status = read_status(store, trial.setting.run_name(seed))
                if status is None or not status.has_ended:
                    SweepRun(plan, trial.setting, seed, store).fail(error)


def _fresh(plan: Plan, store: Store, known: Statuses, trainable: Any, run_config: tune.RunConfig) -> tune.Tuner | None:
    """A tuner from the start, or None where nothing is left to do."""
    tuning = plan.sweep.tune
    space: dict[str, Any] = {"root": _root(store), "path": [str(Path.cwd())], "metric": plan.metric}
    search, scheduler, samples = None, scheduler_of(plan), 1
    concurrent = plan.sweep.resources.concurrent
    if tuning.scheduler == "pbt":
        space["drawn"] = {key: domain_of(dimension) for key, dimension in plan.dimensions.items()}
        search = BasicVariantGenerator(random_state=tuning.seed, max_concurrent=concurrent or 0)
        samples = tuning.samples
    elif not plan.sweep.is_enumerated:
        search, samples = optuna_search(plan, known)
        if not samples:
            return None
        _tell_ended(plan, known)
    else:
        trials = unfinished(plan, known)
        left = {trial.name for trial in trials}
        for trial in plan.trials:
            if trial.name not in left:
                statuses = [known.get(trial.setting.run_name(seed)) for seed in trial.seeds]
                _tell_known(plan, _label(plan, trial.setting.name, trial.seeds), statuses)
        space["trial"] = tune.grid_search(
            [
                {
                    "values": trial.setting.values,
                    "preset": trial.setting.preset,
                    "seeds": list(trial.seeds),
                    "only_scores": only_scores(trial, known),
                }
                for trial in trials
            ]
        )
    config = tune.TuneConfig(
        search_alg=search,
        scheduler=scheduler,
        num_samples=samples,
        # A population's generator has a limit of its own, and takes no other.
        max_concurrent_trials=None if tuning.scheduler == "pbt" else concurrent,
        metric=None if scheduler is None and search is None else plan.metric,
        mode=None if scheduler is None and search is None else "max",
        reuse_actors=True,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )
    return tune.Tuner(trainable, param_space=space, tune_config=config, run_config=run_config)


def _tell_ended(plan: Plan, known: Statuses) -> None:
    """Tells the panel of all trials of a search that were done before."""
    found: dict[str, list[RunStatus]] = {}
    for status in known.values():
        if status.has_ended:
            found.setdefault(status.setting, []).append(status)
    for trial, statuses in found.items():
        if len(statuses) == len(plan.sweep.seeds):
            _tell_known(plan, _label(plan, trial, plan.sweep.seeds), statuses)


def _tell_known(plan: Plan, name: str, statuses: Sequence[RunStatus | None]) -> None:
    """Tells the panel of a trial that was done before, all its runs ended."""
    ended = [status for status in statuses if status is not None]
    scores = [status.metrics.get(plan.metric, WORST) for status in ended]
    score = float(np.mean(scores)) if scores else WORST
    steps = sum(status.trained_steps for status in ended)
    _Watch.panel.known(name, steps, score if score > WORST else None)


def _root(store: Store) -> str:
    """The store as any node finds it."""
    return str(store.path) if store.is_folder else store.root


def _restored(store: Store, trainable: Any, trusted: bool = False) -> tune.Tuner | None:
    """The tuner of an interrupted sweep, as far as Tune has kept it."""
    path = below(_root(store), TUNE_FOLDER)
    if not tune.Tuner.can_restore(path):
        return None
    if store.is_folder and not trusted and (foreign := written_by_others(store.path / TUNE_FOLDER, store.path)):
        raise InputError(
            "Tune's record of a population holds pickles, which run code when they are loaded: it must be yours alone "
            f"to write, but {foreign} (--trust-checkpoint loads it all the same; another --out starts afresh)"
        )
    return tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)


def _label(plan: Plan, setting: str, seeds: tuple[int, ...]) -> str:
    """What the panel calls a trial: its name, without the seeds where all share it."""
    if len(seeds) == len(plan.sweep.seeds):
        return setting or plan.sweep.name
    return trial_name(setting, seeds)
