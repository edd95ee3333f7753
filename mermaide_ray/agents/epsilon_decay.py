"""Epsilon-greedy whose epsilon falls with time.

Reference: Auer, Cesa-Bianchi, Fischer: Finite-time Analysis of the Multiarmed Bandit Problem, Machine Learning 47
(2002), epsilon_n-GREEDY: epsilon_n = min(1, c A / (d^2 n)) at pull n = 1, 2, …; differs: c A / d^2 is one free number
per agent, `epsilon_scale`. Estimates start at 0, ties at random.
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
    """With probability epsilon_n a uniform arm, else the arm with the best mean."""
    # Uniform draws are below 1, so the min(1, …) needs no doing.
    return explore_or_best(state["mean"], params["epsilon_scale"] / (step + 1), draws)


FAMILY = Family(
    name="epsilon_decay",
    description="epsilon-greedy whose epsilon falls as 1 / pulls",
    reference="Auer, Cesa-Bianchi, Fischer 2002 (epsilon_n-greedy)",
    init=sample_mean_init,
    act=act,
    learn=sample_mean_learn,
    hyperparameters={
        "epsilon_scale": Hyperparameter("pulls of pure exploration, after which epsilon = scale / pulls", 0.0, 1e6)
    },
)
