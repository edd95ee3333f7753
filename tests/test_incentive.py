"""From interventions to incentives, costs and the principal's rewards: each kind against tables worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mermaide_ray.environment import Environment
from mermaide_ray.envs.incentive import Incentives
from mermaide_ray.trajectory import Trajectories

# Three arms, target 1, delta 2. Per kind and intervention: incentive by pulled arm (0, 1, 2), then cost by pulled arm,
# first "per_intervention", then "paid".
NOTHING = ([0, 0, 0], [0, 0, 0], [0, 0, 0])
TABLES: dict[str, list[tuple[list[float], list[float], list[float]]]] = {
    "signed": [NOTHING, ([-2, 2, -2], [1, 1, 1], [0, 1, 0])],
    "bonus": [NOTHING, ([0, 2, 0], [1, 1, 1], [0, 1, 0])],
    "arm": [
        NOTHING,
        ([2, 0, 0], [1, 1, 1], [1, 0, 0]),
        ([0, 2, 0], [1, 1, 1], [0, 1, 0]),
        ([0, 0, 2], [1, 1, 1], [0, 0, 1]),
    ],
    "graded": [
        NOTHING,
        ([-0.5, 0.5, -0.5], [0.25, 0.25, 0.25], [0, 0.25, 0]),
        ([-3, 3, -3], [1.5, 1.5, 1.5], [0, 1.5, 0]),
    ],
}
ARMS, TARGET = torch.arange(3), torch.tensor(1)


def environment(kind: str, **settings: Any) -> Environment:
    return Environment(num_arms=3, intervention=kind, delta=2.0, graded_sizes=(0.25, 1.5), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TABLES)
def test_incentive_is_as_worked_out_by_hand(kind: str) -> None:
    incentives = Incentives(environment(kind))
    assert incentives.num_interventions == len(TABLES[kind])
    for index, (expected, _, _) in enumerate(TABLES[kind]):
        found = incentives.incentive(torch.full((3,), index), ARMS, TARGET)
        assert found.tolist() == expected, index


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(("cost", "column"), [("per_intervention", 1), ("paid", 2)])
def test_cost_and_principal_reward_are_as_worked_out_by_hand(kind: str, cost: str, column: int) -> None:
    incentives = Incentives(environment(kind, cost=cost, cost_weight=0.3))
    for index, table in enumerate(TABLES[kind]):
        intervention = torch.full((3,), index)
        assert incentives.cost(intervention, ARMS, TARGET).tolist() == table[column], index
        reward = incentives.principal_reward(intervention, ARMS, TARGET)
        by_hand = [(arm == 1) - 0.3 * charged for arm, charged in enumerate(table[column])]
        torch.testing.assert_close(reward, torch.tensor(by_hand))


@pytest.mark.parametrize("kind", TABLES)
def test_paid_costs_the_size_of_every_positive_incentive_and_nothing_else(kind: str) -> None:
    incentives = Incentives(environment(kind, cost="paid"))
    for index in range(incentives.num_interventions):
        intervention = torch.full((3,), index)
        paid = incentives.incentive(intervention, ARMS, TARGET).clamp(min=0) / 2.0
        assert torch.equal(incentives.cost(intervention, ARMS, TARGET), paid)


def test_rewards_of_whole_episodes_are_those_of_their_steps() -> None:
    incentives = Incentives(environment("arm"))
    torch.manual_seed(0)
    arms, interventions = torch.randint(3, (2, 4, 5)), torch.randint(4, (2, 4, 5))
    target = torch.tensor([2, 0])
    played = Trajectories(arms.to(torch.uint8), interventions.to(torch.uint8), target)
    for task in range(2):
        for episode in range(4):
            one = (interventions[task, episode], arms[task, episode], target[task])
            assert torch.equal(incentives.rewards_of(played)[task, episode], incentives.principal_reward(*one))
            assert torch.equal(incentives.costs_of(played)[task, episode], incentives.cost(*one))
