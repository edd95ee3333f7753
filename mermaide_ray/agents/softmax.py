"""Softmax (Boltzmann) exploration on sample means, at a constant temperature.

Reference: Sutton, Barto: Reinforcement Learning, 1st ed. (1998), section 2.3: arm a with probability proportional to
exp(Q_a / temperature); estimates start at 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import (
    Draws,
    Family,
    Hyperparameter,
    Params,
    State,
    sample_mean_init,
    sample_mean_learn,
    softmax_arm,
)

if TYPE_CHECKING:
    from torch import Tensor


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """An arm with probability proportional to exp(mean / temperature)."""
    return softmax_arm(state["mean"], params["temperature"], draws.uniform[:, 1])


FAMILY = Family(
    name="softmax",
    description="Boltzmann exploration: better arms more often, in proportion to exp(mean / temperature)",
    reference="Sutton, Barto 1998, section 2.3",
    init=sample_mean_init,
    act=act,
    learn=sample_mean_learn,
    hyperparameters={"temperature": Hyperparameter("temperature, in units of reward", 1e-3, 100.0)},
)
