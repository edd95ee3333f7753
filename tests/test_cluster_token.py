"""Without the cluster's token nobody gets in: not as a client, not by the dashboard's API, not by submitting a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from crashes import content, files_below

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster]

# Ray reads mode and token when it is imported: cluster and visitors are processes of their own.
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
about = dict(num_cpus=1, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_agent_listen_port=0)
cluster = Cluster(initialize_head=True, head_node_args={**about, "temp_dir": sys.argv[1]})
print(json.dumps({"gcs": cluster.gcs_address, "dashboard": cluster.webui_url}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""
VISITORS = {
    "client": """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print("in", ray.cluster_resources()["CPU"])
""",
    "dashboard": """
import os, sys, urllib.request
request = urllib.request.Request(f"http://{sys.argv[2]}/api/cluster_status")
if os.environ.get("RAY_AUTH_TOKEN"):
    request.add_header("Authorization", "Bearer " + os.environ["RAY_AUTH_TOKEN"])
print("in", urllib.request.urlopen(request, timeout=20).status)
""",
    "job": """
import sys, time
from ray.job_submission import JobSubmissionClient
for attempt in range(60):
    try:
        print("in", JobSubmissionClient(f"http://{sys.argv[2]}").submit_job(entrypoint="true"))
        break
    except RuntimeError as error:
        if "No available agent" not in str(error):
            raise
        time.sleep(1)  # let in, but the node has not told the dashboard of its agent yet
""",
}
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Address:
    gcs: str
    dashboard: str
    folder: Path


def environment(home: Path, token: str | None) -> dict[str, str]:
    """A process's environment that knows a token, or none."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    given = {} if token is None else {"RAY_AUTH_TOKEN": token}
    return {**known, "HOME": str(home), "RAY_AUTH_MODE": "token", **given}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    home = tmp_path_factory.mktemp("home")
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # pytest's own paths are too long for Ray's sockets
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(folder)],
        env=environment(home, TOKEN),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield Address(**json.loads(process.stdout.readline()), folder=folder)
        process.communicate("", timeout=60)
    shutil.rmtree(folder)


def visit(visitor: str, cluster: Address, home: Path, token: str | None, mode: str = "token") -> tuple[bool, str]:
    """Whether a visitor gets in, and what it says."""
    done = subprocess.run(
        [sys.executable, "-c", VISITORS[visitor], cluster.gcs, cluster.dashboard],
        # Ray asks twenty times, a second apart, before it says that it stays outside.
        env={**environment(home, token), "RAY_AUTH_MODE": mode, "RAY_NUM_REDIS_GET_RETRIES": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode == 0 and done.stdout.startswith("in "), done.stdout + done.stderr


@pytest.mark.parametrize("visitor", VISITORS)
def test_only_who_has_the_token_gets_in(visitor: str, cluster: Address, tmp_path: Path) -> None:
    entered, said = visit(visitor, cluster, tmp_path, TOKEN)
    assert entered, said
    entered, said = visit(visitor, cluster, tmp_path, "f" * 64)
    assert not entered
    assert any(word in said for word in ("401", "403", "Unauthorized", "InvalidAuthToken", "authenticat")), said
    assert TOKEN not in said


@pytest.mark.parametrize("visitor", VISITORS)
def test_who_asks_without_any_token_stays_outside(visitor: str, cluster: Address, tmp_path: Path) -> None:
    assert not visit(visitor, cluster, tmp_path, None, mode="disabled")[0]


def test_token_is_in_no_process_list_and_in_no_log(cluster: Address) -> None:
    commands = [content(path) for path in Path("/proc").glob("[0-9]*/cmdline") if int(path.parent.name) != os.getpid()]
    assert any(b"gcs_server" in command for command in commands)
    assert not any(TOKEN.encode() in command for command in commands)
    logs = files_below(cluster.folder)
    assert any(path.name == "gcs_server.out" for path in logs)
    assert not [path for path in logs if TOKEN.encode() in content(path)]
