"""Faults at random moments over long sweeps, and whether the sweeps' results are those that nothing had disturbed.

    python tests/soak.py --faults 30 [--seed 0] [--runs 8]

Four nodes of one machine (`ray.cluster_utils.Cluster`), results in a bucket of an S3-speaking server. While a sweep
runs, sampling actors, trials, whole nodes and the sweep's driver are killed, the server is frozen and a node is slowed
down. The driver is started again with the same command, as its user would do; nothing else is repaired by hand. Sweeps
follow one another until there were faults enough. Each must end with the rows and progress of an undisturbed one, to
the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from conftest import tiny
from crashes import RUNNER, TRIAL, crash, processes, send, slow_down

NODES = 4
ENV_STEPS = 16_800
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
# A sweep whose driver was started again this often in a row without any progress will never end.
_MOST_STARTS = 5
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
answer, sys.stdout = sys.stdout, sys.stderr  # Flask has things to say
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print(*server.get_host_and_port(), file=answer, flush=True)
sys.stdin.read()
"""
_TIMINGS = ["throughput/env_steps_per_s", "throughput/sample_s", "throughput/update_s"]


@dataclass
class Fault:
    """One fault, and what came of it.

    Attributes:
        after: Seconds since the soak began.
        kind: What was done.
        done: Runs that were done by then.
        outcome: Filled in when the sweep has made progress again.
    """

    after: float
    kind: str
    done: int
    outcome: str = ""


