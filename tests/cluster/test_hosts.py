"""The whole way, for real: `ray up cluster/local.yaml` on machines of their own, runs and sweeps through faults, down.

The machines are namespaces of this one (hosts.py). What a run or sweep leaves must be what an undisturbed one leaves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from crashes import content, files_below
from hosts import HOME, NETWORK, REPOSITORY, SHARED, Hosts, why_not

from mermaide_ray.cli import main

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]

FILE = f"{HOME}/local.yaml"
RESULTS = f"{SHARED}/results"
API = "http://127.0.0.1:8265"
# Ray takes a node for dead after a minute without a heartbeat: 75 outlasts that, and makes the test a minute longer.
CUT_SECONDS = float(os.environ.get("CUT_SECONDS", "20"))
SETTINGS = {
    "environment.num_arms": "4",
    "environment.horizon": "20",
    "meta_learning.meta_batch_size": "8",
    "meta_learning.query_episodes": "2",
    "world_model.hidden_size": "8",
    "training.env_steps": "33600",
    "evaluation.k": "[0, 1]",  # `ray submit` tears it apart at the space
    "evaluation.tasks": "6",
    "evaluation.episodes": "2",
    "evaluation.validation_tasks": "4",
}
SWEEP = """
question: Does the number of arms change what the principal gains?
name: arms
settings:
  environment: {horizon: 10}
  meta_learning: {meta_batch_size: 8, query_episodes: 2}
  world_model: {hidden_size: 8, policy_hidden: 8}
  training: {env_steps: 12000}
  evaluation: {tasks: 6, episodes: 2, validation_tasks: 4}
search:
  environment.num_arms: {grid: [3, 4, 5]}
