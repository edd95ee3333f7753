"""Reading a run directory: its progress, its result rows, its records; one clear sentence for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from mermaide_ray.config_file import read_yaml
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


def read_rows(
    path: Path,
    columns: Sequence[str],
    *,
    optional: Callable[[str], bool] = lambda column: False,
    where: Sequence[tuple[str, str, Any]] | None = None,
    categorical: bool = False,
) -> pd.DataFrame | None:
    """Some columns of a Parquet file; None where there is no such file, or nothing in it (no world model, say).

    Args:
        path: The file.
        columns: Columns that it must have.
        optional: Which further columns are wanted, where there are any.
        where: Which rows, as pyarrow's filters: [(column, operator, value), …], all of which must hold.
        categorical: Text as categories: a tenth of the memory in millions of rows.

    Raises:
        InputError: The file is no Parquet, or lacks one of the columns.
    """
    if not path.is_file():
        return None
    try:
        found = pq.read_metadata(path)
        names = found.schema.to_arrow_schema().names
        missing = [column for column in columns if column not in names]
        if found.num_rows == 0:
            return None
        if not missing:
            wanted = [*columns, *(name for name in names if name not in columns and optional(name))]
            table = pq.read_table(path, columns=wanted, filters=where)
            frame: pd.DataFrame = table.to_pandas(strings_to_categorical=categorical, self_destruct=True)
            return frame[wanted] if len(frame) else None
    # pyarrow raises its own errors, OSError and ValueError among their bases, for every kind of damage.
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a readable Parquet file, got: {' '.join(str(error).split())}") from None
    raise InputError(f"{path} must have the columns {', '.join(columns)}, got none named {', '.join(missing)}")


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that a run or a sweep left; empty where there is no such file."""
    return read_yaml(path) if path.is_file() else {}


def read_record(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file that a run or a sweep left (provenance, status); empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        told = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} must be JSON, got: {error}") from None
    return told if isinstance(told, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a readable text file, got: {error}") from None
