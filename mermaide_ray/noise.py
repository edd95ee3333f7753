"""Every random number of an episode, dealt up front.

Draws come from a counter-based generator (Philox) keyed by (seed, split, purpose, iteration, task); episodes of a task
follow one another in its stream, so episode e is the same however many are drawn. A result therefore depends neither on
who samples, nor on the order, nor on a restart, and two methods that ask for the same key meet the same luck.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.environment import MoreDice


class Key(NamedTuple):
    """Whose draws they are: all of a generator's key but the task."""

    seed: int
    split: str
    purpose: str
    iteration: int

    def within(self, part: str) -> Key:
        """The key of a part of this purpose, which has draws of its own."""
        return self._replace(purpose=f"{self.purpose}/{part}")


def generator(seed: int, split: str, purpose: str, iteration: int, task: int) -> np.random.Generator:
    """The generator that belongs to one key; different keys give independent streams."""
    text = f"{seed}|{split}|{purpose}|{iteration}|{task}".encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


@dataclass(frozen=True)
class Dice:
    """All luck of a batch of episodes. N = B * E, tasks major; time first, since episodes are played step by step.

    Attributes:
        priority: float [N, G], a random permutation of 1..G per episode, to break ties between untried candidates
            (arms, or points of a lattice).
        uniform: float [T, N, 2] on [0, 1), for the agents.
        normal: float [T, N, G] standard normal for agents that need them, else [T, N, 0].
        reward_noise: float [T, N] standard normal.
        principal: float [T, N] on [0, 1), for the principal's own sampling.
        more: float [N, …] by name, what only some settings of the game need (`Environment.more_dice`).
    """

    priority: Tensor
    uniform: Tensor
    normal: Tensor
    reward_noise: Tensor
    principal: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, rows: Tensor) -> Dice:
        """The dice of some episodes, int64 [N'], each as often as it is named."""
        return Dice(
            priority=self.priority[rows],
            uniform=self.uniform[:, rows],
            normal=self.normal[:, rows],
            reward_noise=self.reward_noise[:, rows],
            principal=self.principal[:, rows],
            more={name: luck[rows] for name, luck in self.more.items()},
        )


def deal(
    key: Key,
    tasks: Sequence[int],
    episodes: int,
    horizon: int,
    num_candidates: int,
    normals: Sequence[bool],
    first_episode: int = 0,
    more: Mapping[str, MoreDice] | None = None,
) -> Dice:
    """Deals the dice of `episodes` episodes of each task.

    Args:
        key: Whose; each kind of draw has a stream of its own within.
        tasks: Task ids, [B].
        episodes: E, episodes per task.
        horizon: T, pulls per episode.
        num_candidates: G, what an agent chooses among (`Environment.num_candidates`).
        normals: Per task, whether its agent needs normal draws.
        first_episode: Index of the first episode wanted: earlier ones are drawn and dropped.
        more: Law and shape per episode of further arrays, by name; each has a stream of its own.
    """
    import torch

    count = first_episode + episodes
    wanted = slice(first_episode, count)
    shape = (len(tasks), episodes)
    priority = np.empty((*shape, num_candidates), dtype=np.float32)
    uniform = np.empty((*shape, horizon, 2), dtype=np.float32)
    normal = np.zeros((*shape, horizon, num_candidates if any(normals) else 0), dtype=np.float32)
    reward_noise = np.empty((*shape, horizon), dtype=np.float32)
    principal = np.empty((*shape, horizon), dtype=np.float32)
    further = {name: np.empty((*shape, *size), dtype=np.float32) for name, (_, size) in (more or {}).items()}
    ranks = np.broadcast_to(np.arange(1, num_candidates + 1, dtype=np.float32), (count, num_candidates))
    for row, task in enumerate(tasks):

        def stream(what: str, task: int = task) -> np.random.Generator:
            return generator(*key.within(what), task)

        agent = stream("agent")
        uniform[row] = agent.random((count, horizon, 2), dtype=np.float32)[wanted]
        priority[row] = stream("priority").permuted(ranks, axis=1)[wanted]
        reward_noise[row] = stream("reward").standard_normal((count, horizon), dtype=np.float32)[wanted]
        principal[row] = stream("principal").random((count, horizon), dtype=np.float32)[wanted]
        if normals[row]:
            normal[row] = stream("normal").standard_normal((count, horizon, num_candidates), dtype=np.float32)[wanted]
        for name, (law, size) in (more or {}).items():
            draw = stream(name).random if law == "uniform" else stream(name).standard_normal
            further[name][row] = draw((count, *size), dtype=np.float32)[wanted]

    def time_first(array: NDArray[np.float32]) -> Tensor:
        flat = array.reshape(len(tasks) * episodes, *array.shape[2:])
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(flat, 1, 0)))

    return Dice(
        priority=torch.from_numpy(priority.reshape(-1, num_candidates)),
        uniform=time_first(uniform),
        normal=time_first(normal),
        reward_noise=time_first(reward_noise),
        principal=time_first(principal),
        more={name: torch.from_numpy(luck.reshape(-1, *luck.shape[2:])) for name, luck in further.items()},
    )
