"""Agents that work against the principal: by spite, and by holding out for pay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mermaide_ray.agents import FAMILIES
from mermaide_ray.agents.base import Draws, State
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.baselines.rules import FixedRule
from mermaide_ray.envs.incentive import Incentives
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.lockstep import Hidden, Seen, deal_for, play
from mermaide_ray.noise import Key
from mermaide_ray.trajectory import Trajectories

EXPLORATION = {"ucb": ("ucb_coefficient", 0.2), "epsilon_greedy": ("epsilon", 0.1)}


def alike(family: str, environment: dict[str, Any] | None = None, **hyperparameters: float) -> Experiment:
    """One family, all agents alike."""
    return validate(
        {
            "environment": {"num_arms": 5, "horizon": 60, **(environment or {})},
            "agents": {
                "families": {family: {"train": {name: [value] * 2 for name, value in hyperparameters.items()}}},
                "disjoint": [],
            },
        },
        where="tests",
    )


def spiteful(family: str, spite: float, **environment: Any) -> Experiment:
    name, value = EXPLORATION[family]
    return alike(f"adversarial_{family}", environment, spite=spite, **{name: value})


def met(experiment: Experiment, until: int, probability: float = 1.0) -> Trajectories:
    tasks = AgentDistribution(experiment).tasks("train", range(40))
    dice = deal_for(experiment.environment, Key(0, "train", "adversarial", 0), tasks, 2)
    return play(experiment.environment, tasks, 2, dice, FixedRule(experiment.environment, until, probability))


def success(played: Trajectories, pulls: slice = slice(None)) -> float:
    return (played.arms == played.target[:, None, None])[:, :, pulls].float().mean().item()


def test_who_cares_for_nothing_but_the_principals_loss_prefers_no_other_arm() -> None:
    """At spite 1 all arms but the target bring exactly nothing."""
    played = met(spiteful("epsilon_greedy", 1.0), until=0)
    others = played.arms[(played.arms != played.target[:, None, None])]
    shares = others.long().bincount(minlength=5) / len(others)
    assert shares.max() < 0.25
    assert shares.min() > 0.15


@pytest.mark.parametrize("cost", ["per_intervention", "paid"])
@pytest.mark.parametrize("family", list(EXPLORATION))
def test_without_spite_it_is_the_plain_learner_bit_by_bit(family: str, cost: str) -> None:
    name, value = EXPLORATION[family]
    plain = met(alike(family, {"cost": cost}, **{name: value}), until=40, probability=0.6)
    spiteless = met(spiteful(family, 0.0, cost=cost), until=40, probability=0.6)
    assert torch.equal(plain.arms, spiteless.arms)
    assert torch.equal(plain.interventions, spiteless.interventions)
    # The control: a little spite shows.
    assert not torch.equal(plain.arms, met(spiteful(family, 0.05, cost=cost), until=40, probability=0.6).arms)


def test_what_it_perceives_is_the_trade_of_both_rewards() -> None:
    """An agent of spite 0.25 estimates the means of 0.75 own - 0.25 principal reward, worked out by hand here."""
    experiment = spiteful("epsilon_greedy", 0.25, reward_noise=0.0, delta=2.0)
    tasks = AgentDistribution(experiment).tasks("train", [0])
    target, base = int(tasks.target), tasks.base[0]
    perceived: dict[int, list[float]] = {arm: [] for arm in range(5)}

    class Witness(FixedRule):
        def intervene(self, seen: Seen, hidden: Hidden) -> torch.Tensor:
            action, arm = super().intervene(seen, hidden), int(hidden.next_arm)
            for each, rewards in perceived.items():
                mean = sum(rewards) / len(rewards) if rewards else 0.0
                assert hidden.estimates()[0, each].item() == pytest.approx(mean, abs=1e-5)
            paid = int(action) * (2.0 if arm == target else -2.0)
            principal = float(arm == target) - 0.3 * int(action)
            perceived[arm].append(0.75 * (base[arm].item() + paid) - 0.25 * principal)
            return action

    dice = deal_for(experiment.environment, Key(0, "train", "adversarial", 0), tasks, 1)
    play(experiment.environment, tasks, 1, dice, Witness(experiment.environment, 50, 0.5))
    assert len(perceived[target]) > 5
    assert sum(map(bool, perceived.values())) > 2


@pytest.mark.parametrize("family", list(EXPLORATION))
def test_spite_alone_shuns_the_target_and_pay_does_not_help(family: str) -> None:
    """Spite 1: at most what exploring costs it. A plain learner under the same pay is the control."""
    paid = met(spiteful(family, 1.0), until=60)
    assert success(paid, slice(20, None)) < 0.1
    assert success(met(spiteful(family, 0.0), until=60), slice(20, None)) > 0.7


@pytest.mark.parametrize("family", list(EXPLORATION))
def test_full_pay_outbids_spite_up_to_two_thirds(family: str) -> None:
    """Under constant signed pay of 1 at cost 0.3, equal arms: if 2 (1 - spite) > spite."""
    flat = {"horizon": 100, "reward_noise": 0.0}

    def late(spite: float) -> float:
        experiment = spiteful(family, spite, **flat)
        agents = experiment.agents.model_copy(update={"base_reward": (0.5, 0.5)})
        return success(met(experiment.model_copy(update={"agents": agents}), until=100), slice(50, None))

    assert late(0.6) > 0.5 > 0.2 > late(0.73)


def holdout(**hyperparameters: float) -> tuple[dict[str, torch.Tensor], State]:
    given = {"epsilon": 0.0, "demand": 0.5, "patience": 0.0, "strike": 3.0} | hyperparameters
    params = {name: torch.tensor([[value]]) for name, value in given.items()}
    return params, FAMILIES["holdout"].init(params, torch.tensor([[3.0, 2.0, 1.0]]))


def arms_of(params: dict[str, torch.Tensor], state: State, rewards: list[dict[int, float]]) -> list[int]:
    """The arms pulled, given what each arm would pay at each pull (nothing, if not named)."""
    family, arms = FAMILIES["holdout"], []
    for t, pays in enumerate(rewards):
        step = torch.tensor(float(t))
        arm = family.act(state, params, step, Draws(torch.full((1, 2), 0.99), torch.zeros(1, 0)))
        state = family.learn(state, params, step, arm, torch.tensor([pays.get(int(arm), 0.0)]))
        arms.append(int(arm))
    return arms


def test_a_holdout_leaves_for_the_strike_comes_back_and_stays_if_paid() -> None:
    paid, unpaid = {0: 1.5, 1: 0.2}, {0: 0.4, 1: 0.2}
    # Paid twice, not once: away for 3 pulls (to the untried arms first; 1 is then the best of them). Back, and so on.
    assert arms_of(*holdout(), [paid, paid, *[unpaid] * 9]) == [0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0]
    assert arms_of(*holdout(), [paid, paid, *[unpaid] * 4, *[paid] * 4]) == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]


def test_a_patient_holdout_bears_as_many_short_pulls_in_a_row_as_it_says() -> None:
    paid, unpaid = {0: 1.5, 1: 0.2}, {0: 0.4, 1: 0.2}
    assert arms_of(*holdout(patience=2.0), [paid, *[unpaid] * 5]) == [0, 0, 0, 0, 1, 1]
    # Pay in between starts the count again.
    assert arms_of(*holdout(patience=2.0), [paid, unpaid, unpaid, paid, unpaid, unpaid, unpaid, unpaid])[-1] == 1
    assert arms_of(*holdout(patience=2.0), [paid, unpaid, unpaid, paid, unpaid, unpaid, paid])[-1] == 0


def test_a_holdout_that_is_never_paid_never_strikes() -> None:
    """Noise and small differences are below its demand: then it is epsilon-greedy, bit by bit."""
    plain = met(alike("epsilon_greedy", epsilon=0.1), until=0)
    calm = met(alike("holdout", epsilon=0.1, demand=0.9, patience=0.0, strike=10.0), until=0)
    assert torch.equal(plain.arms, calm.arms)


def test_on_strike_everywhere_it_goes_where_the_strike_ends_first() -> None:
    params, state = holdout(strike=10.0)
    state["away"] = torch.tensor([[5.0, 2.0, 7.0]])
    act = FAMILIES["holdout"].act
    assert act(state, params, torch.tensor(9.0), Draws(torch.full((1, 2), 0.99), torch.zeros(1, 0))).tolist() == [1]


@pytest.mark.parametrize("kind", ["signed", "bonus"])
def test_a_holdout_is_paid_more_and_gives_less_than_the_learner_that_it_is_made_of(kind: str) -> None:
    """Paid for the first half: the plain learner goes on for nothing, the holdout does not."""
    game = {"intervention": kind, "horizon": 100}
    plain = met(alike("epsilon_greedy", game, epsilon=0.1), until=50)
    gaming = met(alike("holdout", game, epsilon=0.1, demand=0.5, patience=0.0, strike=5.0), until=50)
    late = slice(60, None)
    assert success(gaming, late) < success(plain, late) - 0.3
    # Half of all pulls paid, in turn: the holdout makes its pay by returning, and gives less for it.
    incentives = Incentives(alike("epsilon_greedy", game, epsilon=0.1).environment)
    assert incentives.rewards_of(gaming).sum(2).mean() < incentives.rewards_of(plain).sum(2).mean()
