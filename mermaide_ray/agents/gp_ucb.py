"""UCB over points with a Gaussian process: the posterior over a grid of candidates, exact, one pull at a time.

Reference: Srinivas, Krause, Kakade, Seeger: Gaussian Process Optimization in the Bandit Setting, ICML 2010 (GP-UCB),
Algorithm 1; differs: a constant multiple of the posterior deviation per agent in the place of sqrt(beta_t).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import Draws, Hyperparameter, Params, PointFamily, State, best_candidate
from mermaide_ray.points import squared_distance

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.points import Space

# What the agent supposes: length scale (a coordinate spans 1) and deviation of the reward, and deviation of its noise.
# The noise is more than that of the base reward, since interventions come and go.
LENGTH, DEVIATION, NOISE = 0.15, 0.7, 0.2


def init(space: Space, params: Params, priority: Tensor) -> State:
    """`mean` [N, G] and `covariance` [N, G, G] of the reward at the candidates: the prior."""
    points = space.candidates(priority)
    square = squared_distance(points.unsqueeze(1), points)
    covariance = DEVIATION**2 * (-square / (2 * LENGTH**2)).exp()
    return {
        "mean": priority.new_zeros(priority.shape),
        "covariance": covariance.expand(len(priority), -1, -1),
        "priority": priority,
    }


def act(space: Space, state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """The candidate with the largest upper confidence bound."""
    deviation = state["covariance"].diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    bound = state["mean"] + params["confidence"] * deviation
    return space.candidate_arms(state["mean"])[best_candidate(bound, state["priority"])]


def learn(space: Space, state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Conditions on one reward: a Kalman update, of rank one (Rasmussen, Williams 2006, Eq. 2.23 and 2.24)."""
    mean, covariance = state["mean"], state["covariance"]
    index = space.candidate(arm).unsqueeze(-1)
    column = covariance.gather(-2, index.unsqueeze(-1).expand(-1, 1, mean.shape[-1])).squeeze(-2)
    gain = column / (column.gather(-1, index) + NOISE**2)
    return {
        "mean": mean + gain * (reward.unsqueeze(-1) - mean.gather(-1, index)),
        "covariance": covariance - gain.unsqueeze(-1) * column.unsqueeze(-2),
        "priority": state["priority"],
    }


FAMILY = PointFamily(
    name="gp_ucb",
    description="points: upper confidence bound of a Gaussian process",
    reference="Srinivas, Krause, Kakade, Seeger 2010 (GP-UCB)",
    init=init,
    act=act,
    learn=learn,
    hyperparameters={"confidence": Hyperparameter("weight of the posterior deviation", 0.0, 100.0)},
)
