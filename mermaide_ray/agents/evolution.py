"""The (1+1) evolution strategy over points: keeps the best point so far, and tries others around it.

Reference: Rechenberg 1973 (the 1/5 success rule), in the form of Kern et al.: Learning probability distributions in
continuous evolutionary algorithms, Natural Computing 3 (2004), Algorithm 1; differs: the step size stays within bounds.
The parent keeps the reward that it was taken for, noise and incentive included, as elitist strategies do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import Draws, Hyperparameter, Params, PointFamily, State, normal_step

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.points import Space

SUCCESS = 1.5
"""Factor of the step size after a success; after a failure its -1/4th power, so that one in five keeps it."""
# The step size never falls below this share of the first one: rewards that are noisy, or change, reward trying.
_LEAST_SHARE = 0.2


def init(space: Space, params: Params, priority: Tensor) -> State:
    """`parent` [N, d], at first a random candidate; its `value` [N, 1]; `scale` [N, 1] of the mutations."""
    return {
        "parent": space.candidates(priority)[priority.argmax(-1)],
        "value": priority.new_zeros(len(priority), 1),
        "scale": params["step_size"] + priority.new_zeros(len(priority), 1),
    }


def act(space: Space, state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """The parent itself at the first pull, then mutations of it."""
    mutation = state["scale"] * normal_step(draws, space.dimensions)
    return space.arm((state["parent"] + mutation * (step > 0)).clamp(0, 1))


def learn(space: Space, state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Takes the point as parent if it did at least as well; widens the mutations if so, narrows them if not."""
    value = reward.unsqueeze(-1)
    is_first = step == 0
    success = (value >= state["value"]) | is_first
    factor = success * (SUCCESS - SUCCESS**-0.25) + SUCCESS**-0.25
    scale = (state["scale"] * factor).clamp(max=1).maximum(_LEAST_SHARE * params["step_size"])
    return {
        "parent": space.point(arm).where(success, state["parent"]),
        "value": value.where(success, state["value"]),
        "scale": state["scale"].where(is_first, scale),
    }


FAMILY = PointFamily(
    name="evolution",
    description="points: (1+1) evolution strategy with the 1/5 success rule",
    reference="Rechenberg 1973; Kern et al. 2004",
    init=init,
    act=act,
    learn=learn,
    hyperparameters={"step_size": Hyperparameter("first deviation of a mutation; a coordinate spans 1", 0.001, 1.0)},
)
