"""The strong Stackelberg equilibrium of a bimatrix game, and the best commitment without knowing the follower."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Equilibrium:
    """A strong Stackelberg equilibrium.

    Attributes:
        value: The leader's expected payoff.
        commitment: The leader's mixed strategy, float [M].
        response: The follower's column.
    """

    value: float
    commitment: Array
    response: int


def strong_stackelberg(leader: Array, follower: Array) -> Equilibrium:
    """Solves one linear program per column and takes the best.

    The program of column j: maximise x . leader[:, j] over mixed strategies x against which j is a best response.
    Source: Conitzer and Sandholm, Computing the Optimal Strategy to Commit to, EC 2006, section 3.

    Args:
        leader: The leader's payoffs, float [M, C].
        follower: The follower's payoffs, float [M, C].
    """
    rows, columns = leader.shape
    best: Equilibrium | None = None
    for column in range(columns):
        # x . (follower[:, other] - follower[:, column]) <= 0 for every other column.
        gain = (follower - follower[:, [column]]).T
        solved = linprog(
            -leader[:, column],
            A_ub=gain,
            b_ub=np.zeros(columns),
            A_eq=np.ones((1, rows)),
            b_eq=[1.0],
            bounds=(0, 1),
            method="highs",
        )
        if solved.status == 2:  # infeasible: the column is a best response to nothing
            continue
        assert solved.success, solved.message
        if best is None or -solved.fun > best.value:
            best = Equilibrium(float(-solved.fun), solved.x, column)
    assert best is not None  # some column is a best response to the first row
    return best
