"""How much of the game is played at once, which bounds memory: for whoever plays many tasks. Knows no principal.

Which episodes are played side by side changes nothing (`lockstep.play`).
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.environment import Environment

# Floats of dice and agent state held at once (128 MiB), and episodes in one `play`, beyond which nothing is won.
MOST_FLOATS, MOST_EPISODES = 2**25, 2**14


def tasks_at_once(environment: Environment, tasks: Tasks, episodes: int) -> int:
    """How many of the tasks may be played at once, E = `episodes` of each; at least one."""
    normals = any(family.normals for family in tasks.families)
    candidates = environment.num_candidates
    per_episode = environment.horizon * (4 + candidates * normals) + 8 * candidates
    per_episode += sum(prod(size) for _, size in environment.more_dice.values())
    if environment.space is not None:
        per_episode += 2 * candidates**2  # a Gaussian process keeps a covariance
    return max(1, min(MOST_FLOATS // per_episode, MOST_EPISODES) // episodes)


def blocks_of(tasks: Tasks, at_once: int) -> tuple[Tensor, ...]:
    """The tasks' positions, int64 [b] each with b <= `at_once`: those of a family side by side, stepped fastest so."""
    return torch.split(tasks.family.argsort(stable=True), at_once)
