"""Privileged oracles: what they look at, and that their choice is honest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import all_families, of_mermaide
from torch import Tensor

from mermaide_ray import blocks
from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.baselines import baseline_named, oracles
from mermaide_ray.baselines.oracles import PrivilegedRules, best_rules, oracle_rules, returns_of
from mermaide_ray.baselines.rule_grid import Rule, foresight_rules, gap_rules
from mermaide_ray.envs.incentive import Incentives
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.lockstep import Hidden, Seen, deal_for, play
from mermaide_ray.noise import Key

KEY = Key(0, "test", "evaluation/query", 0)
ONE_OF_EACH = [
    Rule(0),
    Rule(9),
    Rule(9, gap=0.3),
    Rule(9, next_arm="target"),
    Rule(9, next_arm="other"),
    Rule(15, gap=0.5, next_arm="other"),
]


def default(**sections: Any) -> Experiment:
    return of_mermaide({"environment": {"num_arms": 4, "horizon": 20}, **sections})


def tasks_of(experiment: Experiment, count: int = 12) -> Tasks:
    return AgentDistribution(experiment).tasks("test", range(count))


def returns(experiment: Experiment, tasks: Tasks, principal: Any, episodes: int) -> Tensor:
    """By the plain game, [B, E]."""
    dice = deal_for(experiment.environment, KEY, tasks, episodes)
    played = play(experiment.environment, tasks, episodes, dice, principal)
    return Incentives(experiment.environment).rewards_of(played).sum(2)


class Watched(PrivilegedRules):
    """Notes what it saw and what it did."""

    notes: list[tuple[int, Tensor, Tensor, Tensor]]

    def begin(self, num_episodes: int) -> None:
        super().begin(num_episodes)
        self.notes = []

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        action = super().intervene(seen, hidden)
        self.notes.append((seen.step, hidden.estimates(), hidden.next_arm == hidden.target, action))
        return action


@pytest.mark.parametrize("rule", ONE_OF_EACH, ids=str)
def test_a_rule_intervenes_where_its_definition_says(rule: Rule) -> None:
    experiment = default()
    tasks = tasks_of(experiment)
    watched = Watched(experiment.environment, [rule] * len(tasks), 2)
    returns(experiment, tasks, watched, 2)
    targets = tasks.target.repeat_interleave(2).tolist()
    for step, estimates, next_is_target, action in watched.notes:
        for row, target in enumerate(targets):
            others = [float(q) for arm, q in enumerate(estimates[row]) if arm != target]
            expected = step < rule.until and float(estimates[row, target]) - max(others) < rule.gap
            if rule.next_arm != "any":
                expected &= bool(next_is_target[row]) == (rule.next_arm == "target")
            assert bool(action[row]) == expected


def test_rules_side_by_side_do_as_each_alone() -> None:
    experiment = all_families()
    tasks = tasks_of(experiment, 14)
    pairs = [ONE_OF_EACH] * len(tasks)
    together = returns_of(experiment.environment, tasks, pairs, KEY, 3)
    assert together.shape == (14, len(ONE_OF_EACH), 3)
    for place, rule in enumerate(ONE_OF_EACH):
        alone = returns(experiment, tasks, PrivilegedRules(experiment.environment, [rule] * len(tasks), 3), 3)
        torch.testing.assert_close(together[:, place], alone)


def test_each_task_may_meet_rules_of_its_own() -> None:
    experiment = all_families()
    tasks = tasks_of(experiment, 6)
    every = returns_of(experiment.environment, tasks, [ONE_OF_EACH] * 6, KEY, 2)
    own = returns_of(experiment.environment, tasks, [[rule] for rule in ONE_OF_EACH], KEY, 2)
    assert torch.equal(own[:, 0], every[torch.arange(6), torch.arange(6)])


def test_little_memory_changes_no_return(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = all_families()
    tasks = tasks_of(experiment, 9)
    pairs = [ONE_OF_EACH] * 9
    at_once = returns_of(experiment.environment, tasks, pairs, KEY, 2)
    for most_episodes in (1, 5, 40):
        monkeypatch.setattr(blocks, "MOST_EPISODES", most_episodes)
        assert torch.equal(returns_of(experiment.environment, tasks, pairs, KEY, 2), at_once)


def test_a_gap_is_unknown_in_families_that_keep_no_estimates() -> None:
    experiment = all_families()
    tasks = tasks_of(experiment, 30)
    unknown = torch.tensor([name in ("exp3", "gradient_bandit") for name in tasks.family_names()])
    never, with_gap = returns_of(experiment.environment, tasks, [[Rule(0), Rule(15, gap=99.0)]] * 30, KEY, 2).unbind(1)
    assert torch.equal(never[unknown], with_gap[unknown])
    assert not torch.equal(never[~unknown], with_gap[~unknown])
    # The oracle then does with the rules that need no estimates.
    chosen = best_rules(experiment, "test", tasks)
    assert all(rule.gap == float("inf") for rule, blind in zip(chosen, unknown.tolist(), strict=True) if blind)


def test_graded_rules_come_in_every_size_and_the_others_in_one() -> None:
    graded = default(environment={"intervention": "graded", "graded_sizes": [0.5, 1.0]}).environment
    assert {rule.intervention for rule in oracle_rules(graded) if rule.until} == {1, 2}
    for kind in ("signed", "bonus", "arm"):
        rules = oracle_rules(default(environment={"intervention": kind}).environment)
        assert {rule.intervention for rule in rules} == {1}
        assert len(set(rules)) == len(rules)
        assert len({str(rule) for rule in rules}) == len(rules)


def test_the_oracle_of_an_agent_that_is_not_worth_steering_never_intervenes() -> None:
    dear = default(environment={"num_arms": 4, "horizon": 20, "cost_weight": 50.0})
    assert best_rules(dear, "test", tasks_of(dear)) == [Rule(0)] * 12


def test_rules_are_chosen_on_dice_that_nothing_is_scored_on(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, keys = default(), []
    deal_for = oracles.deal_for
    monkeypatch.setattr(oracles, "deal_for", lambda game, key, *rest: keys.append(key) or deal_for(game, key, *rest))
    best_rules(experiment, "test", tasks_of(experiment, 4))
    assert {key[2] for key in keys} == {"baselines/selection"}


def test_the_best_rule_is_best_on_the_selection_episodes_of_both_rounds() -> None:
    experiment = default()
    tasks = tasks_of(experiment, 40)
    # Neighbours, so that few episodes would often choose another; and no more than there are finalists.
    rules = [Rule(n) for n in range(4, 4 + oracles._FINALISTS)]
    chosen = best_rules(experiment, "test", tasks, rules)
    episodes = oracles._FIRST_ROUND + oracles._SECOND_ROUND
    key = Key(0, "test", "baselines/selection", 0)
    means = returns_of(experiment.environment, tasks, [rules] * 40, key, episodes).mean(2)
    for place, rule in enumerate(chosen):
        assert means[place, rules.index(rule)] == pytest.approx(means[place].max().item(), abs=1e-4)


def test_the_oracle_beats_every_other_baseline_on_average() -> None:
    experiment = validate({"environment": {"horizon": 50}, "evaluation": {"tasks": 40, "episodes": 8}}, where="tests")
    tasks = AgentDistribution(experiment).tasks("train", range(60))

    def score(name: str) -> float:
        return returns(experiment, tasks, baseline_named(name)(experiment, "train", tasks, 8), 8).mean().item()

    oracle = score("oracle")
    for name in ("never", "always", "random", "first_n", "privileged_gap"):
        assert oracle > score(name) + 0.5, name


@pytest.mark.parametrize("kind", ["signed", "graded"])
def test_the_oracle_is_not_beaten_by_foresight_where_penalties_are_free(kind: str) -> None:
    experiment = validate(
        {
            "environment": {"horizon": 50, "cost": "paid", "cost_weight": 0.6, "intervention": kind},
            "evaluation": {"tasks": 20, "episodes": 8},
        },
        where="tests",
    )
    tasks = tasks_of(experiment, 20)
    oracle, foresight = (
        returns(experiment, tasks, baseline_named(name)(experiment, "test", tasks, 8), 8).mean()
        for name in ("oracle", "privileged_foresight")
    )
    assert oracle >= foresight


@pytest.mark.parametrize("kind", ["bonus", "arm"])
def test_where_nothing_is_penalised_the_oracle_has_the_same_rules_whatever_is_paid_for(kind: str) -> None:
    paid, each = (
        oracle_rules(default(environment={"intervention": kind, "cost": cost}).environment)
        for cost in ("paid", "per_intervention")
    )
    assert paid == each


def test_privileged_baselines_take_the_best_rule_on_validation() -> None:
    experiment = validate({"environment": {"horizon": 30}, "evaluation": {"tasks": 20, "episodes": 4}}, where="tests")
    environment, tasks = experiment.environment, tasks_of(experiment, 5)
    validation = AgentDistribution(experiment).tasks("validation", range(20))
    key = Key(0, "validation", "baselines/choice", 0)
    both = foresight_rules(environment, "target") + foresight_rules(environment, "other")
    for name, rules in (("privileged_gap", gap_rules(environment)), ("privileged_foresight", both)):
        on_validation = returns_of(environment, validation, [rules] * 20, key, 16).mean((0, 2))
        by_hand = PrivilegedRules(environment, [rules[int(on_validation.argmax())]] * 5, 3)
        built = baseline_named(name)(experiment, "test", tasks, 3)
        assert torch.equal(returns(experiment, tasks, built, 3), returns(experiment, tasks, by_hand, 3)), name
