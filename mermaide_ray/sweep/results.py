"""The files of all runs of a sweep as one set of tables. Reads the store alone: no Ray, no Torch."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mermaide_ray.errors import InputError
from mermaide_ray.sweep.file import DONE, SETTING, STOPPED, UNFINISHED
from mermaide_ray.sweep.plan import Plan, Trial, Values, member_name, trial_name, typed
from mermaide_ray.sweep.store import Store

STATUS = "status.json"
Statuses = Mapping[str, dict[str, Any]]
"""What is on record of runs, by name."""
# Beyond this many rows, intervention profiles stay with the runs that they belong to: 30 M rows are 1 GB.
_MOST_PROFILE_ROWS = 30_000_000


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep.

    Attributes:
        trials: A row per run (trial x seed), columns as in trials.parquet.
        num_rows: Rows in rows.parquet.
    """

    trials: pd.DataFrame
    num_rows: int

    def count(self, status: str) -> int:
        """Runs with a status."""
        return int((self.trials["status"] == status).sum()) if len(self.trials) else 0


def read_status(store: Store, run_name: str) -> dict[str, Any] | None:
    """What is on record of a run: since it was begun, or has ended, well or not.

    Raises:
        InputError: The record is damaged.
    """
    name = f"runs/{run_name}/{STATUS}"
    content = store.read(name)
    with _undamaged(store, name):
        status: dict[str, Any] | None = json.loads(content) if content else None
    return status


def read_statuses(store: Store) -> Statuses:
    """What is on record of every run that was begun, by name."""
    found = ((name, read_status(store, name)) for name in store.names("runs"))
    return {name: status for name, status in found if status is not None}


def has_ended(status: Mapping[str, Any] | None) -> bool:
    """Whether a run is not to be gone on with: it is scored, or was stopped."""
    return status is not None and status["status"] in (DONE, STOPPED)


def reopen(store: Store) -> None:
    """Lets runs go on that have ended because the sweep's budget was spent."""
    for name, status in read_statuses(store).items():
        if status["status"] == STOPPED and status.get("by_budget"):
            # As of one that was killed: what it did is told again by its files.
            left = status | {"status": UNFINISHED, "by_budget": False, "env_steps": 0, "metrics": {}}
            store.write(f"runs/{name}/{STATUS}", json.dumps(left, indent=1).encode())


def read_milestones(store: Store, run_name: str) -> list[dict[str, float]]:
    """The metrics of a run that has ended, at each of its milestones."""
    return [told for told in _told(store, run_name) if any(key.startswith("validation/") for key in told)]


def is_over(plan: Plan, known: Statuses) -> bool:
    """Whether no process is worth starting, as far as is known before Tune is asked."""
    if plan.sweep.tune.scheduler == "pbt":
        members = map(member_name, range(plan.sweep.tune.samples))
        return all(_has_ended(known, member, plan.sweep.seeds) for member in members)
    return plan.sweep.is_planned and not unfinished(plan, known)


def unfinished(plan: Plan, known: Statuses) -> list[Trial]:
    """The planned trials that are worth a process: if any is, all of them where a scheduler must hear of each."""
    left = [trial for trial in plan.trials if not _has_ended(known, trial.setting.name, trial.seeds)]
    return plan.trials if left and plan.sweep.tune.scheduler != "none" else left


def _has_ended(known: Statuses, setting: str, seeds: Sequence[int]) -> bool:
    return all(has_ended(known.get(trial_name(setting, (seed,)))) for seed in seeds)


def assemble(plan: Plan, store: Store) -> Outcome:
    """Writes rows, calibration, profiles, progress and trials of the whole sweep, once however often it is asked."""
    runs = dict(_runs(plan, store))
    done = {name: status for name, status in runs.items() if status["status"] == DONE}
    keys = list(plan.dimensions)
    tables = {
        name: [_table(store, f"runs/{run}/{name}.parquet", status) for run, status in done.items()]
        for name in ("rows", "calibration")
    }
    games = _baselines(plan, store, list(done.values()))
    tables["rows"] += [_labelled(played, "", values) for values, played in games.values()]
    tables["profiles"] = _few_enough(
        itertools.chain(
            (_profiles(store, run, status) for run, status in done.items()),
            (_rates(store, key, values) for key, (values, _) in games.items()),
        )
    )
    whole = {name: _together(parts, keys) for name, parts in tables.items()}
    whole["progress"] = _together([_progress(store, run, status) for run, status in runs.items()], keys)
    whole["trials"] = _together([_line(status, plan.metric) for status in runs.values()], keys)
    for name, table in whole.items():
        store.write(f"{name}.parquet", to_parquet(table))
    return Outcome(whole["trials"], len(whole["rows"]))


def to_parquet(table: pd.DataFrame) -> bytes:
    """A table as the content of a Parquet file."""
    file = io.BytesIO()
    table.to_parquet(file, index=False)
    return file.getvalue()