seeds: 1
baselines: [never]
"""


def settings() -> list[str]:
    return [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


@contextmanager
def meanwhile(*arguments: str, log: Path) -> Iterator[None]:
    """A command on this machine beside, which must have gone well in the end."""
    command = [sys.executable, "-m", "mermaide_ray", *arguments]
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield
            process.wait(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def lab() -> Iterator[Hosts]:
    """A cluster that `ray up` made, and the laptop that it was made from."""
    with Hosts(["head", "worker1", "worker2", "laptop"]) as hosts:
        text = (REPOSITORY / "cluster" / "local.yaml").read_text()
        for placeholder, value in {
            "CHANGE_ME_head_address": f"{NETWORK}.1",
            "CHANGE_ME_worker_address, CHANGE_ME_worker_address": f"{NETWORK}.2, {NETWORK}.3",
            "CHANGE_ME_user": "root",
            "CHANGE_ME_shared_folder": RESULTS,
        }.items():
            assert placeholder in text
            text = text.replace(placeholder, value)
        laptop = hosts.hosts["laptop"]
        (laptop.work / "home" / "local.yaml").write_text(text)
        (hosts.shared / "arms.yaml").write_text(SWEEP)
        laptop.run("(umask 077; ray get-auth-token --generate) && chmod 600 ~/.ray/auth_token")
        assert "nothing to find fault with" in laptop.run(f"mermaide cluster check {FILE}")
        laptop.run(f"ray up -y {FILE}", timeout=600)
        yield hosts
        laptop.run(f"ray down -y {FILE}", timeout=300)
        patience = time.monotonic() + 180
        while any(hosts.hosts[name].pids("raylet/raylet") for name in ("head", "worker1", "worker2")):
            assert time.monotonic() < patience, "ray down must end Ray everywhere"
            time.sleep(2)


def submit(lab: Hosts, arguments: str, fault: Callable[[], None] | None = None) -> str:
    """What a command prints that is submitted to the cluster; `fault` happens while it runs."""
    command = f"ray submit {FILE} cluster/submit.py -- {arguments}"
    with lab.hosts["laptop"].popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            if fault is not None:
                fault()
            said, _ = process.communicate(timeout=900)
        finally:
            process.kill()
    assert process.returncode == 0, said[-3000:]
    return said


def wait_for(happened: Callable[[], bool], seconds: float = 300) -> None:
    patience = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < patience
        time.sleep(0.2)


def same_rows(one: Path, other: Path) -> None:
    keys = ["method", "split", "seed", "task", "k"]
    rows = [pd.read_parquet(path).sort_values(keys, kind="stable").reset_index(drop=True) for path in (one, other)]
    pd.testing.assert_frame_equal(rows[0], rows[1], check_exact=False, rtol=1e-4, atol=1e-4)


def test_run_through_a_killed_node_and_a_cut_link_ends_like_an_undisturbed_one(lab: Hosts, tmp_path: Path) -> None:
    progress = lab.shared / "results" / "mine" / "progress.jsonl"
    workers = lab.hosts["worker1"], lab.hosts["worker2"]
    killed = []

    def told(iterations: int) -> bool:
        return progress.exists() and progress.read_text().count("\n") >= iterations

    def faults() -> None:
        wait_for(lambda: told(10))
        killed.append(workers[0].kill("raylet/raylet"))
        wait_for(lambda: told(40))
        with workers[1].cut_off():
            time.sleep(CUT_SECONDS)

    arguments = " ".join(settings())  # as `ray submit` will
    with meanwhile("train", *settings(), "--out", str(tmp_path / "undisturbed"), log=tmp_path / "log.txt"):
        submit(lab, f"train {arguments} --set env_runners.num_env_runners=4 --out {RESULTS}/mine", faults)
    assert killed == [1]
    # The results come back, and stand on their own.
    lab.hosts["laptop"].run(
        f"mkdir {HOME}/results && ray rsync-down {FILE} {RESULTS}/mine/ {HOME}/results/", timeout=120
    )
    mine = lab.hosts["laptop"].work / "home" / "results"
    same_rows(mine / "rows.parquet", tmp_path / "undisturbed" / "rows.parquet")
    told_here, told_there = (
        [json.loads(line)["principal/return"] for line in (run / "progress.jsonl").read_text().splitlines()]
        for run in (tmp_path / "undisturbed", mine)
    )
    assert told_there == pytest.approx(told_here, abs=1e-3)
    assert main(["evaluate", str(mine), "--tasks", "2", "--episodes", "1", "--k", "0"]) == 0


def test_sweep_through_a_killed_node_ends_complete(lab: Hosts, tmp_path: Path) -> None:
    root = lab.shared / "results" / "arms-laptop"

    def fault() -> None:
        wait_for(lambda: any(root.glob("runs/*/progress.jsonl")))
        # The node of a trial that is under way.
        assert any(lab.hosts[name].kill("raylet/raylet") for name in ("worker2", "worker1"))

    here = ["sweep", str(lab.shared / "arms.yaml"), "--no-report", "--out", str(tmp_path / "undisturbed")]
    with meanwhile(*here, log=tmp_path / "log.txt"):
        said = submit(lab, f"sweep {SHARED}/arms.yaml --no-report", fault)
    assert "3 runs done, 0 failed, 0 stopped" in said
    keys = ["trial", "method", "condition", "seed", "task", "k", "setting.environment.num_arms"]
    rows = [
        pd.read_parquet(folder / "rows.parquet").sort_values(keys, kind="stable").reset_index(drop=True)
        for folder in (root, tmp_path / "undisturbed")
    ]
    assert not rows[0].duplicated(keys).any()
    pd.testing.assert_frame_equal(rows[0], rows[1], check_exact=False, rtol=1e-4, atol=1e-4)
    # What comes back is all that a report needs.
    laptop = lab.hosts["laptop"]
    laptop.run(f"mkdir {HOME}/arms && ray rsync-down {FILE} {RESULTS}/arms-laptop/ {HOME}/arms/", timeout=120)
    laptop.run(f"mermaide report {HOME}/arms")
    assert "Does the number of arms change" in (laptop.work / "home/arms/report/report.html").read_text()


def test_job_is_submitted_through_the_tunnel_with_the_code_of_the_laptop(lab: Hosts) -> None:
    laptop, run = lab.hosts["laptop"], f"{RESULTS}/job"
    # Learners on other machines than the driver, whose checkpoints hold what is brought from there.
    short = {**SETTINGS, "training.env_steps": "9600", "env_runners.num_learners": "2"}
    arguments = " ".join(f"--set '{key}={value}'" for key, value in short.items())
    command = f"ray job submit --working-dir . -- mermaide train {arguments} --out {run}"
    with laptop.popen(f"ray dashboard {FILE}", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(
                lambda: (
                    "401" in laptop.run(f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' {API}/api/jobs/", check=False)
                )
            )
            refused = laptop.run(f"RAY_AUTH_TOKEN={'f' * 64} RAY_API_SERVER_ADDRESS={API} {command}", check=False)
            assert "uthenticat" in refused or "InvalidAuthToken" in refused
            said = laptop.run(f"RAY_API_SERVER_ADDRESS={API} {command}", timeout=600)
        finally:
            process.kill()
    assert "succeeded" in said
    assert f"TensorBoard events in {run}" in said  # what the command prints comes back
    job = lab.shared / "results" / "job"
    assert (job / "rows.parquet").is_file()
    assert list(job.glob("checkpoints/*/rllib/learner_group/learner/rl_module/principal/module_state.*"))


def test_sweep_into_a_folder_of_the_head_alone_is_refused_before_anything_starts(lab: Hosts) -> None:
    command = f"ray submit {FILE} cluster/submit.py -- sweep {SHARED}/arms.yaml --storage /tmp/mine"
    said = lab.hosts["laptop"].run(command, timeout=600, check=False)
    assert "results must go where every node writes, but worker" in said
    assert "--out must be a folder that all nodes share, or a bucket" in said


def test_run_that_the_cluster_can_never_hold_is_refused_at_once(lab: Hosts) -> None:
    command = f"ray submit {FILE} cluster/submit.py -- train --set env_runners.num_env_runners=500"
    started = time.monotonic()
    said = lab.hosts["laptop"].run(command, timeout=600, check=False)
    assert time.monotonic() - started < 300  # far from the ten minutes that a run waits for machines to come
    assert "must have room for 500 CPUs in 500 processes at the same time, but it has" in said


def test_tensorboard_is_reached_through_the_tunnel_and_the_dashboard_is_not_open(lab: Hosts) -> None:
    laptop = lab.hosts["laptop"]
    closed = laptop.run(f"curl -sS -m 5 http://{NETWORK}.1:8265/", check=False)
    assert "refused" in closed or "Couldn't connect" in closed
    command = f"ray exec -p 6006 {FILE} 'tensorboard --logdir {RESULTS} --port 6006'"
    with laptop.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: "<title>" in laptop.run("curl -s -m 5 http://127.0.0.1:6006/", check=False), 120)
        finally:
            process.kill()


def test_who_is_on_the_network_without_the_token_stays_outside(lab: Hosts) -> None:
    # Ray asks twenty times, a second apart, before it says that it stays outside.
    wrong = f"RAY_NUM_REDIS_GET_RETRIES=2 RAY_AUTH_TOKEN={'f' * 64}"
    visit = f"""{wrong} python -c 'import ray; ray.init("{NETWORK}.1:6379"); print("in")'"""
    said = lab.hosts["laptop"].run(visit, timeout=120, check=False)
    assert "in" not in said.splitlines()
    assert "uthentica" in said or "InvalidAuthToken" in said


def test_token_is_in_no_result_no_log_and_no_process_list(lab: Hosts) -> None:
    """After all of the above. It lies in its own file, in each home, and nowhere else."""
    secret = (lab.hosts["laptop"].work / "home" / ".ray" / "auth_token").read_bytes().strip()
    assert len(secret) == 64
    commands = [content(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert any(b"gcs_server" in command for command in commands)
    assert not any(secret in command for command in commands)
    files = files_below(lab.work)
    holders = {path.relative_to(lab.work).as_posix() for path in files if secret in content(path)}
    assert holders == {f"{host}/home/.ray/auth_token" for host in lab.hosts}
    assert any(path.name == "rows.parquet" for path in files)
    assert any(path.name == "raylet.out" for path in files)
