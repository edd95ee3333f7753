"""A gridworld whose cells are the arms: what the families that walk in it share.

An agent pulls an arm by entering its cell, so base rewards and incentives attach to states. From a cell it can enter
those next door; the borders are walls. The corners are the goals: only they pay, and one of them is the target. An
agent that has entered a goal is put back to the start, in the middle, before its next move, so an episode is as many
walks from start to goal as its pulls allow, and what the agent has learned stays with it from walk to walk.
Cells are numbered row by row. State: `position` [N, 1], the cell that the next move starts from, and `q` [N, 4 A], the
value of each way out of each cell (up, right, down, left; entry 4 * cell + way).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mermaide_ray.agents.base import Draws, Hyperparameter, Params, State, sampled_arm

if TYPE_CHECKING:
    from torch import Tensor

LEAST_CELLS = 3
WAYS = 4
# Value of a way that a wall closes: below all others, and finite.
CLOSED = -1e30

HYPERPARAMETERS = {
    "epsilon": Hyperparameter("probability of a uniform move", 0.0, 1.0),
    "learning_rate": Hyperparameter("share of the temporal-difference error that a value moves by", 0.0, 1.0),
    "discount": Hyperparameter("what a reward is worth one move ahead, gamma", 0.0, 1.0),
    "optimism": Hyperparameter("value of ways not yet gone, in units of reward", 0.0, 100.0),
}


@cache
def layout(num_arms: int) -> tuple[int, int]:
    """Rows and columns of the grid with `num_arms` cells: as square as can be, no higher than wide, 3 columns or more.

    Source: a choice of this project, so that every number of arms from 3 on has a grid (a prime one, a corridor).
    """
    rows = max(rows for rows in range(1, num_arms) if not num_arms % rows and rows <= num_arms // rows >= LEAST_CELLS)
    return rows, num_arms // rows


@cache
def goals(num_arms: int) -> tuple[int, ...]:
    """The corners, each once, in increasing order."""
    rows, columns = layout(num_arms)
    return tuple(sorted({row * columns + column for row in (0, rows - 1) for column in (0, columns - 1)}))


@cache
def start(num_arms: int) -> int:
    """The cell in the middle (of two, the upper or left one); never a corner."""
    rows, columns = layout(num_arms)
    return (rows - 1) // 2 * columns + (columns - 1) // 2


@cache
def walls(num_arms: int) -> tuple[bool, ...]:
    """Whether a wall closes each way out of each cell, [4 A]."""
    rows, columns = layout(num_arms)
    return tuple(
        closed
        for row in range(rows)
        for column in range(columns)
        for closed in (row == 0, column == columns - 1, row == rows - 1, column == 0)
    )


def init(params: Params, priority: Tensor) -> State:
    """At the start, all open ways worth `optimism`. Ties are broken by the dice of each move: no priority is needed."""
    num, num_arms = priority.shape
    closed = priority.new_tensor(walls(num_arms)).bool()
    q = params["optimism"].expand(num, WAYS * num_arms)
    return {
        "position": priority.new_full((num, 1), start(num_arms)),
        "q": q.masked_fill(closed, CLOSED),
    }


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """With probability epsilon any open way, else one of the best; equals are equally likely. The cell entered."""
    position = state["position"].long()
    values = state["q"].gather(-1, WAYS * position + position.new_tensor(range(WAYS)))
    best = values.amax(-1, keepdim=True).where(draws.uniform[:, :1] >= params["epsilon"], values.new_tensor(CLOSED / 2))
    way = sampled_arm((values >= best).float(), draws.uniform[:, 1])
    return position.squeeze(-1) + _offsets(state)[way]


def gone(state: State, arm: Tensor) -> Tensor:
    """The entry of `q` that stands for the move just made, int64 [N, 1]."""
    position = state["position"].long()
    way = (position + _offsets(state) == arm.unsqueeze(-1)).float().argmax(-1, keepdim=True)
    return WAYS * position + way


def behind(state: State) -> Tensor:
    """The cell behind each way out of each cell, int64 [4 A]; behind a wall, any cell."""
    cell = state["q"].new_ones(num_cells(state), 1).cumsum(0).long() - 1
    return (cell + _offsets(state)).clamp(0, len(cell) - 1).flatten()


def ends(num_arms: int, arm: Tensor) -> Tensor:
    """Whether each arm is a goal, bool shaped as `arm`."""
    return (arm.unsqueeze(-1) == arm.new_tensor(goals(num_arms))).any(-1)


def moved(state: State, arm: Tensor) -> Tensor:
    """Where the next move starts from, float [N, 1]: the cell entered, but the start after a goal."""
    num_arms = num_cells(state)
    return arm.masked_fill(ends(num_arms, arm), start(num_arms)).unsqueeze(-1).to(state["position"].dtype)


def num_cells(state: State) -> int:
    """A."""
    return state["q"].shape[-1] // WAYS


def q_update(state: State, params: Params, arm: Tensor, reward: Tensor) -> Tensor:
    """`q` after Watkins' one-step update of the move just made; nothing lies ahead of a goal."""
    q, index = state["q"], gone(state, arm)
    reached = arm.unsqueeze(-1)
    ahead = q.gather(-1, WAYS * reached + reached.new_tensor(range(WAYS))).amax(-1, keepdim=True)
    ahead = ahead.masked_fill(ends(num_cells(state), reached), 0.0)
    old = q.gather(-1, index)
    error = reward.unsqueeze(-1) + params["discount"] * ahead - old
    return q.scatter(-1, index, old + params["learning_rate"] * error)


def _offsets(state: State) -> Tensor:
    """How far each way leads in the numbering of cells, int64 [4]."""
    _, columns = layout(num_cells(state))
    return state["position"].long().new_tensor((-columns, 1, columns, -1))
