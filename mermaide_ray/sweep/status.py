"""The record of each run of a sweep, `runs/<run>/status.json`: what it is, and what has become of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace

from mermaide_ray.disk import damaged
from mermaide_ray.sweep.plan import Plan, Trial, Values, member_name, trial_name
from mermaide_ray.sweep.store import Store

# What becomes of a run: scored; ended early by a scheduler or the sweep's budget; on record with its error; none yet.
DONE, STOPPED, FAILED, UNFINISHED = "done", "stopped", "failed", "unfinished"
# What trials.parquet tells of each run from its record (`RunStatus`), beside settings and metrics; the first three also
# of one that was never begun.
ON_RECORD = (
    "method",
    "seed",
    "status",
    "error",
    "env_steps",
    "wall_s",
    "cpu_s",
    "hostname",
    "sources",
    "trained_sources",
)
# Prefix of the columns that hold what was searched.
SETTING = "setting."

_FILE = "status.json"
# Attribute of `RunStatus` -> its key there, where that is another: the name of the column in result files.
_KEYS = {"setting": "trial"}


@dataclass(frozen=True)
class RunStatus:
    """What is on record of a run.

    Attributes:
        setting: Name of its setting, without the seed.
        method: What it is called in rows.
        seed: Training seed.
        values: Label of each searched setting.
        preset: The preset that its method is made of, where methods are a dimension of the sweep.
        status: DONE, FAILED, STOPPED or UNFINISHED.
        error: Why it has failed, in a line.
        by_budget: Whether it was stopped because the sweep's budget was spent: with a larger one it goes on.
        env_steps: Environment steps that count: of a run that has ended.
        budget: Environment steps of the whole run.
        wall_s, cpu_s: Seconds spent, over all attempts but for what a kill took with it.
        hostname: Where it was written.
        sources: Digest of the code that wrote it.
        trained_sources: Digest of the code that trained its principal (or "unknown"), where another sweep has; else it
            is `sources`.
        metrics: By their flat names, at the end.
    """

    setting: str
    method: str
    seed: int
    values: Values
    preset: str | None = None
    status: str = UNFINISHED
    error: str | None = None
    by_budget: bool = False
    env_steps: int = 0
    budget: int | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    hostname: str | None = None
    sources: str | None = None
    trained_sources: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether it is scored."""
        return self.status == DONE

    @property
    def has_ended(self) -> bool:
        """Whether it is not to be gone on with: it is scored, or was stopped."""
        return self.status in (DONE, STOPPED)

    @property
    def is_adopted(self) -> bool:
        """Whether another sweep has trained its principal."""
        return self.trained_sources is not None

    @property
    def trained_steps(self) -> int:
        """Environment steps that count, and were done here."""
        return 0 if self.is_adopted else self.env_steps

    def write(self, store: Store, run_name: str) -> None:
        """Puts it on record."""
        told = {_KEYS.get(name, name): value for name, value in asdict(self).items()}
        store.write(f"runs/{run_name}/{_FILE}", json.dumps(told, indent=1).encode())


Statuses = Mapping[str, RunStatus]
"""What is on record of runs, by name."""


def read_status(store: Store, run_name: str) -> RunStatus | None:
    """What is on record of a run: since it was begun, or has ended, well or not.

    Raises:
        InputError: The record is damaged.
    """
    name = f"runs/{run_name}/{_FILE}"
    content = store.read(name)
    if not content:
        return None
    with undamaged(store, name):
        told = json.loads(content)
        keys = {each.name: _KEYS.get(each.name, each.name) for each in fields(RunStatus)}
        return RunStatus(**{name: told[key] for name, key in keys.items() if key in told})


def read_statuses(store: Store) -> Statuses:
    """What is on record of every run that was begun, by name."""
    found = ((name, read_status(store, name)) for name in store.names("runs"))
    return {name: status for name, status in found if status is not None}


def reopen(store: Store) -> None:
    """Lets runs go on that have ended because the sweep's budget was spent."""
    for name, status in read_statuses(store).items():
        if status.status == STOPPED and status.by_budget:
            # As of one that was killed: what it did is told again by its files.
            replace(status, status=UNFINISHED, by_budget=False, env_steps=0, metrics={}).write(store, name)


def is_over(plan: Plan, known: Statuses) -> bool:
    """Whether no process is worth starting."""
    tune, seeds = plan.sweep.tune, plan.sweep.seeds
    if tune.env_steps and spent(plan, known) >= tune.env_steps:
        return True
    if tune.scheduler == "pbt":
        return all(_have_ended(known, member, seeds) for member in map(member_name, range(tune.samples)))
    if plan.sweep.is_enumerated:
        return not unfinished(plan, known)
    found = {status.setting for status in known.values()}
    return sum(_have_ended(known, setting, seeds) for setting in found) >= tune.samples


def spent(plan: Plan, known: Statuses) -> int:
    """Environment steps of runs that have ended, and that no trial will tell of again."""
    if plan.sweep.is_enumerated:
        again = {trial.setting.run_name(seed) for trial in unfinished(plan, known) for seed in trial.seeds}
    else:
        open_ones = {status.setting for status in known.values() if not status.has_ended}
        again = {name for name, status in known.items() if status.setting in open_ones}
    return sum(it.trained_steps for name, it in known.items() if it.has_ended and name not in again)


def unfinished(plan: Plan, known: Statuses) -> list[Trial]:
    """The planned trials that are worth a process: if any is, all of them where a scheduler must hear of each."""
    left = [trial for trial in plan.trials if not _have_ended(known, trial.setting.name, trial.seeds)]
    return plan.trials if left and plan.sweep.tune.scheduler != "none" else left


def only_scores(trial: Trial, known: Statuses) -> bool:
    """Whether all that is left of a trial is to score what other sweeps have trained."""
    statuses = (known.get(trial.setting.run_name(seed)) for seed in trial.seeds)
    return all(status is not None and (status.is_adopted or status.has_ended) for status in statuses)


def bundles(plan: Plan, known: Statuses) -> list[dict[str, float]]:
    """What any trial that is left needs at the same time."""
    left = unfinished(plan, known) if plan.sweep.is_enumerated else []
    return plan.scoring_bundles if left and all(only_scores(trial, known) for trial in left) else plan.bundles


def _have_ended(known: Statuses, setting: str, seeds: Sequence[int]) -> bool:
    statuses = (known.get(trial_name(setting, (seed,))) for seed in seeds)
    return all(status is not None and status.has_ended for status in statuses)


@contextmanager
def undamaged(store: Store, name: str) -> Iterator[None]:
    """Says which file of the sweep can't be read, and what to do about it."""
    try:
        yield
    except (ValueError, OSError, TypeError, AttributeError) as error:  # JSON's and Arrow's errors are ValueErrors
        whole = name.rpartition("/")[0] if name.startswith("runs/") else name
        remedy = f"delete {store.uri(whole)}, and the same command makes it again"
        raise damaged(store.uri(name), error, remedy) from None
