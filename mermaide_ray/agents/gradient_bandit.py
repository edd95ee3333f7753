"""Gradient bandit: stochastic gradient ascent on preferences, with the average reward as baseline.

Reference: Sutton, Barto: Reinforcement Learning, 2nd ed. (2018), section 2.8, Eq. 2.12: preferences H start at 0, arms
are drawn from pi = softmax(H), and after reward R for arm a: H += step_size * (R - baseline) * (one_hot(a) - pi). The
baseline is the average of the rewards before this one; at the first pull it is the reward itself, and nothing moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import Draws, Family, Hyperparameter, Params, State, sampled_arm

if TYPE_CHECKING:
    from torch import Tensor


def init(params: Params, priority: Tensor) -> State:
    """`preference` [N, A] and `baseline` [N, 1], at 0. Arms are drawn, so nothing ties."""
    return {"preference": priority.new_zeros(priority.shape), "baseline": priority.new_zeros(priority.shape[0], 1)}


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """An arm drawn from softmax(preference)."""
    return sampled_arm(state["preference"].softmax(-1), draws.uniform[:, 1])


def learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """One step of gradient ascent on the expected reward, then the baseline takes the reward in."""
    preference, baseline = state["preference"], state["baseline"]
    advantage = (reward.unsqueeze(-1) - baseline) * (step > 0)
    # -pi for every arm, 1 - pi for the pulled one.
    index = arm.unsqueeze(-1)
    direction = preference.softmax(-1).neg()
    direction = direction.scatter(-1, index, direction.gather(-1, index) + 1)
    return {
        "preference": preference + params["step_size"] * advantage * direction,
        "baseline": baseline + (reward.unsqueeze(-1) - baseline) / (step + 1),
    }


FAMILY = Family(
    name="gradient_bandit",
    description="policy gradient on the arms' preferences, with the average reward as baseline",
    reference="Sutton, Barto 2018, section 2.8",
    init=init,
    act=act,
    learn=learn,
    hyperparameters={"step_size": Hyperparameter("step size of the preferences, per unit of reward", 0.0, 10.0)},
)
