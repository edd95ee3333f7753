"""What this process may use of the machine, and what its environment asks of it."""

from __future__ import annotations

import math
import os
from pathlib import Path

from mermaide_ray.errors import InputError

# Of a container (cgroup v2): microseconds of CPU time per period, or `max`, and the period.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cpus() -> int:
    """CPUs that it may use: fewer than the machine has under `taskset`, Slurm, or a container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def seconds_from(variable: str, default: float) -> float:
    """A duration that an environment variable gives, in seconds.

    Raises:
        InputError: It gives none.
    """
    given = os.environ.get(variable, str(default))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise InputError(f"{variable} must be a number of seconds >= 0, got {given!r} (environment variable)")
    return seconds
