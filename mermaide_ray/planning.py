"""Planning: before the query, what would do best with agents like this one?

Agents that may be the one that was met are imagined (`imagination.py`). They meet the policy and each of some simple
rules, all with the same luck. The best rule is then played in the policy's place, if it is clearly better. Policies are
trained on the training agents; with an agent unlike these a rule that was chosen for it may do better, and imagination
tells.

Nothing in it is trained, and nothing hidden is looked at. Shapes: B tasks, S imagined agents of each, E episodes with
each of these, N = B * S * E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mermaide_ray.agents.base import sample_mean_init, sample_mean_learn
from mermaide_ray.baselines.rule_grid import Rule, first_rules, gap_rules
from mermaide_ray.environment import Environment
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.imagination import Imagination
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.models.learner_model import lead
from mermaide_ray.noise import Key

_EPISODES = 2
# The share of what the best rule gains over never intervening by which it must be ahead of the policy.
_MARGIN = 0.1


@dataclass(frozen=True)
class Choice:
    """What to play in the query with each of B tasks.

    Attributes:
        rules: [B], the best rule for each.
        base: What is supposed of its base means, by label, float [B, A].
        by_rule: bool [B], whether the rule takes the policy's place.
    """

    rules: tuple[Rule, ...]
    base: Tensor
    by_rule: Tensor

    def principal(self, environment: Environment, policy: Principal, episodes: int) -> Principal:
        """The player of `episodes` episodes with each task."""
        rules = SupposedRules(environment, self.rules, self.base, episodes)
        return _Either(policy, rules, self.by_rule.repeat_interleave(episodes))


class SupposedRules:
    """Plays one rule per task, with means that are supposed in place of the agent's estimates.

    An agent's estimate of an arm is its base mean, the noise aside, and the mean of the incentives that it got there,
    which the principal knows.

    Args:
        environment: The game, in which label 0 is the target.
        rules: [B]; `until`, `gap` and `intervention` count.
        base: Supposed base means by label, float [B, A].
        episodes: Per task.
    """

    def __init__(self, environment: Environment, rules: tuple[Rule, ...], base: Tensor, episodes: int) -> None:
        # The rest of a rule asks for what no principal can see, or for changes, of which none are imagined.
        assert all(Rule(rule.until, rule.gap, intervention=rule.intervention) == rule for rule in rules), rules

        def per_episode(values: list[float]) -> Tensor:
            return torch.tensor(values).repeat_interleave(episodes)

        self._until = per_episode([rule.until for rule in rules])
        self._gap = per_episode([rule.gap for rule in rules])
        self._intervention = per_episode([rule.intervention for rule in rules])
        # A third of all rules ask for no lead: then there is no account to keep.
        self._by_clock = bool(self._gap.isinf().all())
        self._base = base.repeat_interleave(episodes, 0)
        self._effect = torch.tensor(environment.incentives)

    def begin(self, num_episodes: int) -> None:
        """See `lockstep.Principal`."""
        assert num_episodes == len(self._base), (num_episodes, len(self._base))
        self._paid = sample_mean_init({}, torch.zeros_like(self._base))

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        """See `lockstep.Principal`; never looks at `hidden`."""
        if seen.step and not self._by_clock:
            effect = self._effect[seen.last_action]
            paid = effect[:, 0].where(seen.last_symbol == 0, effect[:, 1])
            self._paid = sample_mean_learn(self._paid, {}, torch.tensor(seen.step), seen.last_symbol, paid)
        if self._by_clock:
            return self._intervention * (seen.step < self._until)
        ahead = lead(self._base + self._paid["mean"]).squeeze(1)
        return self._intervention * ((seen.step < self._until) & (ahead < self._gap))


class _Either:
    """In some episodes one player, in the others another."""

    def __init__(self, policy: Principal, rules: SupposedRules, by_rule: Tensor) -> None:
        self._policy, self._rules, self._by_rule = policy, rules, by_rule

    def begin(self, num_episodes: int) -> None:
        """See `lockstep.Principal`."""
        self._policy.begin(num_episodes)
        self._rules.begin(num_episodes)

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        """See `lockstep.Principal`."""
        return self._rules.intervene(seen, hidden).where(self._by_rule, self._policy.intervene(seen, hidden))


def plan(imagination: Imagination, policy: Principal, key: Key) -> Choice:
    """Chooses between the policy and the rules, for each task, on agents imagined from its support.

    Args:
        imagination: Of the tasks.
        policy: The adapted policy, as the player of S * E episodes of each task.
        key: Of the draws.
    """
    game, agents, count = imagination.game, imagination.agents(key), len(imagination.ids)
    dice, incentives = deal_for(game, key, agents, _EPISODES), incentives_of(game)

    def returns(principal: Principal) -> Tensor:
        """Mean over the imagined episodes of each task, [B]."""
        played = play(game, agents, _EPISODES, dice, principal)
        return incentives.rewards_of(played).sum(2).view(count, -1).mean(1)

    supposed, each = imagination.base, len(agents) * _EPISODES // count
    rules = [*first_rules(game), *gap_rules(game)]
    by_rule = torch.stack([returns(SupposedRules(game, (rule,) * count, supposed, each)) for rule in rules], dim=1)
    best, which = by_rule.max(1)
    never = by_rule[:, 0]  # the first of `first_rules`
    ahead = best - returns(policy)
    return Choice(tuple(rules[i] for i in which.tolist()), supposed, ahead > _MARGIN * (best - never))
