"""Task distributions: which agents a principal meets, in each split.

A task is one sampled agent: family, hyperparameters, base reward of each arm, target arm. Task `id` of a split is drawn
from its own branch of the seed, so any worker can rebuild it from the id alone, and only ids are ever shipped.
Training agents belong to the training seed; validation and test agents to `agents.seed`, so that all training seeds are
scored on the same agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mermaide_ray.agent_settings import Split
from mermaide_ray.agents import family_named
from mermaide_ray.agents.base import Family
from mermaide_ray.changes import target_path
from mermaide_ray.experiment import Experiment
from mermaide_ray.noise import generator
from mermaide_ray.points import SmoothReward
from mermaide_ray.trajectory import compact_dtype


@dataclass(frozen=True)
class Tasks:
    """A batch of tasks.

    Attributes:
        ids: Task ids, [B].
        families: The mixture's families.
        family: int64 [B], index into `families`.
        params: Hyperparameters by name, float [B]; NaN where a task's family has none of that name.
        base: float [B, A], base mean of each arm; of the continuous game, the vectors of `points.SmoothReward`.
        target: int64 [B], where it moves the first.
        base_range: Ends of the range in which base means are drawn.
        moving: uint8 or int16 [B, T], the target at each pull; None: it never moves.
    """

    ids: tuple[int, ...]
    families: tuple[Family, ...]
    family: Tensor
    params: dict[str, Tensor]
    base: Tensor
    target: Tensor
    base_range: tuple[float, float]
    moving: Tensor | None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, index: Tensor) -> Tasks:
        """The tasks at positions `index`, int64 [B']."""
        return Tasks(
            ids=tuple(self.ids[i] for i in index.tolist()),
            families=self.families,
            family=self.family[index],
            params={name: value[index] for name, value in self.params.items()},
            base=self.base[index],
            target=self.target[index],
            base_range=self.base_range,
            moving=None if self.moving is None else self.moving[index],
        )

    def family_names(self) -> list[str]:
        """The family's name of each task."""
        return [self.families[i].name for i in self.family.tolist()]

    def needs_normals(self) -> list[bool]:
        """Per task, whether its agent draws normals."""
        return [self.families[i].normals for i in self.family.tolist()]


class AgentDistribution:
    """The mixture of families, with ranges per split.

    Args:
        experiment: Validated settings.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._agents = experiment, experiment.agents
        self._environment = environment = experiment.environment
        self._num_arms, space = environment.num_arms, environment.space
        self._smooth = None if space is None else SmoothReward(space, environment.base_length)
        self.families = tuple(family_named(name, space) for name in self._agents.families)
        self._goals = [list(family.goals_among(self._num_arms)) for family in self.families]
        weights = np.array([ranges.weight for ranges in self._agents.families.values()])
        self._cumulative = np.cumsum(weights / weights.sum())

    def meta_batch(self, iteration: int, size: int) -> list[int]:
        """Ids of the training tasks of one iteration, all different: fresh ones, or a choice from the population.

        In a population, ids that are equal modulo its size are the same agent: it may be met several times in a batch,
        each time with luck of its own.
        """
        population = self._agents.size("train")
        if population is None:
            return list(range(iteration * size, (iteration + 1) * size))
        agents = generator(self._experiment.seed, "train", "meta-batch", iteration, 0).integers(population, size=size)
        return [int(agent) + population * place for place, agent in enumerate(agents)]

    def held_out(self, split: Split, count: int) -> Tasks:
        """The first `count` tasks of a split (all of them, in a smaller finite population)."""
        return self.tasks(split, range(self._agents.available(split, count)))

    def tasks(self, split: Split, ids: Sequence[int]) -> Tasks:
        """Builds the tasks with these ids."""
        ranges = [family.ranges(split) for family in self._agents.families.values()]
        names = sorted({name for family in ranges for name in family})
        family = np.empty(len(ids), dtype=np.int64)
        target = np.empty(len(ids), dtype=np.int64)
        params = np.full((len(ids), len(names)), np.nan, dtype=np.float32)
        size = self._num_arms if self._smooth is None else self._smooth.size
        base = np.zeros((len(ids), size), dtype=np.float32)
        low, high = self._agents.base_reward
        for row, task in enumerate(ids):
            rng = self._generator(split, "task", task)
            # One more than the last bound can only come of rounding.
            family[row] = min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(ranges) - 1)
            if self._smooth is None:
                goals = self._goals[family[row]]
                target[row] = goals[rng.integers(len(goals))]
                base[row, goals] = rng.uniform(low, high, len(goals))
            else:
                target[row] = rng.integers(self._smooth.space.size)
                base[row] = self._smooth.draw(rng, low, high)
            for name, (least, most) in ranges[family[row]].items():
                params[row, names.index(name)] = rng.uniform(least, most)
        return Tasks(
            ids=tuple(ids),
            families=self.families,
            family=torch.from_numpy(family),
            params={name: torch.from_numpy(params[:, i].copy()) for i, name in enumerate(names)},
            base=torch.from_numpy(base),
            target=torch.from_numpy(target),
            base_range=self._agents.base_reward,
            moving=self._moving(split, ids, target, family) if self._environment.changes.of_target else None,
        )

    def _moving(self, split: Split, ids: Sequence[int], first: NDArray[np.int64], family: NDArray[np.int64]) -> Tensor:
        """The target of each task at each pull, [B, T]."""
        paths = [
            target_path(self._environment, self._goals[kind], start, self._generator(split, "target moves", task))
            for task, start, kind in zip(ids, first.tolist(), family.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(paths)).to(compact_dtype(self._num_arms))

    def _generator(self, split: Split, purpose: str, task: int) -> np.random.Generator:
        """What a task is drawn from; in a population the same for ids that are equal modulo its size."""
        size = self._agents.size(split)
        return generator(self._experiment.seed_of(split), split, purpose, 0, task if size is None else task % size)
