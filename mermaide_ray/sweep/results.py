"""The files of all runs of a sweep as one set of tables. Reads the store alone: no Ray, no Torch."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mermaide_ray.disk import whole_records
from mermaide_ray.experiment import Experiment
from mermaide_ray.metrics import is_score, is_validation
from mermaide_ray.sweep.plan import Plan, Values
from mermaide_ray.sweep.sections import typed
from mermaide_ray.sweep.status import ON_RECORD, SETTING, RunStatus, read_status, read_statuses, undamaged
from mermaide_ray.sweep.store import Store

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


def read_milestones(store: Store, run_name: str, experiment: Experiment) -> list[dict[str, float]]:
    """The metrics of a run with these settings that has ended, at each of its milestones."""
    return [told for told in _told(store, run_name) if experiment.is_milestone(int(told["iteration"]))]


def assemble(plan: Plan, store: Store) -> Outcome:
    """Writes rows, calibration, profiles, progress and trials of the whole sweep, once however often it is asked."""
    runs = dict(_runs(plan, store))
    done = {name: status for name, status in runs.items() if status.is_done}
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


def _runs(plan: Plan, store: Store) -> Iterator[tuple[str, RunStatus]]:
    """Each run of the sweep with its status, in the order of the plan (or by name, where a search found them)."""
    if plan.sweep.is_enumerated:
        for setting in plan.settings:
            for seed in plan.sweep.seeds:
                name = setting.run_name(seed)
                begun = RunStatus(setting.name, setting.experiment.name, seed, setting.values)
                yield name, read_status(store, name) or begun
        return
    yield from read_statuses(store).items()


def _read(store: Store, name: str) -> pd.DataFrame | None:
    content = store.read(name)
    with undamaged(store, name):
        return None if content is None else pd.read_parquet(io.BytesIO(content))


def _table(store: Store, name: str, status: RunStatus) -> pd.DataFrame:
    table = _read(store, name)
    return pd.DataFrame() if table is None else _labelled(table, status.setting, status.values)


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


def _profiles(store: Store, run: str, status: RunStatus) -> pd.DataFrame:
    """Profiles at each condition's largest K only: that is what is drawn."""
    table = _table(store, f"runs/{run}/profiles.parquet", status)
    return table[table["k"] == table.groupby("condition")["k"].transform("max")] if len(table) else table


def _told(store: Store, run: str) -> list[dict[str, float]]:
    """A run's metrics by iteration, as far as they are written."""
    name = f"runs/{run}/progress.jsonl"
    content = store.read(name)
    with undamaged(store, name):
        return whole_records(content or b"")


def _progress(store: Store, run: str, status: RunStatus) -> pd.DataFrame:
    table = pd.DataFrame(_told(store, run))
    if table.empty:
        return table
    # RLlib hands metrics over in any order.
    table = table[["iteration", *sorted(set(table.columns) - {"iteration"})]]
    return _labelled(table.assign(method=status.method, seed=status.seed), status.setting, status.values)


def _line(status: RunStatus, metric: str) -> pd.DataFrame:
    metrics = {
        key: value for key, value in status.metrics.items() if key == metric or is_score(key) or is_validation(key)
    }
    was_begun = status.hostname is not None  # else there is nothing to tell, not nothing done
    told = {key: getattr(status, key) if was_begun or key in ON_RECORD[:3] else None for key in ON_RECORD}
    line = pd.DataFrame([told | metrics])
    return _labelled(line, status.setting, status.values)


def _baselines(plan: Plan, store: Store, done: Sequence[RunStatus]) -> dict[str, tuple[Values, pd.DataFrame]]:
    """Rows of fixed rules and oracles: each game once, with the searched values that all its settings share."""
    shared: dict[str, Values] = {}
    for values, preset in dict.fromkeys((tuple(s.values.items()), s.preset) for s in done):
        setting = plan.setting(dict(values), preset)
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
