"""Dyna-Q in a gridworld (see `grid`): Q-learning that also learns from a remembered world, so it learns in fewer walks.

Reference: Sutton, Barto: Reinforcement Learning, 2nd ed. (2018), section 8.2 (tabular Dyna-Q); differs: at each pull it
plans one sweep over all moves ever made, in place of n drawn at random, so planning needs no dice. The remembered
reward of a move is the one that it brought last, as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents import grid
from mermaide_ray.agents.base import Family, Params, State

if TYPE_CHECKING:
    from torch import Tensor


def init(params: Params, priority: Tensor) -> State:
    """State of `grid.init`, and of each move the `reward` remembered and whether it was `made`, both [N, 4 A]."""
    state = grid.init(params, priority)
    nothing = state["q"].new_zeros(state["q"].shape)
    return {**state, "reward": nothing, "made": nothing}


def learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Learns from the move just made, remembers it, and plans one sweep."""
    index = grid.gone(state, arm)
    remembered = state["reward"].scatter(-1, index, reward.unsqueeze(-1))
    made = state["made"].scatter(-1, index, 1.0)
    q, num_arms = grid.q_update(state, params, arm, reward), grid.num_cells(state)
    value = q.view(-1, num_arms, grid.WAYS).amax(-1).index_fill(-1, arm.new_tensor(grid.goals(num_arms)), 0.0)
    ahead = value[:, grid.behind(state)]
    planned = q + made * params["learning_rate"] * (remembered + params["discount"] * ahead - q)
    return {"position": grid.moved(state, arm), "q": planned, "reward": remembered, "made": made}


FAMILY = Family(
    name="grid_dyna_q",
    description="Dyna-Q in a gridworld: Q-learning that also plans with the moves that it remembers",
    reference="Sutton, Barto 2018, section 8.2",
    init=init,
    act=grid.act,
    learn=learn,
    hyperparameters=grid.HYPERPARAMETERS,
    least_arms=grid.LEAST_CELLS,
    goals=grid.goals,
)
