"""Where a report's numbers come from: commit, versions, commands, hardware, time; and which training runs failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mermaide_ray.report.document_table import Table
from mermaide_ray.report.names import is_trained
from mermaide_ray.report.sources import Source, compute_time
from mermaide_ray.sweep.status import DONE, FAILED

MOST_FAILED = 20
MOST_SEEDS = 10
ABSENT = "–"


def origin_table(sources: Sequence[Source]) -> Table:
    """A column per folder."""
    facts = [_facts(source) for source in sources]
    names = list(dict.fromkeys(name for told in facts for name in told))
    rows = tuple((name, *(told.get(name, ABSENT) for told in facts)) for name in names)
    return Table("provenance", "Provenance", ("", *(source.name for source in sources)), rows, text=1 + len(sources))


def failed_table(sources: Sequence[Source]) -> Table | None:
    """Training runs that have not come to their end; None without any."""
    rows, failed = list[tuple[str, ...]](), False
    for source in sources:
        if source.trials is not None:
            for line in source.trials[source.trials["status"].astype(str) != DONE].to_dict("records"):
                error = line.get("error")
                told = " ".join(str(error).split()) if isinstance(error, str) and error else ABSENT
                failed |= line["status"] == FAILED
                rows.append((source.name, str(line["trial"]), str(line["seed"]), str(line["status"]), told))
    if not rows:
        return None
    more = f" The first {MOST_FAILED} of {len(rows)}; trials.parquet holds all." if len(rows) > MOST_FAILED else ""
    return Table(
        "failed",
        "Training runs that failed or were stopped",
        ("folder", "trial", "seed", "status", "error"),
        tuple(rows[:MOST_FAILED]),
        text=5,
        caption=("The folder failures/ of the sweep holds configs and tracebacks of those that failed." * failed)
        + more,
    )


def _facts(source: Source) -> dict[str, str]:
    told = source.provenance
    facts = {"folder": str(source.folder), "kind": "sweep" if source.is_sweep else "run"}
    if told.get("started"):
        facts["started"] = str(told["started"])
    command = told.get("command")
    if isinstance(command, list):
        facts["command"] = " ".join(map(str, command))
    if codes := _codes(source, "sources", "unknown"):
        facts["sources"] = codes
    if source.trials is not None and source.trials.get("trained_sources", pd.Series()).notna().any():
        facts["sources that trained, elsewhere"] = _codes(source, "trained_sources", "trained here")
    if told.get("commit"):
        facts["commit"] = _commit(told)
    if later := told.get("continued"):
        facts["continued with other code"] = ", ".join(
            f"{one.get('started')}: sources {one.get('sources')}, {_commit(one)}" for one in later
        )
    for key in ("versions", "machine"):
        if isinstance(told.get(key), Mapping):
            facts[key] = _listed(told[key])
    facts["training seeds"] = _seeds(source)
    facts["rows"] = f"{len(source.rows):,}"
    facts |= {
        name: f"{value:,.0f}" if "steps" in name else f"{value:,.2f}" for name, value in compute_time(source).items()
    }
    if source.trials is not None:
        counts = source.trials["status"].astype(str).value_counts()
        facts["training runs"] = ", ".join(f"{count} {status}" for status, count in counts.items())
        if "hostname" in source.trials:
            hosts = sorted(set(source.trials["hostname"].dropna().astype(str)))
            facts["hosts"] = ", ".join(hosts[:MOST_SEEDS]) + (
                f" and {len(hosts) - MOST_SEEDS} more" if len(hosts) > MOST_SEEDS else ""
            )
    return facts


def _commit(told: Mapping[str, Any]) -> str:
    return f"{told.get('commit')}{' with uncommitted changes' if told.get('uncommitted_changes') else ''}"


def _codes(source: Source, column: str, absent: str) -> str:
    """The code that ran, by its hash; of a sweep that of each run, which may have been changed meanwhile."""
    if source.trials is None or column not in source.trials:
        return str(source.provenance.get(column) or "")
    done = source.trials[source.trials["status"].astype(str) == DONE]
    counts = done[column].fillna(absent).astype(str).value_counts()
    return ", ".join(f"{code} ({count} runs)" if len(counts) > 1 else str(code) for code, count in counts.items())


def _listed(told: Mapping[str, Any]) -> str:
    """Nested facts on one line."""
    return ", ".join(
        f"{key} ({_listed(value)})" if isinstance(value, Mapping) else f"{key} {value}" for key, value in told.items()
    )


def _seeds(source: Source) -> str:
    methods = source.rows["method"].astype("category").cat.categories
    trained = source.rows[source.rows["method"].isin([name for name in methods if is_trained(str(name))])]
    seeds = sorted(pd.unique(trained["seed"]).tolist())
    more = f" … {seeds[-1]} ({len(seeds)})" if len(seeds) > MOST_SEEDS else ""
    return ", ".join(map(str, seeds[:MOST_SEEDS])) + more
