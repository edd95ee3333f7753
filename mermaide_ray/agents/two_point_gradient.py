"""Stochastic gradient ascent over points, its gradient estimated from two pulls on either side of where it stands.

Reference: Agarwal, Dekel, Xiao: Optimal Algorithms for Online Convex Optimization with Multi-Point Bandit Feedback,
COLT 2010, section 4 (two points); differs: ascent, a constant rate that has absorbed the estimate's factor d, and the
two pulls come one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import Draws, Hyperparameter, Params, PointFamily, State, normal_step

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.points import Space


def init(space: Space, params: Params, priority: Tensor) -> State:
    """`centre` [N, d], from which it probes: at first a random candidate; `probed` [N, d] and `reward` [N, 1] there."""
    start = space.candidates(priority)[priority.argmax(-1)]
    return {
        "centre": _inside(start, params["probe"]),
        "probed": start.new_zeros(start.shape),
        "reward": start.new_zeros(len(start), 1),
    }


def act(space: Space, state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """A probe in a random direction, then its mirror image."""
    normal = normal_step(draws, space.dimensions)
    direction = normal / normal.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-20)
    first = state["centre"] + params["probe"] * direction
    second = 2 * state["centre"] - state["probed"]
    return space.arm(first.where(step % 2 == 0, second))


def learn(space: Space, state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """After the second probe, a step up the slope between the two."""
    is_first, point = step % 2 == 0, space.point(arm)
    across = state["probed"] - point
    slope = (state["reward"] - reward.unsqueeze(-1)) / across.square().sum(-1, keepdim=True).clamp(min=1e-6)
    moved = _inside(state["centre"] + params["learning_rate"] * slope * across, params["probe"])
    return {
        "centre": state["centre"].where(is_first, moved),
        "probed": point.where(is_first, state["probed"]),
        "reward": reward.unsqueeze(-1).where(is_first, state["reward"]),
    }


def _inside(centre: Tensor, probe: Tensor) -> Tensor:
    """Where both probes lie in the cube."""
    return centre.maximum(probe).minimum(1 - probe)


FAMILY = PointFamily(
    name="two_point_gradient",
    description="points: stochastic gradient ascent, by two probes on either side",
    reference="Agarwal, Dekel, Xiao 2010 (two-point bandit feedback)",
    init=init,
    act=act,
    learn=learn,
    hyperparameters={
        "probe": Hyperparameter("distance of a probe; a coordinate spans 1", 0.01, 0.5),
        "learning_rate": Hyperparameter("step per unit of slope", 0.0, 1.0),
    },
)
