"""What one folder holds for a report: a sweep's files, or a single run's with the baselines trained beside it.

Reads a sweep that is still running as well: what is missing then is said in `notes`, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from mermaide_ray.config_file import merge, one_line
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment, load_preset, overlaid, varied
from mermaide_ray.metrics import ROW_METRICS, STEPS
from mermaide_ray.report.files import read_progress, read_record, read_rows, read_settings
from mermaide_ray.report.names import SCORE, is_trained
from mermaide_ray.storage import completed, what_is
from mermaide_ray.sweep.file import SWEEP_FILE, validate_sweep
from mermaide_ray.sweep.plan import Plan
from mermaide_ray.sweep.sections import typed
from mermaide_ray.sweep.status import DONE, FAILED, ON_RECORD, SETTING

# What tells the rows of one score apart.
KEYS = ("method", "seed", "split", "task", "family", "k")
MEASURES = tuple(metric.key for metric in ROW_METRICS)
# Columns of the agents' hyperparameters.
PARAM = "param."
# What a member of a population is called, beside the settings that it ended with.
MEMBER = "member"
TRIAL = ("trial", *ON_RECORD[:3])
LABELS = ("method", "split", "condition", "family", "trial")


@dataclass(frozen=True)
class Source:
    """One folder, read.

    Attributes:
        folder: Where.
        rows: Evaluation rows: KEYS, `condition`, the MEASURES that there are, setting.* and param.* columns, and
            `exploration` (not in older ones).
        document: The resolved sweep.yaml of a sweep, else the run's config.yaml; empty where there is none.
        provenance: provenance.json.
        is_sweep: Whether it is a sweep's folder.
        trials: A row per trial x seed of a sweep; None where it has not been written.
        configs: Method -> all settings of a plain run, of the baselines beside it, or of a sweep (in the first of its
            settings); of what another version wrote only what it tells.
        notes: Sentences on what is missing.
    """

    folder: Path
    rows: pd.DataFrame
    document: dict[str, Any]
    provenance: dict[str, Any]
    is_sweep: bool
    trials: pd.DataFrame | None = None
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the report calls the folder."""
        return self.folder.resolve().name

    def scored_with(self, method: str, condition: str) -> dict[str, Any]:
        """The settings with which a method was scored in a condition, and whose agents."""
        conditions = self.document.get("conditions") if self.is_sweep else None
        told = conditions.get(condition) if isinstance(conditions, Mapping) else None
        own = self.configs.get(method, {})
        if not isinstance(told, Mapping):
            return own | {"split": condition}
        laid_over = told.get("settings")
        own = overlaid(own, laid_over) if isinstance(laid_over, Mapping) else own
        return own | {"split": told.get("split", "test")}


def read_source(folder: Path) -> Source:
    """Reads a sweep's or a run's folder.

    Raises:
        InputError: No such folder, nothing to report in it, or a file in it can't be read.
    """
    if not folder.is_dir():
        raise InputError(f"a report needs the folder of a sweep or a run, got {folder}, which is none")
    source = _read_sweep(folder) if (folder / SWEEP_FILE).is_file() else _read_run(folder)
    return replace(source, notes=(*source.notes, *_taken_for_rules(source)))


def _read_run(folder: Path) -> Source:
    rows = _rows(folder / "rows.parquet")
    if rows is None:
        raise InputError(
            f"a report needs rows.parquet (a run's) or sweep.yaml (a sweep's), got neither in {folder}{what_is(folder)}"
        )
    configs = {}
    for run in (folder, *sorted(folder.glob("baselines/*/"))):
        config = read_settings(run / "config.yaml")
        if config:
            configs[str(config.get("name", run.name))] = _resolved(config)
    settings = read_settings(folder / "config.yaml")
    return Source(folder, rows, settings, read_record(folder / "provenance.json"), is_sweep=False, configs=configs)


def _read_sweep(folder: Path) -> Source:
    settings = read_settings(folder / SWEEP_FILE)
    rows, notes = _rows(folder / "rows.parquet", members=_breeds(settings)), []
    planned = planned_runs(settings, str(folder / SWEEP_FILE))
    trials = read_rows(folder / "trials.parquet", TRIAL, optional=lambda _: True)
    begun = _on_record(folder)
    # Given more seeds or samples, a sweep writes its tables again when it has ended.
    has_gone_on = trials is not None and _counts(begun) > _counts(trials)
    if rows is None or has_gone_on:
        parts = [part for run in sorted(folder.glob("runs/*/")) if (part := _rows_of_trial(run, settings)) is not None]
        if not parts:
            raise InputError(f"a report needs at least one finished trial, got none yet in {folder}")
        covers = f"this report covers the {len(parts)} training runs that are finished"
        covers += f", of {planned} planned" if planned else ""
        if rows is None:
            notes.append(f"{folder.name}: the sweep has not ended (no rows.parquet); {covers}, and no fixed rules.")
        else:
            parts.append(rows[~rows["method"].map(is_trained).astype(bool)])
            notes.append(
                f"{folder.name}: the sweep has gone on since its tables were written, and has not ended; {covers}. "
                "Fixed rules, training curves, calibration and interventions over time are as in these tables."
            )
        rows = _categories(pd.concat(parts, ignore_index=True))
        trials = begun if len(begun) else trials
    notes += _gaps(settings, planned, rows, trials, folder.name)
    provenance = read_record(folder / "provenance.json")
    configs = _configs(_as_scored(settings, folder), str(folder / SWEEP_FILE), rows)
    return Source(folder, rows, settings, provenance, is_sweep=True, trials=trials, configs=configs, notes=tuple(notes))


