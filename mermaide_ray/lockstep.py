"""The game, played by thousands of pairs of principal and agent in lock step. Knows no Ray and no network.

Given tasks, dice and a principal, `play` is a pure function: who calls it, with which other episodes beside, changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mermaide_ray.agents.base import Draws, Family, Params, State
from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.changes import course_of
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Environment
from mermaide_ray.noise import Dice, Key, deal
from mermaide_ray.trajectory import Trajectories, compact_dtype, view_of


@dataclass(frozen=True)
class Seen:
    """What a principal may know before pull t. N episodes, tasks major.

    Attributes:
        step: t.
        last_arm: int64 [N], last symbol seen as a label (`View.symbol`: previous pull); -1 before there is one.
        last_action: int64 [N], previous action as the principal names it; -1 at t = 0.
        target: int64 [N], the target arm, as far as the principal was told.
        uniform: float [N] on [0, 1), the principal's own dice for this step.
        since: Pulls since it was told that the target moved, int64 [N], or t.
        news: float [N, X], what it is told of a moving target (`View.news`); None: nothing ever.
    """

    step: int
    last_arm: Tensor
    last_action: Tensor
    target: Tensor
    uniform: Tensor
    since: Tensor | int
    news: Tensor | None = None


class Hidden:
    """What only a privileged oracle may look at."""

    def __init__(
        self, groups: list[_Group], next_arm: Tensor, target: Tensor, num_candidates: int, since: Tensor | int
    ) -> None:
        self._groups = groups
        self.next_arm = next_arm
        """int64 [N], the arm about to be pulled; -1 for agents that wait for the principal's announcement."""
        self.target = target
        """int64 [N], the one that holds."""
        self.since = since
        """Pulls since base means were redrawn or the target moved, int64 [N], or t."""
        self._num_candidates = num_candidates

    def estimates(self) -> Tensor:
        """The agents' estimated mean of each arm, float [N, A]; NaN for families that keep none.

        In the continuous game, of each candidate, [N, G].
        """
        values = torch.full((len(self.next_arm), self._num_candidates), float("nan"))
        for group in self._groups:
            if "mean" in group.state and group.state["mean"].shape[-1] == self._num_candidates:
                values[group.rows] = group.state["mean"]
        return values

    def next_is_goal(self) -> Tensor:
        """Whether the next arm is one that may be a target, bool [N]; see `Family.goals`."""
        is_goal = torch.ones(len(self.next_arm), dtype=torch.bool)
        for group in self._groups:
            if group.family.goals is not None:
                goals = torch.tensor(group.family.goals(self._num_candidates))
                is_goal[group.rows] = torch.isin(self.next_arm[group.rows], goals)
        return is_goal


class Principal(Protocol):
    """Whoever steers: a fixed rule, an oracle, or a trained network."""

    def begin(self, num_episodes: int) -> None:
        """Forgets everything before `num_episodes` new episodes."""

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        """The action of each episode, int64 [N], as the principal names it. Only oracles look at `hidden`."""


@runtime_checkable
class Announcing(Principal, Protocol):
    """A principal whose policy agents may know: needed where a family in the game has `hear`."""

    def probabilities(self) -> Tensor:
        """With what probabilities `intervene` chose just now, float [N, I], actions as the principal names them."""


@dataclass
class _Group:
    """Agents of one family: their rows among the N episodes, their learning state."""

    family: Family
    rows: slice | Tensor
    params: Params
    state: State

    def hear(self, offer: Tensor) -> None:
        """Tells informed agents the offer, float [N, A] of all episodes."""
        assert self.family.hear is not None
        self.state = self.family.hear(self.state, self.params, offer[self.rows])

    def pull(self, arm: Tensor, steps: Tensor, dice: Dice, t: int) -> None:
        """Writes the pulls of these agents at step t into `arm`, int64 [N] of all episodes."""
        draws = Draws(dice.uniform[t, self.rows], dice.normal[t, self.rows])
        arm[self.rows] = self.family.act(self.state, self.params, steps[t], draws)


