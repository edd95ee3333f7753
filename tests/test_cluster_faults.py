"""Nodes of one machine that crash at work: one with sampling actors, one with a trial's driver. Nothing may change."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import tiny
from crashes import RUNNER, TRIAL, crash, processes
from rich.console import Console
from soak import CREDENTIALS, soak

# Before any Ray is up: Tune registers what it finds with that one, even when it is down again (ray 2.60).
import mermaide_ray.sweep.tuning  # noqa: F401
from mermaide_ray.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster]


def meanwhile(fault: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=fault, daemon=True)
    thread.start()
    return thread


def test_node_that_crashes_while_its_actor_samples_costs_no_result(cluster: Any) -> None:
    """And one that joins in its place takes part."""
    import ray

    from mermaide_ray.algorithm import MermaideConfig
    from mermaide_ray.cluster.join import ray_running

    first, second = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)

    def learned(disturb: bool) -> dict[str, Any]:
        algorithm = MermaideConfig.of(tiny(env_runners={"num_env_runners": 2})).build_algo()
        group = algorithm.env_runner_group

        def slow_down(runner: Any) -> str:
            meet = runner._meet
            runner._meet = lambda *args: (time.sleep(3), meet(*args))[1]
            return str(ray.get_runtime_context().get_node_id())

        try:
            algorithm.train()
            if disturb:
                where = group.foreach_env_runner(slow_down, local_env_runner=False)
                assert sorted(where) == sorted([first.node_id, second.node_id])
                fault = meanwhile(lambda: (time.sleep(1), crash(cluster, first)))
            started = time.monotonic()
            algorithm.train()
            if disturb:
                fault.join()
                assert time.monotonic() - started < 60
                assert group.num_healthy_remote_workers() == 1
                cluster.add_node(num_cpus=1)
            patience = time.monotonic() + 90
            while group.num_healthy_remote_workers() < 2:
                assert time.monotonic() < patience
                time.sleep(1)
                algorithm._dispatch.restore(at_once=True)
            algorithm.train()
            return dict(algorithm.principal().arrays())
        finally:
            algorithm.stop()

    with ray_running([{"CPU": 1}] * 2, Console(file=io.StringIO())):
        disturbed, undisturbed = learned(disturb=True), learned(disturb=False)
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(disturbed[name], value, err_msg=name)


def test_sweep_that_loses_a_node_of_each_role_ends_with_the_same_rows(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A trial's driver and its sampling actor are on two nodes, and both crash in the middle of a run."""
    monkeypatch.setenv("MERMAIDE_CHECKPOINT_SECONDS", "1")
    evaluation = {"tasks": 6, "episodes": 2, "validation_tasks": 4}
    settings = tiny(training={"env_steps": 60_000}, env_runners={"num_env_runners": 1}, evaluation=evaluation).to_dict()
    del settings["name"], settings["seed"]
    config, root = tmp_path / "arms.yaml", tmp_path / "disturbed"
    sweep = {
        "question": "Does the number of arms change what the principal gains?",
        "settings": settings,
        "search": {"environment.num_arms": {"grid": [3, 4]}},
        "seeds": 1,
        "baselines": ["never"],
    }
    config.write_text(yaml.safe_dump(sweep))
    workers = [cluster.add_node(num_cpus=1) for _ in range(4)]
    crashed: list[str] = []

    def told() -> int:
        return sum(path.read_text().count("\n") for path in root.glob("runs/*/progress.jsonl"))

    def fault() -> None:
        for role in (RUNNER, TRIAL):
            before, node = told(), None
            while node is None or told() < before + 20:
                time.sleep(0.1)
                left = [each for each in workers if each in cluster.worker_nodes]
                node = next((each for each in left if processes(each, role)), None)
            crash(cluster, node)
            crashed.append(role)

    thread = meanwhile(fault)
    command = ["sweep", str(config), "--no-report", "--out"]
    assert main([*command, str(root)]) == 0
    thread.join(timeout=0)
    assert crashed == [RUNNER, TRIAL]
    assert "2 runs done, 0 failed, 0 stopped" in capfd.readouterr().out
    assert main([*command, str(tmp_path / "undisturbed")]) == 0
    for name in ("rows", "progress"):
        tables = [pd.read_parquet(tmp_path / each / f"{name}.parquet") for each in ("disturbed", "undisturbed")]
        timings = ["throughput/env_steps_per_s", "throughput/sample_s", "throughput/update_s"]
        pd.testing.assert_frame_equal(*(table.drop(columns=timings, errors="ignore") for table in tables))


def test_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three faults of those that `python tests/soak.py` makes by the dozen, and that no other test makes."""
    for key, value in CREDENTIALS.items():
        monkeypatch.setenv(key, value)  # so that they are taken away again
    faults = soak(tmp_path, faults=3, runs=2, seed=11)
    assert {fault.kind for fault in faults} == {"driver killed", "storage frozen", "node ten times slower"}
