"""Learners that trade their own reward against the principal's.

They perceive (1 - spite) * own reward - spite * principal reward, and learn from that as the bandits they are made of.
Spite 0 is the plain learner, bit by bit; spite 1 cares for nothing but the principal's loss, so that without
interventions all arms but the target bring exactly nothing: ties, which are broken at random at each pull.
Reference: Brandt, Sandholm, Shoham: Spiteful Bidding in Sealed-Bid Auctions, IJCAI 2007, whose agents maximise this
convex combination (their spite coefficient alpha); differs: here it is learned from, pull by pull.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mermaide_ray.agents import epsilon_greedy, ucb
from mermaide_ray.agents.base import Draws, Family, Hyperparameter, Params, State, any_best

if TYPE_CHECKING:
    from torch import Tensor


def perceive(params: Params, agent_reward: Tensor, principal_reward: Tensor) -> Tensor:
    """The trade, float [N]."""
    spite = params["spite"].squeeze(-1)
    return (1 - spite) * agent_reward - spite * principal_reward


def act_ucb(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """As UCB does, ties at random."""
    return any_best(ucb.bounds(state, params, step), draws.uniform[:, 1])


def act_epsilon_greedy(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """As epsilon-greedy does, ties at random: who does not explore has no other use for the second draw."""
    explores = draws.uniform[:, 0] < params["epsilon"].squeeze(-1)
    return epsilon_greedy.act(state, params, step, draws).where(explores, any_best(state["mean"], draws.uniform[:, 1]))


def adversarial(family: Family, act: Callable[[State, Params, Tensor, Draws], Tensor]) -> Family:
    """The family, its agents with a spite of their own each."""
    return replace(
        family,
        name=f"adversarial_{family.name}",
        description=f"{family.name} that trades its own reward against the principal's",
        reference=f"{family.reference}; spite: Brandt, Sandholm, Shoham 2007",
        act=act,
        perceive=perceive,
        hyperparameters={
            **family.hyperparameters,
            "spite": Hyperparameter("lambda: weight of the principal's loss, 1 - lambda that of its own reward", 0, 1),
        },
    )


UCB = adversarial(ucb.FAMILY, act_ucb)
EPSILON_GREEDY = adversarial(epsilon_greedy.FAMILY, act_epsilon_greedy)
