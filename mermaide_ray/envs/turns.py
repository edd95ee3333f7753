"""Which episodes an environment plays, and who plays which where RLlib shares them out. Knows no game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, ValidationError

from mermaide_ray.agent_settings import Split
from mermaide_ray.errors import InputError
from mermaide_ray.settings import Section, Whole, sentence


class Schedule(Section):
    """What every game's `env_config` may hold: which of its episodes to play."""

    split: Split = Field("train", description="whose agents, or followers")
    tasks: tuple[Whole, ...] | None = Field(
        None, min_length=1, description="tasks to play, over and over; none = one episode of each task 0, 1, ..."
    )
    episodes: Whole = Field(1, ge=1, description="with `tasks`, episodes of each, one after the other")
    purpose: str = Field("stock", description="part of the dice's key, as in `noise.generator`")
    iteration: Whole = Field(0, ge=0, description="likewise")

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """A validated `env_config`.

        Raises:
            InputError: With one sentence for the first thing that is wrong.
        """
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            raise InputError(sentence(cls, error, [("env_config", config)])) from None


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
