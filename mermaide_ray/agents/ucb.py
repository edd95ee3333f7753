"""UCB1 with a free exploration coefficient.

Reference: Auer, Cesa-Bianchi, Fischer: Finite-time Analysis of the Multiarmed Bandit Problem, Machine Learning 47
(2002), UCB1; differs: the bonus is c * sqrt(ln(t + 1) / N_a) with a coefficient c per agent (there, c = sqrt(2)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import (
    PRIORITY_SCALE,
    Draws,
    Family,
    Hyperparameter,
    Params,
    State,
    sample_mean_init,
    sample_mean_learn,
)

if TYPE_CHECKING:
    from torch import Tensor

# Above any index of a tried arm, below 1 / PRIORITY_SCALE; untried arms rank among themselves by priority.
UNTRIED = 1e36


def bounds(state: State, params: Params, step: Tensor) -> Tensor:
    """Upper confidence bounds, float [N, A]; those of untried arms are above all others, in order of priority."""
    count = state["count"]
    bonus = params["ucb_coefficient"] * (step + 1).log().sqrt()
    bound = state["mean"] + bonus * count.rsqrt()
    # An untried arm's estimate is its priority * PRIORITY_SCALE: brought up to 1e6 * priority, above any bound.
    return bound.where(count > 0, state["mean"] * UNTRIED)


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """Each arm once first, in order of priority; then the arm with the largest upper confidence bound."""
    return bounds(state, params, step).argmax(-1)


FAMILY = Family(
    name="ucb",
    description="upper confidence bound: optimism that shrinks with each pull of an arm",
    reference="Auer, Cesa-Bianchi, Fischer 2002 (UCB1)",
    init=sample_mean_init,
    act=act,
    learn=sample_mean_learn,
    hyperparameters={
        "ucb_coefficient": Hyperparameter("weight of the confidence bonus, in units of reward", 0.0, 100.0)
    },
)

assert FAMILY.hyperparameters["ucb_coefficient"].high * 100 < PRIORITY_SCALE * UNTRIED
