"""What a trial of a sweep costs beyond its training, in CPU seconds of all processes together.

    python -m benchmarks.sweep

Two sweeps of tiny runs, a few and many, on as many processes; the difference leaves out what a sweep costs once (Ray's
start, imports in each worker). Scoring counts as training: it is the same work wherever it is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

FEW, MANY = 4, 24
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        spent = {count: _sweep(Path(folder), count) for count in (FEW, MANY)}
    (few, few_training), (many, many_training) = spent[FEW], spent[MANY]
    trials = MANY - FEW
    training = (many_training - few_training) / trials
    whole = (many - few) / trials
    print(f"{FEW} trials {few:.1f} CPU s, {MANY} trials {many:.1f} CPU s")
    print(f"per trial: {whole:.2f} CPU s, {training:.2f} of them training and scoring, {whole - training:.2f} overhead")


def _sweep(folder: Path, count: int) -> tuple[float, float]:
    """CPU seconds of a sweep with `count` trials: of all its processes, and of training and scoring alone."""
    config, out = folder / f"{count}.yaml", folder / f"out{count}"
    settings = {
        "environment": {"num_arms": 4, "horizon": 10},
        "meta_learning": {"meta_batch_size": 8, "query_episodes": 2},
        "world_model": {"hidden_size": 8, "policy_hidden": 8},
        "training": {"env_steps": 24_000},
        "evaluation": {"tasks": 6, "episodes": 2, "validation_tasks": 4},
    }
    sweep = {"question": "What does a trial cost?", "preset": "mermaide", "settings": settings}
    sweep |= {"seeds": count, "baselines": ["never"]}
    config.write_text(yaml.safe_dump(sweep), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "mermaide_ray", "sweep", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    spent: dict[int, float] = {}
    while process.poll() is None:
        spent |= _cpu_seconds(process.pid)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the sweep must succeed, got exit code {process.returncode}")
    return sum(spent.values()), float(pd.read_parquet(out / "trials.parquet")["cpu_s"].sum())


def _cpu_seconds(root: int) -> dict[int, float]:
    """CPU seconds so far of a process and all below it, by process id."""
    parents, spent = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        parents[int(folder.name)] = int(fields[1])
        spent[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    family = {root}
    while below := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= below
    return {pid: spent[pid] for pid in family if pid in spent}


if __name__ == "__main__":
    main()