class Soak:
    """A cluster, a bucket, and the sweep that is under way.

    Args:
        folder: Of logs and undisturbed results.
        faults: How many to inject.
        runs: Of each sweep.
        seed: Of moments and kinds.
    """

    def __init__(self, folder: Path, faults: int, runs: int, seed: int) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.wanted, self.runs, self.dice = folder, faults, runs, random.Random(seed)
        self.faults: list[Fault] = []
        self.started = time.monotonic()
        self.server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.server.stdout is not None
        host, port = self.server.stdout.readline().split()
        os.environ |= CREDENTIALS
        import boto3

        self.bucket = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        self.bucket.create_bucket(Bucket="soak")
        self.query = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        logging.getLogger("ray").setLevel(logging.ERROR)
        self.store = {"object_store_memory": 80 * 2**20}
        head = {"num_cpus": 0, "include_dashboard": False, **self.store}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(NODES):
            self.cluster.add_node(num_cpus=1, **self.store)
        self.driver: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """Ends everything."""
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.cluster.shutdown()
        self.server.kill()

    def config(self, number: int) -> Path:
        """Another sweep each time: other seeds."""
        evaluation = {"tasks": 6, "episodes": 2, "validation_tasks": 4, "every": 0.1}
        settings = tiny(training={"env_steps": ENV_STEPS}, env_runners={"num_env_runners": 1}, evaluation=evaluation)
        sweep = {
            "question": "Does anything get lost?",
            "settings": {key: value for key, value in settings.to_dict().items() if key not in ("name", "seed")},
            "search": {"environment.cost_weight": {"grid": [0.1, 1.0]}},
            "seeds": [number * 1000 + seed for seed in range(max(1, self.runs // 2))],
            "baselines": ["never"],
        }
        file = self.folder / f"sweep{number}.yaml"
        file.write_text(yaml.safe_dump(sweep), encoding="utf-8")
        return file

    def start(self, number: int, out: str, cluster: bool = True) -> subprocess.Popen[bytes]:
        """The command, as its user gives it, the first time and ever again."""
        command = [sys.executable, "-m", "mermaide_ray", "sweep", str(self.config(number)), "--no-report", "--out", out]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        environment |= {
            "MERMAIDE_CHECKPOINT_SECONDS": "2",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        if cluster:
            environment["RAY_ADDRESS"] = self.cluster.address
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def kept(self, number: int) -> dict[str, str]:
        """What the bucket holds of the runs: name -> fingerprint. It changes with each milestone and checkpoint."""
        pages = self.bucket.get_paginator("list_objects_v2").paginate(Bucket="soak", Prefix=f"sweep{number}/runs/")
        return {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", [])}

    def sweep(self, number: int) -> str:
        """Runs a sweep to its end, through faults; returns its place."""
        out = f"s3://soak/sweep{number}?{self.query}"
        self.driver, starts = self.start(number, out), 0
        seen, since, pending = self.kept(number), time.monotonic(), None
        next_fault = self._soon()
        while True:
            time.sleep(0.5)
            now, kept = time.monotonic(), self.kept(number)
            if kept != seen:
                if pending is not None:
                    pending.outcome += f"went on after {now - since:.0f} s"
                    print(self._line(pending), flush=True)
                    pending, next_fault = None, self._soon()
                seen, starts = kept, 0
            code = self.driver.poll()
            if code == 0:
                if pending is not None:
                    pending.outcome += f"the sweep ended {now - since:.0f} s later"
                    print(self._line(pending), flush=True)
                return out
            if code is not None:
                starts += 1
                assert starts <= _MOST_STARTS, (self.folder / "log.txt").read_text(encoding="utf-8")[-3000:]
                if pending is not None:
                    pending.outcome += f"exit {code}, the same command again; "
                self.driver = self.start(number, out)
            if pending is None and now > next_fault and seen and len(self.faults) < self.wanted:
                done = sum(key.endswith("status.json") for key in seen)
                kind, inject = self._draw()
                pending = Fault(now - self.started, kind, done)
                self.faults.append(pending)
                inject()
                seen, since = self.kept(number), time.monotonic()

    def _soon(self) -> float:
        return time.monotonic() + self.dice.uniform(0, 6)

    def _draw(self) -> tuple[str, Callable[[], None]]:
        """A fault: every kind in turn, in an order of its own each time."""
        kinds = {
            "sampling actor killed": lambda: self._kill(RUNNER),
            "trial killed": lambda: self._kill(TRIAL),
            "node killed": self._crash,
            "driver killed": self._kill_driver,
            "storage frozen": self._freeze,
            "node ten times slower": self._slow_down,
        }
        place = len(self.faults) % len(kinds)
        if place == 0:
            self._order = self.dice.sample(list(kinds), len(kinds))
        kind = self._order[place]
        return kind, kinds[kind]

    def _node(self) -> Any:
        """One that works, if any does."""
        nodes = sorted(self.cluster.worker_nodes, key=lambda node: node.node_id)
        busy = [node for node in nodes if processes(node, TRIAL) or processes(node, RUNNER)]
        return self.dice.choice(busy or nodes)

    def _kill(self, role: str) -> None:
        patience = time.monotonic() + 60
        while not (found := [pid for node in self.cluster.worker_nodes for pid in processes(node, role)]):
            assert time.monotonic() < patience
            time.sleep(0.1)
        send([self.dice.choice(found)], signal.SIGKILL)

    def _crash(self) -> None:
        crash(self.cluster, self._node())
        time.sleep(self.dice.uniform(0, 5))
        self.cluster.add_node(num_cpus=1, **self.store)

    def _kill_driver(self) -> None:
        assert self.driver is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def _freeze(self) -> None:
        self.server.send_signal(signal.SIGSTOP)
        time.sleep(self.dice.uniform(2, 20))
        self.server.send_signal(signal.SIGCONT)

    def _slow_down(self) -> None:
        slow_down(self._node(), seconds=self.dice.uniform(5, 15))

    @staticmethod
    def _line(fault: Fault) -> str:
        return f"{fault.after:6.0f} s  {fault.kind:22}  {fault.done:3d} runs done  {fault.outcome}"

    def check(self, number: int, out: str) -> None:
        """Compares what a sweep left with what an undisturbed one leaves: every run once, and the same in it."""
        from mermaide_ray.sweep.store import Store

        local = self.folder / f"undisturbed{number}"
        assert self.start(number, str(local), cluster=False).wait() == 0
        store = Store(out)
        rows, progress, trials = (_table(store.read(f"{name}.parquet")) for name in ("rows", "progress", "trials"))
        assert len(trials) == trials.groupby(["trial", "seed"]).ngroups == 2 * max(1, self.runs // 2)
        assert set(trials["status"]) == {"done"}
        assert (trials["env_steps"] == ENV_STEPS).all()
        assert not rows.duplicated(
            ["trial", "method", "condition", "seed", "task", "k", "setting.environment.cost_weight"]
        ).any()
        assert not progress.duplicated(["trial", "seed", "iteration"]).any()
        assert store.names("failures") == []
        for mine, name in ((rows, "rows"), (progress, "progress")):
            theirs = pd.read_parquet(local / f"{name}.parquet")
            pd.testing.assert_frame_equal(
                mine.drop(columns=_TIMINGS, errors="ignore"), theirs.drop(columns=_TIMINGS, errors="ignore")
            )


def _table(content: bytes | None) -> pd.DataFrame:
    assert content is not None
    return pd.read_parquet(io.BytesIO(content))


def soak(folder: Path, faults: int, runs: int, seed: int) -> list[Fault]:
    """Sweeps until there were faults enough; returns them. Raises if anything is lost, doubled or different."""
    lab = Soak(folder, faults, runs, seed)
    try:
        number = 0
        while len(lab.faults) < faults:
            before = len(lab.faults)
            out = lab.sweep(number)
            lab.check(number, out)
            print(f"sweep {number}: {len(lab.faults) - before} faults, the same rows as without", flush=True)
            number += 1
        return lab.faults
    finally:
        lab.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--runs", type=int, default=8, help="of each sweep")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak(Path(folder), args.faults, args.runs, args.seed)


if __name__ == "__main__":
    main()
