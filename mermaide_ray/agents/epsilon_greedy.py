"""Epsilon-greedy with sample means and a constant epsilon.

Reference: Sutton, Barto: Reinforcement Learning, 2nd ed. (2018), section 2.4; estimates start at 0, ties at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import (
    Draws,
    Family,
    Hyperparameter,
    Params,
    State,
    explore_or_best,
    sample_mean_init,
    sample_mean_learn,
)

if TYPE_CHECKING:
    from torch import Tensor


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """With probability epsilon a uniform arm, else the arm with the best mean."""
    return explore_or_best(state["mean"], params["epsilon"], draws)


FAMILY = Family(
    name="epsilon_greedy",
    description="the best arm so far, but a uniform one with probability epsilon",
    reference="Sutton, Barto 2018, section 2.4",
    init=sample_mean_init,
    act=act,
    learn=sample_mean_learn,
    hyperparameters={"epsilon": Hyperparameter("probability of a uniform pull", 0.0, 1.0)},
)
