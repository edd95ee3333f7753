"""Tiny sweeps for the tests: a file, its plan, its folder, its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from conftest import tiny

from mermaide_ray.cli import main
from mermaide_ray.sweep.file import dump_sweep, load_sweep
from mermaide_ray.sweep.plan import Plan
from mermaide_ray.sweep.run import SweepRun
from mermaide_ray.sweep.store import Store

FEW = ["never", "oracle"]
# Trials one after the other in one process, which takes longer to start than they take to run.
IN_TURN = {"seeds_per_trial": 2, "concurrent": 1}


def write_sweep(folder: Path, name: str = "tiny.yaml", **sections: Any) -> Path:
    """A sweep over two costs and two seeds, whose runs take a second; `sections` are laid over it."""
    settings = tiny().to_dict()
    del settings["name"], settings["seed"]
    sweep = {
        "question": "Does a higher cost make the principal intervene less?",
        "settings": settings,
        "search": {"environment.cost_weight": {"grid": [0.1, 1.0]}},
        "seeds": 2,
        "baselines": FEW,
        "resources": {"seeds_per_trial": 2},
        "answer": {"compare": "environment.cost_weight", "measure": "interventions", "better": "lower"},
    }
    path = folder / name
    path.write_text(yaml.safe_dump(sweep | sections), encoding="utf-8")
    return path


def sweep(*arguments: object) -> int:
    """The command without its report, which takes longer than these sweeps."""
    return main(["sweep", "--no-report", *map(str, arguments)])


def sorted_rows(folder: Path | str, name: str = "rows") -> pd.DataFrame:
    keys = ["trial", "method", "seed", "condition", "k", "task"]
    rows = pd.read_parquet(f"{folder}/{name}.parquet")
    return rows.sort_values(keys, ignore_index=True)


def plan_from(config: Path, **arguments: Any) -> Plan:
    return Plan(load_sweep(config, **arguments), str(config))


def held(config: Path, folder: Path) -> tuple[Plan, Store]:
    """A sweep's plan, and its folder as `mermaide sweep` begins it."""
    store = Store(str(folder))
    store.write("sweep.yaml", dump_sweep(load_sweep(config)).encode())
    return plan_from(config), store


def told_by(run: SweepRun) -> list[tuple[int, float]]:
    told = []
    while not run.is_over:
        score = run.advance()["validation/score_k1"]
        told.append((run.env_steps, score))
    return told