def play(
    environment: Environment, tasks: Tasks, episodes: int, dice: Dice, principal: Principal, horizon: int | None = None
) -> Trajectories:
    """Plays `episodes` episodes of each task.

    Args:
        environment: The game.
        tasks: B tasks. Fastest with the tasks of a family side by side.
        episodes: E.
        dice: For N = B * E episodes, tasks major.
        principal: Chooses the interventions; `Announcing` if agents are informed of its policy.
        horizon: Stop after fewer pulls than the environment's horizon.

    Returns:
        Trajectories [B, E, T].
    """
    view, incentives = view_of(environment), incentives_of(environment)
    horizon = horizon or environment.horizon
    num = len(tasks) * episodes
    target = told = first = tasks.target.repeat_interleave(episodes)
    course, news = course_of(environment, tasks, episodes, dice), None
    # Base mean and noise are added once for all steps; what is left per step is one gather.
    base = tasks.base.repeat_interleave(episodes, 0)
    groups = _groups(tasks, episodes, dice)
    arms = torch.empty((horizon, num), dtype=compact_dtype(environment.num_actions))
    interventions = torch.empty((horizon, num), dtype=compact_dtype(environment.num_interventions))
    last_label = last_action = torch.full((num,), -1, dtype=torch.int64)
    arrived = last_arm = last_intervention = last_label
    steps = torch.arange(horizon, dtype=torch.float32)
    noise = dice.reward_noise * environment.reward_noise
    shown = None
    if environment.sight.is_lossy:
        shown = torch.empty((horizon, num), dtype=compact_dtype(environment.num_symbols))
        sight = dice.more["sight"].transpose(0, 1)
    delay = environment.sight.delay
    informed = [group for group in groups if group.family.hear is not None]
    ignorant = [group for group in groups if group.family.hear is None]
    caring = any(group.family.perceive is not None for group in groups)
    if informed and not isinstance(principal, Announcing):
        raise InputError(
            "a principal that meets agents informed of its policy must tell its probabilities "
            f"(lockstep.Announcing), got {type(principal).__name__} for {informed[0].family.name}"
        )
    principal.begin(num)
    for t in range(horizon):
        # The agent's pull doesn't depend on the intervention, which it can't see: found first, for the oracles. A new
        # tensor each step: with absolute labels the principal sees the last one itself, and it must not change.
        arm = torch.full((num,), -1) if informed else torch.empty(num, dtype=torch.int64)
        for group in ignorant:
            group.pull(arm, steps, dice, t)
        if course.target is not None:
            before, target = target, course.target[t]
            told, news = view.told(target, first), view.news(target, before, last_arm)
            # What was seen and done before, by the names that hold now.
            last_label, last_action = view.symbol_label(arrived, told), view.action(last_intervention, told)
        since_told = t if course.since_told is None else course.since_told[t]
        seen = Seen(t, last_label, last_action, told, dice.principal[t], since_told, news)
        since = t if course.since is None else course.since[t]
        action = principal.intervene(seen, Hidden(groups, arm, target, environment.num_candidates, since))
        intervention = view.intervention(action, told)
        if informed:
            assert isinstance(principal, Announcing)
            offer = incentives.offer(view.by_intervention(principal.probabilities(), told), target)
            for group in informed:
                group.hear(offer)
                group.pull(arm, steps, dice, t)
        agent_reward = incentives.base_reward(base if course.base is None else course.base[t], arm)
        agent_reward += noise[t]
        agent_reward += incentives.incentive(intervention, arm, target)
        principal_reward = incentives.principal_reward(intervention, arm, target) if caring else None
        for group in groups:
            rows = group.rows
            reward = agent_reward[rows]
            if group.family.perceive is not None:
                assert principal_reward is not None
                reward = group.family.perceive(group.params, reward, principal_reward[rows])
            group.state = group.family.learn(group.state, group.params, steps[t], arm[rows], reward)
        arms[t], interventions[t] = arm, intervention
        last_arm, last_intervention, last_action = arm, intervention, action
        if shown is not None:
            shown[t] = view.symbol(arm, sight[t])
        if shown is not None or delay:
            if t >= delay:
                arrived = (arms if shown is None else shown)[t - delay].long()
                last_label = view.symbol_label(arrived, told)
        else:
            arrived, last_label = arm, view.label(arm, told)
    shape = (horizon, len(tasks), episodes)
    return Trajectories(
        arms=arms.view(shape).permute(1, 2, 0).contiguous(),
        interventions=interventions.view(shape).permute(1, 2, 0).contiguous(),
        target=tasks.target,
        shown=None if shown is None else shown.view(shape).permute(1, 2, 0).contiguous(),
        moving=None if tasks.moving is None else tasks.moving[:, :horizon],
    )


def deal_for(environment: Environment, key: Key, tasks: Tasks, episodes: int, first_episode: int = 0) -> Dice:
    """The dice of `episodes` episodes of each task, as `play` takes them."""
    game = environment.horizon, environment.num_candidates
    return deal(key, tasks.ids, episodes, *game, tasks.needs_normals(), first_episode, environment.more_dice)


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
