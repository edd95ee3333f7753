"""Who plays which episode, where RLlib shares a schedule out between env runners. Knows no game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Turns:
    """One environment's part of the schedule: every `num_workers`-th episode for its env runner, in order of reset.

    RLlib builds all sub-environments of an env runner from one and the same EnvContext, with `vector_index` 0 in each
    (Ray 2.60), so they share a counter that hangs on that context.

    Args:
        config: The EnvContext, or a plain mapping for an environment that is alone.
        tasks: Ids of the tasks to play, over and over; None plays an endless stream: one episode of each task 0, 1, …
        episodes: With `tasks`, episodes of each, one after the other.
    """

    def __init__(self, config: Mapping[str, Any], tasks: Sequence[int] | None, episodes: int) -> None:
        self._tasks, self._episodes = tasks, episodes
        self._first = max(getattr(config, "worker_index", 0) or 0, 1) - 1
        self._stride = max(getattr(config, "num_workers", 0) or 0, 1)
        shared = vars(config) if hasattr(config, "__dict__") else {}
        self._count: list[int] = shared.setdefault("turns_taken", [0])

    def next(self) -> tuple[int, int]:
        """Task id and episode index of the next episode."""
        position = self._first + self._stride * self._count[0]
        self._count[0] += 1
        if self._tasks is None:
            return position, 0
        task, episode = divmod(position % (len(self._tasks) * self._episodes), self._episodes)
        return self._tasks[task], episode
