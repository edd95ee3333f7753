"""The game, played by thousands of pairs of principal and agent in lock step. Knows no Ray and no network.

Given tasks, dice and a principal, `play` is a pure function: who calls it, with which other episodes beside, changes
nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mermaide_ray.agents.crowd import Crowd
from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.changes import Course, course_of
from mermaide_ray.environment import Environment
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.errors import InputError
from mermaide_ray.noise import Dice, Key, deal
from mermaide_ray.trajectory import Trajectories, compact_dtype
from mermaide_ray.view import View, view_of


@dataclass(frozen=True)
class Seen:
    """What a principal may know before pull t. N episodes, tasks major.

    Attributes:
        step: t.
        last_symbol: int64 [N], last symbol seen as a label (`View.symbol`: previous pull); -1 before there is one.
        last_action: int64 [N], previous action as the principal names it; -1 at t = 0.
        target: int64 [N], the target arm, as far as the principal was told.
        uniform: float [N] on [0, 1), the principal's own dice for this step.
        since: int64 [N], pulls since it was told that the target moved (t before the first move).
        news: float [N, X], what it is told of a moving target (`View.news`); None: nothing ever.
    """

    step: int
    last_symbol: Tensor
    last_action: Tensor
    target: Tensor
    uniform: Tensor
    since: Tensor
    news: Tensor | None = None

    def observation(self, view: View) -> Tensor:
        """The same as observation vectors, float [N, D]."""
        step = torch.full_like(self.last_symbol, self.step)
        return view.observation(self.last_symbol, self.last_action, self.target, step, self.news)


class Perception:
    """What the principal has seen and done of N episodes, pull by pull: the one account of it, for both paths.

    Symbols and interventions are kept as such, and named only when they are looked at: where an announced target moves,
    the past is named from the new one.

    Args:
        view: What the principal sees of a pull, and how it names it.
        course: What it may be told of.
        dice: Its own, and those of its sight, for N episodes.
    """

    def __init__(self, view: View, course: Course, dice: Dice) -> None:
        self._view, self._delay, self._last = view, view.sight.delay, view.horizon - 1
        # Taken apart once: indexing a tensor at every pull would cost several percent of a small game's time.
        self._target, self._since = course.target.unbind(), course.since_told.unbind()
        self._uniform = dice.principal.unbind()
        self._luck = dice.more["sight"].unbind(1) if view.sight.is_lossy else None
        self._on_its_way: deque[Tensor] = deque()
        self._symbol = self._last_arm = self._last_intervention = torch.full_like(self._target[0], -1)

    def before(self, t: int) -> Seen:
        """What the principal knows before pull t; after the last one (t = T), by the target and dice of that one."""
        view, now = self._view, min(t, self._last)
        told = view.known_target(self._target[now], self._target[0])
        # Where all symbols are arms there is nothing to tell apart.
        all_arms = t > self._delay and view.num_symbols == view.num_arms
        return Seen(
            step=t,
            last_symbol=view.label(self._symbol, told) if all_arms else view.symbol_label(self._symbol, told),
            last_action=view.action(self._last_intervention, told),
            target=told,
            uniform=self._uniform[now],
            since=self._since[now],
            news=view.news(self._target[now], self._target[max(t - 1, 0)], self._last_arm),
        )

    def after(self, t: int, arm: Tensor, intervention: Tensor) -> Tensor:
        """Pull t was made, both int64 [N]: the symbol, int64 [N], that the principal will see of it (`View.symbol`)."""
        symbol = arm if self._luck is None else self._view.symbol(arm, self._luck[t])
        self._on_its_way.append(symbol)
        if t >= self._delay:
            self._symbol = self._on_its_way.popleft()
        self._last_arm, self._last_intervention = arm, intervention
        return symbol


class Hidden:
    """What only a privileged oracle may look at."""

    def __init__(self, agents: Crowd, last_arm: Tensor, next_arm: Tensor, target: Tensor, since: Tensor) -> None:
        self._agents = agents
        self.last_arm = last_arm
        """int64 [N], the arm pulled last, whatever the principal saw of it; -1 before the first pull."""
        self.next_arm = next_arm
        """int64 [N], the arm about to be pulled; -1 for agents that wait for the principal's announcement."""
        self.target = target
        """int64 [N], the one that holds."""
        self.since = since
        """int64 [N], pulls since base means were redrawn or the target moved (t before the first change)."""

    def estimates(self) -> Tensor:
        """The agents' estimated means, float [N, A] (`Crowd.estimates`)."""
        return self._agents.estimates()

    def next_is_goal(self) -> Tensor:
        """Whether the next arm is one that may be a target, bool [N] (`Crowd.is_goal`)."""
        return self._agents.is_goal(self.next_arm)


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
    horizon = horizon or environment.horizon
    view, incentives = view_of(environment), incentives_of(environment)
    course = course_of(environment, tasks, episodes, dice)
    agents, perception = Crowd(tasks, episodes, dice), Perception(view, course, dice)
    announcing = _announcing(principal, agents)
    noise = dice.reward_noise * environment.reward_noise
    shape = (horizon, len(tasks) * episodes)
    arms = torch.empty(shape, dtype=compact_dtype(environment.num_actions))
    interventions = torch.empty(shape, dtype=compact_dtype(environment.num_interventions))
    shown = torch.empty(shape, dtype=compact_dtype(environment.num_symbols)) if environment.sight.is_lossy else None
    arm = torch.full((shape[1],), -1)
    principal.begin(shape[1])
    for t, base, target, since in zip(range(horizon), course.base, course.target, course.since, strict=False):
        # An agent's pull doesn't depend on the intervention, which it can't see: found first, for the oracles.
        last_arm, arm = arm, agents.pull(t)
        seen = perception.before(t)
        action = principal.intervene(seen, Hidden(agents, last_arm, arm, target, since))
        intervention = view.intervention(action, seen.target)
        if announcing is not None:
            probabilities = view.by_intervention(announcing.probabilities(), seen.target)
            arm = agents.hear(t, arm, incentives.offer(probabilities, target))
        reward = incentives.base_reward(base, arm) + noise[t] + incentives.incentive(intervention, arm, target)
        agents.learn(t, arm, reward, partial(incentives.principal_reward, intervention, arm, target))
        symbol = perception.after(t, arm, intervention)
        arms[t], interventions[t] = arm, intervention
        if shown is not None:
            shown[t] = symbol

    def by_task(steps: Tensor) -> Tensor:
        """[T, N] -> [B, E, T]."""
        return steps.view(horizon, len(tasks), episodes).permute(1, 2, 0).contiguous()

    return Trajectories(
        arms=by_task(arms),
        interventions=by_task(interventions),
        target=tasks.target,
        shown=None if shown is None else by_task(shown),
        moving=None if tasks.moving is None else tasks.moving[:, :horizon],
    )


def _announcing(principal: Principal, agents: Crowd) -> Announcing | None:
    """The principal, if there are agents that wait for what it announces."""
    if not agents.waiting:
        return None
    if not isinstance(principal, Announcing):
        raise InputError(
            "a principal that meets agents informed of its policy must tell its probabilities "
            f"(lockstep.Announcing), got {type(principal).__name__} for {agents.waiting[0]}"
        )
    return principal


def deal_for(environment: Environment, key: Key, tasks: Tasks, episodes: int, first_episode: int = 0) -> Dice:
    """The dice of `episodes` episodes of each task, as `play` takes them."""
    return deal(
        key,
        tasks.ids,
        episodes,
        horizon=environment.horizon,
        num_candidates=environment.num_candidates,
        normals=tasks.needs_normals(),
        first_episode=first_episode,
        more=environment.more_dice,
    )
