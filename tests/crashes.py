"""Ways to hurt the nodes of `ray.cluster_utils.Cluster`, which are processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What the processes of actors call themselves: a trial of a sweep, a sampling actor, a learner.
TRIAL, RUNNER, LEARNER = "ray::ResourceTrainable", "ray::LockstepEnvRunner", "ray::_WrappedExecutable"


def processes(node: Any, role: str = "ray::") -> list[int]:
    """Ids of a node's processes that serve a role (any, if not given)."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for pid in map(int, Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()):
        with contextlib.suppress(OSError):
            if role in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def files_below(folder: Path) -> list[Path]:
    """Files at any depth, where some come and go; no links."""
    found = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return [path for path in found if path.is_file() and not path.is_symlink()]


def content(path: Path) -> bytes:
    """Of a file that may be gone by now, as those of processes and of a Ray at work are; empty then."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def send(pids: Sequence[int], number: int) -> None:
    """A signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def crash(cluster: Any, node: Any) -> None:
    """As a machine does: all at once."""
    send(processes(node), signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def vanish(cluster: Any, node: Any) -> list[int]:
    """As a machine does whose power fails: its connections stay open, and nobody answers.

    Returns:
        What is left of it, to be killed in the end.
    """
    left = processes(node)
    send(left, signal.SIGSTOP)
    cluster.remove_node(node, allow_graceful=False)
    return left


def slow_down(node: Any, seconds: float, share: float = 0.1) -> None:
    """Lets a node's processes run only a share of the time."""
    until = time.monotonic() + seconds
    stopped: list[int] = []
    try:
        while time.monotonic() < until:
            stopped = processes(node)
            send(stopped, signal.SIGSTOP)
            time.sleep(0.5 * (1 - share))
            send(stopped, signal.SIGCONT)
            time.sleep(0.5 * share)
    finally:
        send(stopped, signal.SIGCONT)
