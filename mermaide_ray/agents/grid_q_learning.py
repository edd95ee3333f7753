"""Tabular Q-learning in a gridworld (see `grid`).

Reference: Watkins, Dayan: Q-learning, Machine Learning 8 (1992); Sutton, Barto: Reinforcement Learning, 2nd ed. (2018),
section 6.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents import grid
from mermaide_ray.agents.base import Family, Params, State

if TYPE_CHECKING:
    from torch import Tensor


def learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Updates the value of the move just made, and walks on."""
    return {"position": grid.moved(state, arm), "q": grid.q_update(state, params, arm, reward)}


FAMILY = Family(
    name="grid_q_learning",
    description="Q-learning in a gridworld: the arms are its cells, the corners are goals",
    reference="Watkins, Dayan 1992; Sutton, Barto 2018, section 6.5",
    init=grid.init,
    act=grid.act,
    learn=learn,
    hyperparameters=grid.HYPERPARAMETERS,
    least_arms=grid.LEAST_CELLS,
    goals=grid.goals,
)
