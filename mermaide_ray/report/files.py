"""Reading a run directory: its progress, its result rows, its name and commit; one clear sentence for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from mermaide_ray.errors import InputError

STEPS = "throughput/env_steps"


def read_progress(path: Path) -> pd.DataFrame:
    """A row per iteration of progress.jsonl, sorted by environment steps.

    A last line cut short is left out: the run is still writing, or was killed. Where a resumed run wrote an iteration
    again, the later line holds.

    Raises:
        InputError: Another line is no JSON object, or none counts environment steps.
    """
    lines = _text(path).splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict):
            if number == len(lines) and not line.endswith("\n"):
                break
            raise InputError(f"every line of {path} must be a JSON object, got {line[:40].strip()!r} in line {number}")
        records.append(record)
    frame = pd.DataFrame(records)
    if STEPS not in frame:
        raise InputError(f"{path} must count `{STEPS}` in its lines, got {sorted(frame.columns) or 'no lines'}")
    return frame.drop_duplicates(STEPS, keep="last").sort_values(STEPS, ignore_index=True)


def read_rows(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    """Some columns of a Parquet file; None where there is no such file, or nothing in it (no world model, say).

    Raises:
        InputError: The file is no Parquet, or lacks one of the columns.
    """
    if not path.is_file():
        return None
    try:
        frame = pd.read_parquet(path)
    # pyarrow raises its own errors, OSError and ValueError among their bases, for every kind of damage.
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a readable Parquet file, got: {' '.join(str(error).split())}") from None
    if frame.empty:
        return None
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"{path} must have the columns {', '.join(columns)}, got none named {', '.join(missing)}")
    return frame[list(columns)]


def method_name(run_dir: Path) -> str:
    """The method's name: `name` of config.yaml, else the directory's own."""
    config = run_dir / "config.yaml"
    if not config.is_file():
        return run_dir.resolve().name
    try:
        settings = yaml.safe_load(_text(config))
    except yaml.YAMLError as error:
        raise InputError(f"{config} must be YAML, got: {' '.join(str(error).split())}") from None
    name = settings.get("name") if isinstance(settings, dict) else None
    return str(name) if name else run_dir.resolve().name


def commit_of(run_dir: Path) -> str | None:
    """The commit that a run was made with, as provenance.json tells it."""
    provenance = run_dir / "provenance.json"
    if not provenance.is_file():
        return None
    try:
        told = json.loads(_text(provenance))
    except json.JSONDecodeError as error:
        raise InputError(f"{provenance} must be JSON, got: {error}") from None
    commit = told.get("commit") if isinstance(told, dict) else None
    return str(commit) if commit else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a readable text file, got: {error}") from None
