"""Nodes of one machine that crash at work: one with sampling actors, one with a trial's driver. Nothing may change."""

from __future__ import annotations

import io
import signal
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
from crashes import LEARNER, RUNNER, TRIAL, crash, processes, send, vanish
from rich.console import Console
from soak import CREDENTIALS, soak

# Before any Ray is up: Tune registers what it finds with that one, even when it is down again (ray 2.60).
import mermaide_ray.sweep.tuning  # noqa: F401
from mermaide_ray.cli import main
from mermaide_ray.config_file import explained_yaml
from mermaide_ray.storage import RunDirectory

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster]

RUNS = "disturbed", "undisturbed"
TIMINGS = ["throughput/env_steps_per_s", "throughput/sample_s", "throughput/update_s"]


def meanwhile(fault: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=fault, daemon=True)
    thread.start()
    return thread


def node_of(cluster: Any, role: str) -> Any:
    """A worker node that serves a role, once there is one."""
    while True:
        for node in set(cluster.worker_nodes):
            if processes(node, role):
                return node
        time.sleep(0.1)


def sweep_file(folder: Path, **env_runners: int) -> Path:
    """A sweep of one run, long enough to be hit."""
    evaluation = {"tasks": 6, "episodes": 2, "validation_tasks": 4}
    settings = tiny(
        training={"env_steps": 43_200, "minibatches": 1}, env_runners=env_runners, evaluation=evaluation
    ).to_dict()
    del settings["name"], settings["seed"]
    sweep = {
        "question": "Does the number of arms change what the principal gains?",
        "settings": settings,
        "search": {"environment.num_arms": {"grid": [4]}},
        "seeds": 1,
        "baselines": ["never"],
    }
    file = folder / "arms.yaml"
    file.write_text(yaml.safe_dump(sweep))
    return file


def tells(root: Path) -> Callable[[], int]:
    """How many iterations the runs of a sweep have told of."""
    return lambda: sum(path.read_text().count("\n") for path in root.glob("runs/*/progress.jsonl"))


def same_tables(folder: Path) -> None:
    """What two sweeps left, timings apart."""
    for name in ("rows", "progress"):
        tables = [pd.read_parquet(folder / each / f"{name}.parquet") for each in RUNS]
        pd.testing.assert_frame_equal(*(table.drop(columns=TIMINGS, errors="ignore") for table in tables))


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
    config = sweep_file(tmp_path, num_env_runners=1)
    for _ in range(4):
        cluster.add_node(num_cpus=1)
    told, crashed = tells(tmp_path / "disturbed"), list[str]()

    def fault() -> None:
        for role in (RUNNER, TRIAL):
            before = told()
            while told() < before + 20:
                time.sleep(0.1)
            crash(cluster, node_of(cluster, role))
            crashed.append(role)

    thread = meanwhile(fault)
    assert main(["sweep", str(config), "--no-report", "--out", str(tmp_path / "disturbed")]) == 0
    thread.join(timeout=0)
    assert crashed == [RUNNER, TRIAL]
    assert "1 runs done, 0 failed, 0 stopped" in capfd.readouterr().out
    assert main(["sweep", str(config), "--no-report", "--out", str(tmp_path / "undisturbed")]) == 0
    same_tables(tmp_path)


def test_run_whose_learner_s_machine_vanishes_ends_with_one_sentence_and_resumes_to_the_same_rows(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other learner waits for it in the middle of a gradient, and would for half an hour."""
    monkeypatch.setenv("MERMAIDE_CHECKPOINT_SECONDS", "1")
    config, run, left = tmp_path / "tiny.yaml", tmp_path / "disturbed", list[int]()
    config.write_text(
        explained_yaml(tiny(training={"env_steps": 19_200, "minibatches": 1}, env_runners={"num_learners": 2}))
    )
    for _ in range(3):
        cluster.add_node(num_cpus=1)

    def fault() -> None:
        while len(RunDirectory(run).read_progress()) < 20 or RunDirectory(run).latest_checkpoint() is None:
            time.sleep(0.05)
        left.extend(vanish(cluster, node_of(cluster, LEARNER)))

    thread = meanwhile(fault)
    try:
        assert main(["train", "--config", str(config), "--out", str(run)]) == 1
        thread.join()
    finally:
        send(left, signal.SIGKILL)
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mermaide: error: every actor must answer, but one is gone: ")
    assert "a run goes on from its last checkpoint with --resume" in last
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "undisturbed")]) == 0
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / each / "rows.parquet") for each in RUNS))
    told = [pd.DataFrame(RunDirectory(tmp_path / each).read_progress()) for each in RUNS]
    pd.testing.assert_frame_equal(*(table.drop(columns=TIMINGS) for table in told))


def test_sweep_that_loses_a_learner_s_node_goes_on_by_itself_to_the_same_rows(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERMAIDE_CHECKPOINT_SECONDS", "1")
    config = sweep_file(tmp_path, num_learners=2)
    for _ in range(4):
        cluster.add_node(num_cpus=1)
    told = tells(tmp_path / "disturbed")

    def fault() -> None:
        while told() < 40:
            time.sleep(0.05)
        crash(cluster, node_of(cluster, LEARNER))

    thread = meanwhile(fault)
    assert main(["sweep", str(config), "--no-report", "--out", str(tmp_path / "disturbed")]) == 0
    assert not thread.is_alive()
    assert "1 runs done, 0 failed, 0 stopped" in capfd.readouterr().out
    assert main(["sweep", str(config), "--no-report", "--out", str(tmp_path / "undisturbed")]) == 0
    same_tables(tmp_path)


def test_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three faults of those that `python tests/soak.py` makes by the dozen, and that no other test makes."""
    for key, value in CREDENTIALS.items():
        monkeypatch.setenv(key, value)  # so that they are taken away again
    faults = soak(tmp_path, faults=3, runs=2, seed=11)
    assert {fault.kind for fault in faults} == {"driver killed", "storage frozen", "node ten times slower"}
