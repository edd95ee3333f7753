"""What this process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path

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
