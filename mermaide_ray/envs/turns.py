"""Who plays which episode, where RLlib shares a schedule out between env runners. Knows no game."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Turns:
    """Positions in the schedule for one environment: every `num_workers`-th for its env runner, in order of reset.

    RLlib builds all sub-environments of an env runner from one and the same EnvContext, with `vector_index` 0 in each
    (Ray 2.60), so they share a counter that hangs on that context.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._first = max(getattr(config, "worker_index", 0) or 0, 1) - 1
        self._stride = max(getattr(config, "num_workers", 0) or 0, 1)
        shared = vars(config) if hasattr(config, "__dict__") else {}
        self._count: list[int] = shared.setdefault("turns_taken", [0])

    def next(self) -> int:
        """The position of the next episode."""
        turn = self._count[0]
        self._count[0] += 1
        return self._first + self._stride * turn