def _taken_for_rules(source: Source) -> Iterator[str]:
    """What was trained before names were refused a ':', by which rules of one's own are told."""
    settings = source.document.get("settings") if source.is_sweep else source.document
    own = [str(settings.get("name"))] if isinstance(settings, Mapping) else []
    for name in dict.fromkeys([*source.configs, *own]):
        if ":" in name:
            yield (
                f"{source.name}: {name} was trained, but is taken for a rule, which has no training seeds: there is a "
                "':' in its name."
            )


def _resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, with their defaults; as they stand if this version can't read them.

    Their families are not checked: those of one's own would be imported, and a report runs nobody's code.
    """
    try:
        return Experiment.model_validate(completed(dict(settings))).to_dict()
    except ValidationError:
        return dict(settings)


def _as_scored(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A sweep's settings; of one from before there were rehearsals, without them."""
    ran = (read_settings(config).get("evaluation") for config in sorted(folder.glob("runs/*/config.yaml"))[:1])
    if any(isinstance(evaluation, Mapping) and "rehearsals" not in evaluation for evaluation in ran):
        return merge({"settings": {"evaluation": {"rehearsals": 0}}}, settings)
    return settings


def _configs(sweep: Mapping[str, Any], where: str, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Method -> settings of a sweep."""
    try:
        plan = Plan(validate_sweep(sweep, where), where)
        shared = Experiment.model_validate(plan.given(plan.some_values, where))
        methods = [load_preset(method, where) for method in plan.sweep.methods]
        every = [_resolved(varied(shared, method)) for method in methods] or [shared.to_dict()]
        return {str(settings["name"]): settings for settings in every}
    except (InputError, ValidationError):
        told = sweep.get("settings")
        trained = filter(is_trained, map(str, pd.unique(rows["method"])))
        return {method: dict(told) for method in trained} if isinstance(told, Mapping) else {}


def _on_record(folder: Path) -> pd.DataFrame:
    """What is on record of each training run that was begun, in columns of trials.parquet."""
    records = [record for run in sorted(folder.glob("runs/*/")) if (record := read_record(run / "status.json"))]
    return pd.DataFrame(records, columns=["trial", *ON_RECORD])


def _counts(trials: pd.DataFrame) -> tuple[int, int]:
    """Training runs that are done, and all that are told of."""
    return int((trials["status"].astype(str) == DONE).sum()), len(trials)


def _breeds(sweep: Mapping[str, Any]) -> bool:
    """Whether a sweep's trials are members of a population, of whom several may end with the same settings."""
    tune = sweep.get("tune")
    return isinstance(tune, Mapping) and tune.get("scheduler") == "pbt"


def _rows(path: Path, members: bool = False) -> pd.DataFrame | None:
    """The rows in a file; with `members`, whose they are as one more setting."""

    def optional(column: str) -> bool:
        return column in (*MEASURES, "condition", "exploration") or column.startswith((SETTING, PARAM))

    rows = read_rows(path, [*KEYS, SCORE, *(["trial"] if members else [])], optional=optional, categorical=True)
    if rows is None:
        return None
    if members:
        named = rows["trial"].astype(str).str.partition("=")[2]
        rows = rows.drop(columns="trial").assign(**{SETTING + MEMBER: named.where(named != "")})
    if "condition" not in rows:
        rows = rows.assign(condition=rows["split"])
    # A metric needs no sixteen digits, and in millions of rows they cost.
    wide = [column for column in rows.columns if column in MEASURES and rows[column].dtype != np.float32]
    return rows.astype(dict.fromkeys(wide, np.float32))


def _categories(rows: pd.DataFrame) -> pd.DataFrame:
    """Text as categories again: stacking frames with different ones gives text."""
    return rows.astype(dict.fromkeys([column for column in LABELS if column in rows], "category"))


def _rows_of_trial(run: Path, sweep: Mapping[str, Any]) -> pd.DataFrame | None:
    """Rows of one training run of an unfinished sweep; the settings as its folder's name tells them."""
    rows = _rows(run / "rows.parquet")
    if rows is None or any(column.startswith(SETTING) for column in rows.columns):
        return rows
    return rows.assign(**{SETTING + key: value for key, value in values_of_run(run, sweep).items()})


def values_of_run(run: Path, sweep: Mapping[str, Any]) -> dict[str, Any]:
    """Searched settings of a training run, as its record tells them, or its folder's name (`num_arms=20,seed=3`)."""
    told = read_record(run / "status.json").get("values")
    if told is None:
        told = dict(part.split("=", 1) for part in run.name.split(",") if "=" in part)
    found = {key: told.get(key, told.get(key.rpartition(".")[2])) for key in _search(sweep)}
    if _breeds(sweep):
        found[MEMBER] = run.name.partition(",")[0].partition("=")[2]
    return {key: number(value) for key, value in found.items() if value is not None}


def number(value: Any) -> Any:
    """A number where the value is one or reads like one, else the value as text."""
    if isinstance(value, bool):
        return str(value).lower()
    value = typed(value) if isinstance(value, str) else value
    if isinstance(value, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return one_line(value)


def _search(sweep: Mapping[str, Any]) -> dict[str, Any]:
    search = sweep.get("search")
    return dict(search) if isinstance(search, Mapping) else {}


def planned_runs(sweep: Mapping[str, Any], where: str) -> int | None:
    """Training runs (settings x seeds) that a resolved sweep asks for.

    None of a sweep that this version can't read, and with Optuna, which may ask for the same settings twice.
    """
    try:
        plan = Plan(validate_sweep(sweep, where), where)
        return None if plan.sweep.tune.searcher == "optuna" else plan.num_runs
    except InputError:
        return None


def _gaps(
    sweep: Mapping[str, Any], planned: int | None, rows: pd.DataFrame, trials: pd.DataFrame | None, name: str
) -> Iterator[str]:
    """What a sweep has not, or not yet, delivered."""
    if trials is not None:
        status = trials["status"].astype(str)
        counts = status.value_counts()
        if counts.get(FAILED, 0):
            yield f"{name}: {counts[FAILED]} of {len(trials)} training runs failed; their scores are missing below."
        unfinished = len(trials) - counts.get(DONE, 0) - counts.get(FAILED, 0)
        if unfinished:
            yield (
                f"{name}: {unfinished} of {len(trials)} training runs were stopped, or have not come to their end; "
                "their scores are missing below."
            )
        if planned and len(trials) < planned:
            yield f"{name}: {planned - len(trials)} of {planned} planned training runs have not begun."
    expected = sweep.get("rows")
    if isinstance(expected, int) and len(rows) != expected:
        yield f"{name}: {len(rows):,} rows, where sweep.yaml expects {expected:,}."


def curves_of(source: Source, keys: tuple[str, ...]) -> dict[str, list[pd.DataFrame]]:
    """Training progress per method: a frame per training run, those of a sweep with their `seed` in `attrs`.

    Args:
        source: The folder.
        keys: Metrics wanted.
    """
    if not source.is_sweep:
        folders = [source.folder, *sorted(source.folder.glob("baselines/*/"))]
        return {
            str(read_settings(folder / "config.yaml").get("name", folder.name)): [
                read_progress(folder / "progress.jsonl")
            ]
            for folder in folders
            if (folder / "progress.jsonl").is_file()
        }
    progress = read_rows(
        source.folder / "progress.parquet",
        ["trial", "method", "seed", STEPS],
        optional=lambda column: column in keys,
        categorical=True,
    )
    curves: dict[str, list[pd.DataFrame]] = {}
    if progress is not None:
        for (method, _, seed), run in progress.groupby(["method", "trial", "seed"], observed=True, sort=True):
            frame = run.drop(columns=["trial", "method"]).sort_values(STEPS, ignore_index=True)
            frame.attrs["seed"] = int(str(seed))
            curves.setdefault(str(method), []).append(frame)
    return curves


def compute_time(source: Source) -> dict[str, float]:
    """Wall and CPU hours of all training runs of a sweep, and the env steps that it trained, as far as they are told.

    CPU hours are those of the processes that trained, not of the actors beside them.
    """
    if source.trials is None:
        return {}
    named = {"wall_s": "wall hours", "cpu_s": "CPU hours (without actors)", "env_steps": "environment steps"}
    found = {}
    for column, name in named.items():
        if column in source.trials:
            told = pd.to_numeric(source.trials[column], errors="coerce")
            if column == "env_steps" and "trained_sources" in source.trials:
                told = told[source.trials["trained_sources"].isna()]
            total = float(told.sum())
            found[name] = total if column == "env_steps" else total / 3600
    return {name: value for name, value in found.items() if math.isfinite(value)}
