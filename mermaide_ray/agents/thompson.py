"""Thompson sampling with Gaussian rewards of known noise.

Reference: Agrawal, Goyal: Further Optimal Regret Bounds for Thompson Sampling, AISTATS 2013 (Gaussian priors). The
prior of each arm's mean is N(0, 1), the noise that the agent believes in is N(0, sd^2); after n pulls of sum S the
posterior is N(S / (n + sd^2), sd^2 / (n + sd^2)), which for sd = 1 is the paper's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import Draws, Family, Hyperparameter, Params, State

if TYPE_CHECKING:
    from torch import Tensor


def init(params: Params, priority: Tensor) -> State:
    """The prior: `mean` of the posterior and `count` of pulls, both [N, A]. Draws are continuous, so nothing ties."""
    return {"mean": priority.new_zeros(priority.shape), "count": priority.new_zeros(priority.shape)}


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """The arm that is best in one sample from the posterior."""
    believed = params["noise_sd"]
    deviation = believed * (state["count"] + believed * believed).rsqrt()
    return (state["mean"] + deviation * draws.normal).argmax(-1)


def learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Moves the pulled arm's posterior mean to S / (n + sd^2)."""
    believed = params["noise_sd"]
    index = arm.unsqueeze(-1)
    count = state["count"].gather(-1, index) + 1
    mean = state["mean"].gather(-1, index)
    return {
        "mean": state["mean"].scatter(-1, index, mean + (reward.unsqueeze(-1) - mean) / (count + believed * believed)),
        "count": state["count"].scatter(-1, index, count),
    }


FAMILY = Family(
    name="thompson",
    description="Thompson sampling: the best arm in a sample from a Gaussian posterior",
    reference="Agrawal, Goyal 2013",
    init=init,
    act=act,
    learn=learn,
    hyperparameters={
        # Far below 1e-3, sd^2 would vanish beside a count in float32, and the prior with it.
        "noise_sd": Hyperparameter("standard deviation of the reward noise that the agent believes in", 1e-3, 100.0)
    },
    normals=True,
)
