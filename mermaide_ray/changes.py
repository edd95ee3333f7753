"""What changes within an episode: base means and the target.

What the principal wants belongs to the task: targets and the pulls at which they move are the same in all its episodes.
What becomes of the base means belongs to the episode's luck: each episode starts at the task's own, and has its own
walk and its own new means. All of it follows from the dice and the task, so both paths play the same game.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mermaide_ray.environment import Environment

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.agents.distribution import Tasks
    from mermaide_ray.noise import Dice


@dataclass(frozen=True)
class Course:
    """What holds at each pull of N episodes, time first; what stays the same is expanded over time, not copied.

    Attributes:
        base: float [T, N, A], base mean of each arm (continuous: its vector, [T, N, ·]).
        target: int64 [T, N], the target arm.
        since: int64 [T, N], pulls since base means were last redrawn or the target last moved (t before the first).
        since_told: int64 [T, N], pulls since the principal was told that the target moved (t before the first).
    """

    base: Tensor
    target: Tensor
    since: Tensor
    since_told: Tensor


def course_of(environment: Environment, tasks: Tasks, episodes: int, dice: Dice) -> Course:
    """How N = B * E episodes go, tasks major.

    Args:
        environment: The game.
        tasks: B tasks.
        episodes: E.
        dice: For N episodes.
    """
    import torch

    horizon = environment.horizon
    base = tasks.base.repeat_interleave(episodes, 0).expand(horizon, -1, -1)
    target = tasks.target.repeat_interleave(episodes).expand(horizon, -1)
    switched = moved = torch.zeros(target.shape, dtype=torch.bool)
    if environment.changes.of_base:
        switched, base = _base_means(environment, tasks, episodes, dice)
    if tasks.moving is not None:
        target = tasks.moving.T.long().repeat_interleave(episodes, 1)
        moved = torch.cat([moved[:1], target[1:] != target[:-1]])
    return Course(
        base=base,
        target=target,
        since=_pulls_since(switched | moved),
        since_told=_pulls_since(moved & environment.changes.announced),
    )


def _base_means(environment: Environment, tasks: Tasks, episodes: int, dice: Dice) -> tuple[Tensor, Tensor]:
    """Where all base means are redrawn, bool [T, N], and the base means, float [T, N, A]."""
    import torch

    changes, horizon, (low, high) = environment.changes, environment.horizon, tasks.base_range
    mean = tasks.base.repeat_interleave(episodes, 0)
    pays = torch.zeros(len(tasks.families), environment.num_arms, dtype=torch.bool)
    for row, family in zip(pays, tasks.families, strict=True):
        row[list(family.goals_among(environment.num_arms))] = True
    pays = pays[tasks.family.repeat_interleave(episodes)]
    num = len(mean)
    switched = torch.zeros(horizon, num, dtype=torch.bool)
    if changes.base_switches_at:
        switched[list(changes.base_switches_at)] = True
    elif changes.base_switches:
        # The pulls, the first excepted, with the smallest draws.
        first = dice.more["switch_times"].argsort(dim=1, stable=True)[:, : changes.base_switches] + 1
        switched.T.scatter_(1, first, True)
    count = torch.zeros(num, dtype=torch.int64)
    rows = torch.arange(num)
    means = torch.empty(horizon, *mean.shape)
    for t in range(horizon):
        if switched[t].any():
            drawn = low + (high - low) * dice.more["switched_means"][rows, count.clamp(max=changes.num_switches - 1)]
            mean = drawn.where(switched[t].unsqueeze(1) & pays, mean)
            count += switched[t]
        means[t] = mean
        if changes.base_drift:
            mean = reflected(mean + changes.base_drift * dice.more["drift"][:, t], low, high).where(pays, mean)
    return switched, means


def reflected(x: Tensor, low: float, high: float) -> Tensor:
    """`x` folded into [low, high], as often as it takes, at mirrors that stand at both ends."""
    turns = (x - low) / (2 * (high - low))
    return low + (high - low) * (1 - (1 - 2 * (turns - turns.floor())).abs())


def _pulls_since(changed: Tensor) -> Tensor:
    """Pulls since the last change, int64 [T, N], 0 where there is one; the start of the episode counts as one."""
    import torch

    steps = torch.arange(len(changed)).unsqueeze(1)
    if not changed.any():
        return steps.expand_as(changed)
    return steps - (steps * changed).cummax(0).values


def target_path(
    environment: Environment, goals: Sequence[int], first: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A task's target at each pull, [T]: each move is to another goal, uniform over them.

    Args:
        environment: The game.
        goals: Arms that may be the target (`Family.goals_among`), more than one.
        first: The target before the first move.
        rng: The task's own.
    """
    changes, horizon = environment.changes, environment.horizon
    at = changes.target_moves_at or np.sort(rng.choice(horizon - 1, changes.target_moves, replace=False) + 1)
    path = np.full(horizon, first)
    place = goals.index(first)
    for pull in at:
        place = (place + int(rng.integers(1, len(goals)))) % len(goals)
        path[pull:] = goals[place]
    return path