def _runs(plan: Plan, store: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each run of the sweep with its status, in the order of the plan (or by name, where a search found them)."""
    if plan.sweep.is_planned:
        for setting in plan.settings:
            for seed in plan.sweep.seeds:
                name = setting.run_name(seed)
                begun = {
                    "trial": setting.name,
                    "method": setting.experiment.name,
                    "seed": seed,
                    "values": setting.values,
                }
                yield name, read_status(store, name) or {**begun, "status": UNFINISHED}
        return
    yield from read_statuses(store).items()


def _read(store: Store, name: str) -> pd.DataFrame | None:
    content = store.read(name)
    with _undamaged(store, name):
        return None if content is None else pd.read_parquet(io.BytesIO(content))


@contextmanager
def _undamaged(store: Store, name: str) -> Iterator[None]:
    """Says which file of the sweep can't be read, and what to do about it."""
    try:
        yield
    except (ValueError, OSError) as error:  # JSON's and Arrow's errors are ValueErrors
        whole = name.rpartition("/")[0] if name.startswith("runs/") else name
        raise InputError(
            f"a sweep's files must be whole, but {store.uri(name)} is damaged ({str(error).splitlines()[0]}): delete "
            f"{store.uri(whole)}, and the same command makes it again"
        ) from None


def _table(store: Store, name: str, status: dict[str, Any]) -> pd.DataFrame:
    table = _read(store, name)
    return pd.DataFrame() if table is None else _labelled(table, status["trial"], status["values"])


def _few_enough(parts: Iterable[pd.DataFrame]) -> list[pd.DataFrame]:
    """All profiles, or none: where they are too many, they are not even read."""
    kept, rows = [], 0
    for part in parts:
        rows += len(part)
        if rows > _MOST_PROFILE_ROWS:
            return []
        kept.append(part)
    return kept


def _rates(store: Store, game: str, values: Values) -> pd.DataFrame:
    """Profiles of fixed rules and oracles."""
    table = _read(store, f"baselines/{game}.profiles.parquet")
    return pd.DataFrame() if table is None else _labelled(table, "", values)


def _profiles(store: Store, run: str, status: dict[str, Any]) -> pd.DataFrame:
    """Profiles at each condition's largest K only: that is what is drawn."""
    table = _table(store, f"runs/{run}/profiles.parquet", status)
    return table[table["k"] == table.groupby("condition")["k"].transform("max")] if len(table) else table


def _told(store: Store, run: str) -> list[dict[str, float]]:
    """A run's metrics by iteration. The last line may be half-written."""
    name = f"runs/{run}/progress.jsonl"
    content = store.read(name)
    with _undamaged(store, name):
        return [json.loads(line) for line in (content or b"").decode().split("\n")[:-1]]


def _progress(store: Store, run: str, status: dict[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame(_told(store, run))
    if table.empty:
        return table
    # RLlib hands metrics over in any order.
    table = table[["iteration", *sorted(set(table.columns) - {"iteration"})]]
    return _labelled(table.assign(method=status["method"], seed=status["seed"]), status["trial"], status["values"])


def _line(status: dict[str, Any], metric: str) -> pd.DataFrame:
    shown = ("method", "seed", "status", "error", "env_steps", "wall_s", "cpu_s", "hostname", "sources")
    metrics = {
        key: value
        for key, value in status.get("metrics", {}).items()
        if key == metric or key.startswith(("score/", "validation/"))
    }
    line = pd.DataFrame([{key: status.get(key) for key in shown} | metrics])
    return _labelled(line, status["trial"], status["values"])


def _baselines(plan: Plan, store: Store, done: Sequence[dict[str, Any]]) -> dict[str, tuple[Values, pd.DataFrame]]:
    """Rows of fixed rules and oracles: each game once, with the searched values that all its settings share."""
    shared: dict[str, Values] = {}
    for values, method in dict.fromkeys((tuple(s["values"].items()), s["preset"]) for s in done):
        setting = plan.setting(dict(values), method)
        for condition, experiment, _ in plan.scored_in(setting):
            key = plan.game_key(condition, experiment)
            known = shared.setdefault(key, dict(values))
            shared[key] = {name: label for name, label in known.items() if dict(values).get(name) == label}
    found = {key: (values, _read(store, f"baselines/{key}.rows.parquet")) for key, values in sorted(shared.items())}
    return {key: (values, rows) for key, (values, rows) in found.items() if rows is not None}


def _labelled(table: pd.DataFrame, trial: str, values: Values) -> pd.DataFrame:
    return table.assign(trial=trial, **{f"{SETTING}{key}": label for key, label in values.items()})


def _together(parts: Sequence[pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """One table; searched settings become numbers where all their labels are."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return pd.DataFrame()
    table = pd.concat(filled, ignore_index=True)
    for column in (f"{SETTING}{key}" for key in keys):
        if column not in table:
            continue
        numbers = {label: typed(label) for label in table[column].dropna().unique()}
        if all(isinstance(number, int | float) for number in numbers.values()):
            table[column] = table[column].map(numbers).astype(np.float64)
    return table
