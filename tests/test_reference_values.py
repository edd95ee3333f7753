"""The reference values of the default game, computed independently of this code (`problem.md`), within 2 points.

Agents are stratified so that a few hundred tasks do for thousands: ranks of the target's base reward and values of the
hyperparameter are all met equally often, which changes no expectation.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch

from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.baselines.oracles import best_rules, returns_of
from mermaide_ray.baselines.rule_grid import Rule, first_rules, gap_rules
from mermaide_ray.baselines.rules import FixedRule
from mermaide_ray.envs.incentive import Incentives
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.lockstep import deal_for, play
from mermaide_ray.noise import Key

TOLERANCE = 2.0
TASKS, EPISODES = 200, 16
KEY = Key(0, "validation", "reference", 0)
HYPERPARAMETER = {"ucb": "ucb_coefficient", "epsilon_greedy": "epsilon"}


class Column(NamedTuple):
    """One column of the table: who the agents are, and the returns."""

    family: str
    low: float
    high: float
    first_n: float
    n: int
    gap: float
    best_per_task: float


COLUMNS = {
    "UCB train": Column("ucb", 0.05, 0.5, 74.5, 35, 75, 83),
    "eps train": Column("epsilon_greedy", 0.02, 0.2, 70.3, 40, 78, 79),
    "UCB test": Column("ucb", 0.6, 1.5, 55.8, 80, 57, 59),
    "eps test": Column("epsilon_greedy", 0.25, 0.5, 46.5, 40, 52, 52),
}
NEVER = 10.0


@cache
def agents(family: str, low: float, high: float, count: int = TASKS) -> tuple[Experiment, Tasks]:
    """The default game with one family, and stratified tasks."""
    name = HYPERPARAMETER[family]
    families = {family: {"train": {name: [low, high]}}}
    experiment = validate({"agents": {"families": families, "disjoint": []}}, where="tests")
    tasks = AgentDistribution(experiment).tasks("validation", range(count))
    place, arms = torch.arange(count), tasks.base.shape[1]
    strata = count // arms
    return experiment, replace(
        tasks,
        target=tasks.base.argsort(1).gather(1, (place % arms).unsqueeze(1)).squeeze(1),
        params={name: low + (high - low) * (place // arms + 0.5) / strata},
    )


def means_of(column: Column, rules: list[Rule]) -> dict[Rule, float]:
    experiment, tasks = agents(column.family, column.low, column.high)
    means = returns_of(experiment.environment, tasks, [rules] * TASKS, KEY, EPISODES).mean((0, 2))
    return dict(zip(rules, means.tolist(), strict=True))


@pytest.mark.parametrize("name", COLUMNS)
def test_never_and_the_first_n(name: str) -> None:
    column = COLUMNS[name]
    means = means_of(column, first_rules(agents(column.family, column.low, column.high)[0].environment))
    assert means[Rule(0)] == pytest.approx(NEVER, abs=TOLERANCE)
    assert means[Rule(column.n)] == pytest.approx(column.first_n, abs=TOLERANCE)
    assert max(means.values()) == pytest.approx(column.first_n, abs=TOLERANCE)


@pytest.mark.parametrize("name", COLUMNS)
def test_the_best_gap_and_n(name: str) -> None:
    column = COLUMNS[name]
    means = means_of(column, gap_rules(agents(column.family, column.low, column.high)[0].environment))
    assert max(means.values()) == pytest.approx(column.gap, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", COLUMNS)
def test_the_best_rule_for_each_single_task(name: str) -> None:
    column = COLUMNS[name]
    experiment, tasks = agents(column.family, column.low, column.high)
    started = time.process_time()
    best = best_rules(experiment, "validation", tasks)
    scored = returns_of(experiment.environment, tasks, [(rule,) for rule in best], KEY, EPISODES)
    taken = time.process_time() - started
    assert scored.mean().item() == pytest.approx(column.best_per_task, abs=TOLERANCE)
    assert taken / TASKS * 100 < 15, "CPU seconds per 100 tasks"


@pytest.mark.parametrize(
    ("family", "value", "first_20", "always"),
    [
        ("ucb", 0.1, 84, 61),
        ("ucb", 0.3, 70, 61),
        ("ucb", 0.6, 36, 61),
        ("ucb", 1.2, 22, 53),
        ("epsilon_greedy", 0.05, 72, 61),
        ("epsilon_greedy", 0.2, 52, 48),
        ("epsilon_greedy", 0.4, 39.5, 31),
    ],
)
def test_first_20_and_always_at_fixed_parameters(family: str, value: float, first_20: float, always: float) -> None:
    experiment, tasks = agents(family, value, value)
    environment = experiment.environment
    dice = deal_for(environment, KEY, tasks, EPISODES)
    for until, expected in ((20, first_20), (environment.horizon, always)):
        played = play(environment, tasks, EPISODES, dice, FixedRule(environment, until))
        found = Incentives(environment).rewards_of(played).sum(2).mean().item()
        assert found == pytest.approx(expected, abs=TOLERANCE), until
