"""Reading a run directory: its progress, its result rows, its records; one clear sentence for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from mermaide_ray.config_file import read_yaml
from mermaide_ray.disk import damaged, whole_records
from mermaide_ray.errors import InputError
from mermaide_ray.metrics import STEPS


def read_progress(path: Path) -> pd.DataFrame:
    """A row per iteration of progress.jsonl, as far as it is written.

    Raises:
        InputError: A line is no JSON object, or none counts environment steps.
    """
    try:
        frame = pd.DataFrame(whole_records(_content(path)))
    except ValueError as error:
        raise damaged(path, error, "delete that line") from None
    if STEPS not in frame:
        raise InputError(f"{path} must count `{STEPS}` in its lines, got {sorted(frame.columns) or 'no lines'}")
    return frame


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
        raise damaged(path, error, "delete it, and go on with its run or sweep, which writes it again") from None
    raise InputError(f"{path} must have the columns {', '.join(columns)}, got none named {', '.join(missing)}")


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file that a run or a sweep left; empty where there is no such file."""
    return read_yaml(path) if path.is_file() else {}


def read_record(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file that a run or a sweep left (provenance, status); empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        told = json.loads(_content(path))
    except ValueError as error:
        raise InputError(f"{path} must be JSON, got: {error}") from None
    return told if isinstance(told, dict) else {}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} must be a readable file ({error.strerror})") from None
