"""Each family against numbers worked out by hand from its reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mermaide_ray.agents import FAMILIES, exp3
from mermaide_ray.agents.base import Draws, State, sampled_arm, uniform_arm


def draws(*uniform: float, normal: list[float] | None = None) -> Draws:
    """The dice of one pull of one agent."""
    return Draws(torch.tensor([uniform]), torch.tensor([normal or []]))


def params(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor([[value]]) for name, value in values.items()}


def step(t: int) -> Tensor:
    return torch.tensor(float(t))


def pull(family: str, state: State, given: dict[str, Tensor], t: int, arm: int, reward: float) -> State:
    return FAMILIES[family].learn(state, given, step(t), torch.tensor([arm]), torch.tensor([reward]))


def fresh(family: str, given: dict[str, Tensor], priority: list[float]) -> State:
    return FAMILIES[family].init(given, torch.tensor([priority]))


def tried(mean: list[float], count: list[float]) -> State:
    return {"mean": torch.tensor([mean]), "count": torch.tensor([count])}


# ucb


def test_ucb_pulls_every_arm_once_first() -> None:
    given, priority = params(ucb_coefficient=0.0), [2.0, 4.0, 1.0, 3.0]
    state, arms = fresh("ucb", given, priority), []
    for t in range(4):
        arm = int(FAMILIES["ucb"].act(state, given, step(t), draws(0.5, 0.5)))
        arms.append(arm)
        # Rewards so high that a greedy agent would stay with the first arm.
        state = pull("ucb", state, given, t, arm, 100.0)
    assert arms == [1, 3, 0, 2]


def test_ucb_weighs_bonus_against_mean() -> None:
    # ln 9 = 2.197; bonus c * sqrt(2.197 / 4) = 0.741 c and c * sqrt(2.197 / 1) = 1.482 c: they differ by 0.741 c.
    state = tried([0.5, 0.2], [4.0, 1.0])
    for coefficient, arm in ((0.39, 0), (0.42, 1)):
        assert int(FAMILIES["ucb"].act(state, params(ucb_coefficient=coefficient), step(8), draws(0.0, 0.0))) == arm


# epsilon_greedy


@pytest.mark.parametrize(("uniform", "arm"), [((0.19, 0.0), 0), ((0.19, 0.99), 3), ((0.2, 0.0), 2), ((0.9, 0.99), 2)])
def test_epsilon_greedy_explores_below_epsilon_only(uniform: tuple[float, float], arm: int) -> None:
    state = tried([0.1, 0.2, 0.3, 0.0], [1.0] * 4)
    assert int(FAMILIES["epsilon_greedy"].act(state, params(epsilon=0.2), step(9), draws(*uniform))) == arm


def test_estimates_start_at_zero_with_ties_broken_by_priority() -> None:
    given = params(epsilon=0.0)
    state = fresh("epsilon_greedy", given, [1.0, 3.0, 2.0])
    act = FAMILIES["epsilon_greedy"].act
    assert int(act(state, given, step(0), draws(0.5, 0.5))) == 1
    # A loss on arm 1 leaves the untried ones, at 0, on top; a gain on arm 2 then keeps the agent there.
    state = pull("epsilon_greedy", state, given, 0, 1, -0.1)
    assert int(act(state, given, step(1), draws(0.5, 0.5))) == 2
    state = pull("epsilon_greedy", state, given, 1, 2, 1e-6)
    assert int(act(state, given, step(2), draws(0.5, 0.5))) == 2


def test_sample_mean_is_the_average_of_rewards_perceived() -> None:
    given = params(epsilon=0.0)
    state = fresh("epsilon_greedy", given, [1.0, 2.0])
    for t, reward in enumerate([1.0, -2.0, 4.0]):
        state = pull("epsilon_greedy", state, given, t, 0, reward)
    assert state["mean"][0, 0].item() == pytest.approx(1.0)
    assert state["count"].tolist() == [[3.0, 0.0]]
    assert state["mean"][0, 1].item() == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize("family", ["adversarial_ucb", "adversarial_epsilon_greedy"])
def test_exact_ties_of_tried_arms_are_broken_at_random_where_spite_makes_them(family: str) -> None:
    grid = (torch.arange(300) + 0.5) / 300
    mean = torch.tensor([0.5, 0.2, 0.5, 0.5])
    state = {"mean": mean.expand(300, 4), "count": torch.full((300, 4), 7.0)}
    given = params(epsilon=0.0, ucb_coefficient=0.3)
    luck = Draws(torch.stack([torch.full_like(grid, 0.5), grid], dim=1), torch.zeros(300, 0))
    assert FAMILIES[family].act(state, given, step(28), luck).bincount().tolist() == [100, 0, 100, 100]
    # With a lead, even of one bit, there is no tie.
    state["mean"] = mean + torch.tensor([0.0, 0.0, 6e-8, 0.0])
    state = {name: value.expand(300, 4) for name, value in state.items()}
    assert FAMILIES[family].act(state, given, step(28), luck).unique().tolist() == [2]


# epsilon_decay


@pytest.mark.parametrize(
    ("t", "uniform", "explores"),
    # Scale 3: epsilon is min(1, 3 / n) at pull n = t + 1: 1 up to the third, 0.75 at the fourth, 0.03 at the 100th.
    [(0, 0.999, True), (2, 0.999, True), (3, 0.749, True), (3, 0.751, False), (99, 0.0299, True), (99, 0.0301, False)],
)
def test_epsilon_decay_explores_with_scale_over_pulls(t: int, uniform: float, explores: bool) -> None:
    state = tried([0.0, 1.0], [1.0, 1.0])
    arm = int(FAMILIES["epsilon_decay"].act(state, params(epsilon_scale=3.0), step(t), draws(uniform, 0.0)))
    assert arm == (0 if explores else 1)


# thompson


def test_thompson_posterior_by_hand() -> None:
    # Prior N(0, 1), noise variance 0.25. Rewards 1 and 2: precision 1 + 2 / 0.25 = 9, mean (3 / 0.25) / 9 = 4 / 3.
    given = params(noise_sd=0.5)
    state = fresh("thompson", given, [1.0, 2.0])
    for t, reward in enumerate([1.0, 2.0]):
        state = pull("thompson", state, given, t, 0, reward)
    assert state["mean"].tolist() == [[pytest.approx(4 / 3), 0.0]]
    # Sampled: 4/3 + z0 / 3 against 0 + z1, which cross at z1 = 4/3 + z0 / 3.
    act = FAMILIES["thompson"].act
    assert int(act(state, given, step(2), draws(0.0, 0.0, normal=[-1.0, 0.99]))) == 0
    assert int(act(state, given, step(2), draws(0.0, 0.0, normal=[-1.0, 1.01]))) == 1


def test_thompson_is_agrawal_goyal_for_unit_noise() -> None:
    # N(S / (k + 1), 1 / (k + 1)).
    given = params(noise_sd=1.0)
    state = fresh("thompson", given, [1.0, 2.0])
    for t, reward in enumerate([0.3, 0.9, 0.6]):
        state = pull("thompson", state, given, t, 1, reward)
    assert state["mean"][0, 1].item() == pytest.approx(1.8 / 4)
    act = FAMILIES["thompson"].act
    assert int(act(state, given, step(3), draws(0.0, 0.0, normal=[0.94, 1.0]))) == 1
    assert int(act(state, given, step(3), draws(0.0, 0.0, normal=[0.96, 1.0]))) == 0


# softmax


@pytest.mark.parametrize(("uniform", "arm"), [(0.24, 0), (0.26, 1), (0.74, 1), (0.76, 2)])
def test_softmax_draws_in_proportion_to_exp_of_mean_over_temperature(uniform: float, arm: int) -> None:
    # At temperature 1 / ln 2 the weights are 1, 2 and 1: probabilities 1/4, 1/2, 1/4.
    state = tried([0.0, 1.0, 0.0], [1.0] * 3)
    given = params(temperature=1 / math.log(2))
    assert int(FAMILIES["softmax"].act(state, given, step(5), draws(0.0, uniform))) == arm


def test_softmax_at_the_lowest_temperature_is_greedy() -> None:
    state = tried([-5.0, 3.0, 2.0], [1.0] * 3)
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert int(FAMILIES["softmax"].act(state, params(temperature=1e-3), step(5), draws(0.0, uniform))) == 1


# gradient_bandit


def test_gradient_bandit_preference_update_by_hand() -> None:
    given = params(step_size=0.5)
    state = fresh("gradient_bandit", given, [1.0, 2.0])
    # First pull: the reward is its own baseline, so no preference moves.
    state = pull("gradient_bandit", state, given, 0, 0, 2.0)
    assert state["preference"].tolist() == [[0.0, 0.0]]
    assert state["baseline"].item() == 2.0
    # Second: advantage 5 - 2 = 3, pi = 1/2 each, so +-0.5 * 3 * 1/2.
    state = pull("gradient_bandit", state, given, 1, 1, 5.0)
    assert state["preference"].tolist() == [[-0.75, 0.75]]
    assert state["baseline"].item() == 3.5
    # Third: advantage 2.5 - 3.5 = -1, pi_1 = 1 / (1 + e^-1.5).
    state = pull("gradient_bandit", state, given, 2, 1, 2.5)
    share = 1 / (1 + math.exp(-1.5))
    moved = -0.5 * (1 - share)
    assert state["preference"].tolist() == [[pytest.approx(-0.75 - moved), pytest.approx(0.75 + moved)]]
    assert state["baseline"].item() == pytest.approx(9.5 / 3)


def test_gradient_bandit_draws_from_softmax_of_preferences() -> None:
    state = {"preference": torch.tensor([[0.0, math.log(3.0)]]), "baseline": torch.zeros(1, 1)}
    act = FAMILIES["gradient_bandit"].act
    assert int(act(state, params(step_size=0.1), step(3), draws(0.0, 0.249))) == 0
    assert int(act(state, params(step_size=0.1), step(3), draws(0.0, 0.251))) == 1


# exp3


def test_exp3_weights_by_hand() -> None:
    given = params(exp3_gamma=0.5)
    state = fresh("exp3", given, [1.0, 2.0])
    # Reward 0.5 is halfway between -1 and 2. p = 1/2 each: the pulled arm gains 0.5 * 0.5 / (2 * 0.5).
    state = pull("exp3", state, given, 0, 1, 0.5)
    assert (state["log_weight"][0, 1] - state["log_weight"][0, 0]).item() == pytest.approx(0.25)
    weight = 1 / (1 + math.exp(-0.25))
    assert exp3.probabilities(state, given).tolist() == [
        [pytest.approx(0.5 * (1 - weight) + 0.25), pytest.approx(0.5 * weight + 0.25)]
    ]
    # Reward 2 is worth 1, importance-weighted by p_0.
    before, share = state["log_weight"][0, 0] - state["log_weight"][0, 1], 0.5 * (1 - weight) + 0.25
    state = pull("exp3", state, given, 1, 0, 2.0)
    after = state["log_weight"][0, 0] - state["log_weight"][0, 1]
    assert (after - before).item() == pytest.approx(0.5 / (2 * share))


@pytest.mark.parametrize(("reward", "end"), [(-7.0, exp3.REWARD_LOW), (9.0, exp3.REWARD_HIGH)])
def test_exp3_clips_rewards_to_its_range(reward: float, end: float) -> None:
    given = params(exp3_gamma=0.5)
    state = fresh("exp3", given, [1.0, 2.0])
    outside, at_end = (pull("exp3", state, given, 0, 1, value)["log_weight"] for value in (reward, end))
    assert torch.equal(outside, at_end)


def test_exp3_explores_uniformly_with_share_gamma() -> None:
    given = params(exp3_gamma=0.4)
    state = {"log_weight": torch.tensor([[-1000.0, 0.0, -1000.0, -1000.0]])}
    assert exp3.probabilities(state, given).tolist() == [[pytest.approx(p) for p in (0.1, 0.7, 0.1, 0.1)]]


# draws


def test_sampled_arm_never_draws_an_arm_of_probability_zero() -> None:
    highest = torch.tensor([1 - 2**-24])
    lowest = torch.tensor([0.0])
    # Totals over a whole binade: rounding depends on nothing else.
    probabilities = torch.tensor([0.0, 0.1, 0.2, 0.0]) * torch.linspace(1.0, 2.0, 10_001).unsqueeze(1)
    assert sampled_arm(probabilities, lowest).unique().tolist() == [1]
    assert sampled_arm(probabilities, highest).unique().tolist() == [2]


def test_sampled_and_uniform_arms_have_the_right_frequencies() -> None:
    grid = (torch.arange(1000) + 0.5) / 1000
    probabilities = torch.tensor([0.2, 0.5, 0.3]).expand(1000, 3)
    assert sampled_arm(probabilities, grid).bincount().tolist() == [200, 500, 300]
    assert uniform_arm(grid, 5).bincount().tolist() == [200] * 5
    for num_arms in range(2, 1001):
        assert int(uniform_arm(torch.tensor([1 - 2**-24]), num_arms)) == num_arms - 1
