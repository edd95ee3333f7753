"""Privileged oracles: rules that see what no principal may see. References to compare with, never available to one.

Three kinds of privilege: the agent's estimates (its `mean` of each arm), its next arm, and, for the oracle, which rule
is best for each single task. The oracle's choice is honest: rules are chosen on episodes of their own and then scored
on the query episodes on which every method is scored.
Families that keep no `mean` (gradient bandit, EXP3) have no gap: rules that need one never intervene there, and the
oracle is the best of first-n and foresight. Where arms are places in a world of the agent's own (`Family.goals`), an
incentive mostly tells at a goal, so foresight may also be asked whether the next arm is one.
Agents informed of the policy (`Family.hear`) choose their arm after the announcement: there is no next arm to foresee,
and foresight rules never intervene there. A rule that looks at the gap announces just the probability at which the
target leads by m, the offer included. The oracle is the best of first-n and these offers, for a grid of m that reaches
down to nearly none: how small a lead suffices differs from agent to agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from mermaide_ray.agent_settings import Split
from mermaide_ray.agents.base import Family
from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.baselines.rule_grid import NextArm, Rule, first_rules, foresight_rules, gap_rules, goal_rules
from mermaide_ray.baselines.rules import announced, once_per_game, toward_target
from mermaide_ray.blocks import blocks_of, tasks_at_once
from mermaide_ray.environment import Environment
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.experiment import Experiment
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.noise import Key
from mermaide_ray.points import squared_distance
from mermaide_ray.view import view_of

_NEXT: tuple[NextArm, ...] = get_args(NextArm)

# Selection in two rounds: all rules on a few episodes, then the best few of each task on more.
_FIRST_ROUND, _SECOND_ROUND, _FINALISTS = 16, 48, 10


class PrivilegedRules:
    """Plays one rule per episode.

    Args:
        environment: The game.
        rules: One rule per block of episodes (one task, or one task met by one of several rules).
        episodes: E, episodes per block.
    """

    def __init__(self, environment: Environment, rules: Sequence[Rule], episodes: int) -> None:
        def per_episode(values: Sequence[float]) -> Tensor:
            return torch.tensor(values).repeat_interleave(episodes)

        self._environment, self._view = environment, view_of(environment)
        self._incentives = incentives_of(environment)
        self._until = per_episode([rule.until for rule in rules])
        self._restarts = per_episode([rule.restarts for rule in rules])
        self._intervention = per_episode([rule.intervention for rule in rules])
        self._lead = self._incentives.lead[self._intervention]
        self._gap = per_episode([rule.gap for rule in rules])
        self._blind = self._gap.isinf()
        self._goals_only = per_episode([rule.goals_only for rule in rules])
        next_arm = per_episode([_NEXT.index(rule.next_arm) for rule in rules])
        self._target, self._other, self._away = (next_arm == _NEXT.index(it) for it in ("target", "other", "away"))
        asked = {
            self._next_is_right: self._target | self._other,
            self._next_is_away: self._away,
            self._next_is_goal: self._goals_only,
            self._sufficient: ~self._blind,
        }
        # What no rule asks for is never looked at.
        self._conditions = [condition for condition, who in asked.items() if who.any()]

    def begin(self, num_episodes: int) -> None:
        """See `lockstep.Principal`; nothing to forget."""
        assert num_episodes == len(self._until), (num_episodes, len(self._until))

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        """See `lockstep.Principal`; looks at `hidden`."""
        clock = hidden.since.where(self._restarts, seen.step)
        probability = (clock < self._until).float()
        for condition in self._conditions:
            probability *= condition(seen, hidden)
        action = toward_target(self._view, self._environment, self._intervention, hidden.target, seen.target)
        self._chosen = action, probability
        return action * (seen.uniform < probability)

    def probabilities(self) -> Tensor:
        """See `lockstep.Announcing`."""
        return announced(*self._chosen, self._environment.num_interventions)

    # Conditions: each is 1 for the episodes whose rules don't ask for it, bool or float [N].

    def _next_is_right(self, seen: Seen, hidden: Hidden) -> Tensor:
        """Whether the next arm is the target, or known and another."""
        is_target = self._incentives.success(hidden.next_arm, hidden.target)
        is_other = ~is_target & (hidden.next_arm >= 0)
        return (is_target | ~self._target) & (is_other | ~self._other)

    def _next_is_away(self, seen: Seen, hidden: Hidden) -> Tensor:
        """Whether the next point is farther from the target than the last one; none is before the first pull."""
        space = self._environment.space
        assert space is not None
        target = space.point(hidden.target)
        last, following = (
            squared_distance(space.point(arm), target) for arm in (hidden.last_arm.clamp(min=0), hidden.next_arm)
        )
        return (following > last) & (hidden.last_arm >= 0) | ~self._away

    def _next_is_goal(self, seen: Seen, hidden: Hidden) -> Tensor:
        """Whether the next arm is one that may be a target."""
        return hidden.next_is_goal() | ~self._goals_only

    def _sufficient(self, seen: Seen, hidden: Hidden) -> Tensor:
        """Whether the target leads by less than m; with agents that wait, the least probability that brings it there.

        A lead that is not a number (no estimates) is below no m.
        """
        missing = (self._gap - self._lead_of_target(hidden)).nan_to_num(0.0)
        sufficient = (missing / self._lead).clamp(0, 1).where(hidden.next_arm < 0, (missing > 0).float())
        return sufficient.masked_fill(self._blind, 1.0)

    def _lead_of_target(self, hidden: Hidden) -> Tensor:
        """Lead of the target's estimate over the best other one's, float [N]."""
        estimates, target = hidden.estimates(), hidden.target.unsqueeze(1)
        space, nothing = self._environment.space, float("-inf")
        if space is None:
            own = estimates.gather(1, target)
            return (own - estimates.scatter(1, target, nothing).amax(1, keepdim=True)).squeeze(1)
        # Of all candidates that are a success, the best is the target's.
        good = self._incentives.success(space.candidate_arms(target), target)
        return estimates.masked_fill(~good, nothing).amax(1) - estimates.masked_fill(good, nothing).amax(1)


def oracle_rules(environment: Environment, families: Sequence[Family] = ()) -> list[Rule]:
    """The rules among which the oracle chooses.

    Of the foresight rules only those that pay for the target. With those that only penalise (`next is another`) as well
    the oracle would no longer be the one that `problem.md` gives values for. Measured here, without and with them: UCB
    83.4 and 84.6, epsilon-greedy 78.6 and 81.4 (training ranges); 59.0 and 60.5, 53.7 and 55.0 (test ranges). Pass them
    as `rules` for the tighter bound. Where only what is paid out costs, a penalty is free and they are the best there
    are: there they are in.
    Where some of the `families` have goals of their own, also the rules that look for goals; where all have, none that
    look at estimates, which such agents don't keep.
    The continuous game has no values to agree with, and learners that only a push in the right direction moves: there
    all foresight rules are in.
    """
    with_goals = [family.goals is not None for family in families] or [False]
    continuous = environment.space is not None
    penalty_is_free = environment.cost == "paid" and environment.intervention in ("signed", "graded")
    pushes: list[NextArm] = ["other"] if continuous or penalty_is_free else []
    pushes += ["away"] if continuous else []
    return [
        *first_rules(environment),
        *([] if all(with_goals) else gap_rules(environment, families)),
        *foresight_rules(environment, "target"),
        *(goal_rules(environment) if any(with_goals) else []),
        *(rule for push in pushes for rule in foresight_rules(environment, push)),
    ]


def gap(experiment: Experiment, split: Split, tasks: Tasks, episodes: int) -> Principal:
    """The one (m, n) that is best on validation."""
    return _same_for_all(experiment, gap_rules(experiment.environment, tasks.families), tasks, episodes)


def foresight(experiment: Experiment, split: Split, tasks: Tasks, episodes: int) -> Principal:
    """The one foresight rule that is best on validation."""
    environment = experiment.environment
    rules = foresight_rules(environment, "target") + foresight_rules(environment, "other")
    if environment.space is not None:
        rules += foresight_rules(environment, "away")
    if any(family.goals is not None for family in tasks.families):
        rules += goal_rules(environment)
    return _same_for_all(experiment, rules, tasks, episodes)


def oracle(experiment: Experiment, split: Split, tasks: Tasks, episodes: int) -> Principal:
    """For each task the rule that is best for it."""
    return PrivilegedRules(experiment.environment, best_rules(experiment, split, tasks), episodes)


def _same_for_all(experiment: Experiment, rules: Sequence[Rule], tasks: Tasks, episodes: int) -> Principal:
    def best() -> int:
        validation = AgentDistribution(experiment).held_out("validation", experiment.evaluation.tasks)
        key = Key(experiment.agents.seed, "validation", "baselines/choice", 0)
        pairs = [list(rules)] * len(validation)
        return int(returns_of(experiment.environment, validation, pairs, key, _FIRST_ROUND).mean((0, 2)).argmax())

    rule = rules[once_per_game(experiment, tuple(rules), best)]
    return PrivilegedRules(experiment.environment, [rule] * len(tasks), episodes)


def best_rules(experiment: Experiment, split: Split, tasks: Tasks, rules: Sequence[Rule] | None = None) -> list[Rule]:
    """For each task the rule with the highest return on selection episodes, which nothing else ever meets.

    Args:
        experiment: The game, and the seed of the agents.
        split: Of the tasks.
        tasks: B tasks.
        rules: To choose from; `oracle_rules` if not given. The first of equals is taken.
    """
    environment, seed = experiment.environment, experiment.agents.seed
    rules = rules or oracle_rules(environment, tasks.families)
    key = Key(seed, split, "baselines/selection", 0)
    first = returns_of(environment, tasks, [list(rules)] * len(tasks), key, _FIRST_ROUND)
    # Sorted, so that among equals the first of `rules` stays the first.
    order = first.mean(2).argsort(dim=1, descending=True, stable=True)[:, :_FINALISTS].sort(dim=1).values
    finalists = [[rules[place] for place in row] for row in order.tolist()]
    second = returns_of(environment, tasks, finalists, key, _SECOND_ROUND, _FIRST_ROUND)
    both = torch.cat([first.gather(1, order.unsqueeze(2).expand(-1, -1, _FIRST_ROUND)), second], dim=2)
    return [row[place] for row, place in zip(finalists, both.mean(2).argmax(1).tolist(), strict=True)]


def returns_of(
    environment: Environment,
    tasks: Tasks,
    rules: Sequence[Sequence[Rule]],
    key: Key,
    episodes: int,
    first_episode: int = 0,
) -> Tensor:
    """Returns of several rules on the same episodes of each task.

    Args:
        environment: The game.
        tasks: B tasks.
        rules: [B][R], the rules that meet each task.
        key: Of the dice.
        episodes: E, per task and rule.
        first_episode: See `noise.deal`.

    Returns:
        float [B, R, E], the principal's undiscounted returns.
    """
    incentives, count = incentives_of(environment), len(rules[0])
    returns = torch.empty(len(tasks), count, episodes)
    fitting = tasks_at_once(environment, tasks, episodes)
    # Every task with each of its rules in turn.
    for block in blocks_of(tasks, max(1, fitting // count)):
        some = tasks.select(block)
        dice = deal_for(environment, key, some, episodes, first_episode)
        met = torch.arange(len(block)).repeat_interleave(count)
        flat = [rule for place in block.tolist() for rule in rules[place]]
        played = []
        for pairs in torch.split(torch.arange(len(met)), fitting):
            rows = (met[pairs].unsqueeze(1) * episodes + torch.arange(episodes)).flatten()
            principal = PrivilegedRules(environment, [flat[pair] for pair in pairs.tolist()], episodes)
            trajectories = play(environment, some.select(met[pairs]), episodes, dice.rows(rows), principal)
            played.append(incentives.rewards_of(trajectories).sum(2))
        returns[block] = torch.cat(played).view(len(block), count, episodes)
    return returns
