"""The agents of a batch of episodes, stepped together, family by family.

Whatever a family asks for beside its own past is answered here: informed agents wait for the principal's announcement
(`Family.hear`), and some care what the principal gets (`Family.perceive`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mermaide_ray.agents.base import Draws, Family, Params, State
from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.noise import Dice


@dataclass
class _Group:
    """Agents of one family: their rows among the N episodes, their learning state."""

    family: Family
    rows: slice | Tensor
    params: Params
    state: State


class Crowd:
    """The agents of N = B * E episodes.

    Args:
        tasks: B tasks. Fastest with the tasks of a family side by side.
        episodes: E.
        dice: For N episodes, tasks major.
    """

    def __init__(self, tasks: Tasks, episodes: int, dice: Dice) -> None:
        self._dice = dice
        self._num, self._num_candidates = dice.priority.shape
        self._steps = torch.arange(len(dice.uniform), dtype=torch.float32)
        self._groups = _groups(tasks, episodes, dice)
        self._waiting = [group for group in self._groups if group.family.hear is not None]
        self._others = [group for group in self._groups if group.family.hear is None]

    @property
    def waiting(self) -> list[str]:
        """Families of the agents that wait for the principal's announcement before they pull."""
        return [group.family.name for group in self._waiting]

    def pull(self, t: int) -> Tensor:
        """The arm that each agent pulls at step t, int64 [N]; -1 of those that wait."""
        arm = torch.empty(self._num, dtype=torch.int64)
        for group in self._others:
            self._act(group, t, arm)
        for group in self._waiting:
            arm[group.rows] = -1
        return arm

    def hear(self, t: int, arm: Tensor, offer: Tensor) -> Tensor:
        """The arms, int64 [N], those of the agents that waited filled in: they pull once they know the offer [N, A]."""
        arm = arm.clone()
        for group in self._waiting:
            assert group.family.hear is not None
            group.state = group.family.hear(group.state, group.params, offer[group.rows])
            self._act(group, t, arm)
        return arm

    def learn(self, t: int, arm: Tensor, agent_reward: Tensor, principal_reward: Callable[[], Tensor]) -> None:
        """All learn from step t.

        Args:
            t: The step.
            arm: int64 [N].
            agent_reward: float [N].
            principal_reward: Gives float [N]; asked only for agents that care.
        """
        for group in self._groups:
            family, rows = group.family, group.rows
            reward = agent_reward[rows]
            if family.perceive is not None:
                reward = family.perceive(group.params, reward, principal_reward()[rows])
            group.state = family.learn(group.state, group.params, self._steps[t], arm[rows], reward)

    def estimates(self) -> Tensor:
        """The agents' estimated mean of each arm, float [N, A]; NaN for families that keep none.

        In the continuous game, of each candidate, [N, G].
        """
        values = torch.full((self._num, self._num_candidates), float("nan"))
        for group in self._groups:
            if "mean" in group.state and group.state["mean"].shape[-1] == self._num_candidates:
                values[group.rows] = group.state["mean"]
        return values

    def is_goal(self, arm: Tensor) -> Tensor:
        """Whether each agent's arm, int64 [N], is one that may be a target, bool [N]; see `Family.goals`."""
        is_goal = torch.ones(self._num, dtype=torch.bool)
        for group in self._groups:
            if group.family.goals is not None:
                goals = torch.tensor(group.family.goals(self._num_candidates))
                is_goal[group.rows] = torch.isin(arm[group.rows], goals)
        return is_goal

    def _act(self, group: _Group, t: int, arm: Tensor) -> None:
        """Writes the pulls of a group at step t into `arm`, int64 [N]."""
        draws = Draws(self._dice.uniform[t, group.rows], self._dice.normal[t, group.rows])
        arm[group.rows] = group.family.act(group.state, group.params, self._steps[t], draws)


def _groups(tasks: Tasks, episodes: int, dice: Dice) -> list[_Group]:
    family_of = tasks.family.repeat_interleave(episodes)
    groups = []
    for index, family in enumerate(tasks.families):
        rows = (family_of == index).nonzero().squeeze(1)
        if not len(rows):
            continue
        first, last = int(rows[0]), int(rows[-1]) + 1
        where: slice | Tensor = slice(first, last) if last - first == len(rows) else rows
        params = {
            name: tasks.params[name].repeat_interleave(episodes)[where].unsqueeze(1) for name in family.hyperparameters
        }
        groups.append(_Group(family, where, params, family.init(params, dice.priority[where])))
    return groups
