"""Ray for one job: a cluster is joined, or Ray is started on this machine and stopped afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import ray
from rich.console import Console

from mermaide_ray.cluster.agreement import check_gpus, check_storage, check_versions
from mermaide_ray.cluster.nodes import said
from mermaide_ray.cluster.resources import Bundle, await_resources
from mermaide_ray.errors import RunFault
from mermaide_ray.machine import cpus


@contextlib.contextmanager
def ray_running(bundles: Sequence[Bundle], console: Console, storage: str | None = None) -> Iterator[None]:
    """Ray, quiet: the cluster that RAY_ADDRESS names, once it is ready for the job, or one on this machine.

    Args:
        bundles: The processes that must run side by side.
        console: Where waiting for them is told.
        storage: Where all nodes write results, if more than the driver does.

    Raises:
        InputError: The cluster can never run the job, or its nodes share no such storage.
        RunFault: Ray can't be reached or started, nodes run other code or can't use their GPUs, or machines do not
            come in time.
    """
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
    # Errors that nobody asks for any more, as of the second of two learners that refuse the same settings.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    joins, mine = joins_cluster(), not ray.is_initialized()
    # The driver has a CPU of its own here; on a cluster it runs on the head, which has none to give.
    workers = sum(round(bundle.get("CPU", 0)) for bundle in bundles) + 1
    here: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(cpus(), workers),
        "include_dashboard": False,
        "log_to_driver": False,
    }
    try:
        if mine:
            ray.init(logging_level=logging.ERROR, **({"log_to_driver": False} if joins else here))
    except Exception as error:
        got = said(error)[0].rstrip(".")
        advice = " (start it again, best when the machine is less busy)" if "timed out" in got else ""
        raise RunFault(f"Ray must start, got: {got}{advice}") from None
    on_main_thread = threading.current_thread() is threading.main_thread()
    # Ray's own handler ends the process with a stack dump; a scheduler's SIGTERM is a Ctrl-C like any other.
    before = signal.signal(signal.SIGTERM, _interrupt) if on_main_thread else None
    try:
        await_resources(bundles, console, grows=joins)
        if any("GPU" in bundle for bundle in bundles):
            check_gpus()
        if joins:
            check_versions()
            if not bundles:
                console.print("this process samples and learns alone (env_runners.num_env_runners: 0)", highlight=False)
            if storage is not None:
                check_storage(storage)
        yield
    finally:
        if on_main_thread:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        if mine:
            ray.shutdown()


def joins_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster: to Ray, an empty one and `local` mean one of its own, started here."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
