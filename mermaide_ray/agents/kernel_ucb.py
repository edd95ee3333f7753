"""UCB over points, with estimates smoothed by a kernel: a pull informs about all points near it.

Reference: Nadaraya 1964 and Watson 1964 (kernel regression) in the place of the sample means of UCB1 (Auer,
Cesa-Bianchi, Fischer 2002), as for bandits on a continuum (Kleinberg 2004); differs: a coefficient per agent, a fixed
Gaussian kernel, and a prior estimate of 0 that weighs as much as PRIOR pulls, so that far points have a bound as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import Draws, Hyperparameter, Params, PointFamily, State, best_candidate
from mermaide_ray.points import squared_distance

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.points import Space

# Width of the kernel; a coordinate spans 1.
BANDWIDTH = 0.08
PRIOR = 0.01


def init(space: Space, params: Params, priority: Tensor) -> State:
    """`mean` of the rewards at each candidate, and `weight`: pulls, each counted by its kernel; both [N, G]."""
    return {
        "mean": priority.new_zeros(priority.shape),
        "weight": priority.new_full(priority.shape, PRIOR),
        "priority": priority,
    }


def act(space: Space, state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """The candidate with the largest upper confidence bound."""
    bonus = params["ucb_coefficient"] * (step + 2).log().sqrt()
    bound = state["mean"] + bonus * state["weight"].rsqrt()
    return space.candidate_arms(state["mean"])[best_candidate(bound, state["priority"])]


def learn(space: Space, state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Moves the mean of every candidate towards the reward, by the kernel's share of its weight."""
    square = squared_distance(space.point(arm).unsqueeze(-2), space.candidates(state["mean"]))
    kernel = (-square / (2 * BANDWIDTH**2)).exp()
    weight = state["weight"] + kernel
    return {
        "mean": state["mean"] + kernel / weight * (reward.unsqueeze(-1) - state["mean"]),
        "weight": weight,
        "priority": state["priority"],
    }


FAMILY = PointFamily(
    name="kernel_ucb",
    description="points: upper confidence bound on a kernel-smoothed mean",
    reference="Kleinberg 2004 (bandits on a continuum); Auer, Cesa-Bianchi, Fischer 2002 (UCB1)",
    init=init,
    act=act,
    learn=learn,
    hyperparameters={
        "ucb_coefficient": Hyperparameter("weight of the confidence bonus, in units of reward", 0.0, 100.0)
    },
)
