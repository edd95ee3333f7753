"""Agents that know the principal's policy: told what each arm is expected to be paid, they plan with it.

Before each pull the agent hears the offer, the expected incentive of each arm under the principal's probabilities. It
takes the offer off what it then perceives, so that it learns its own rewards, and pulls by its rewards and the offer
together. So an announcement steers it at once, and a past incentive steers it no more: what a follower does against a
leader that commits to a mixed strategy. Reference: Conitzer, Sandholm: Computing the Optimal Strategy to Commit to,
EC 2006; differs: the commitment is to one pull, and the follower learns its rewards as the bandit it is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mermaide_ray.agents import epsilon_greedy, ucb
from mermaide_ray.agents.base import (
    Draws,
    Family,
    Params,
    State,
    explore_or_best,
    sample_mean_init,
    sample_mean_learn,
)

if TYPE_CHECKING:
    from torch import Tensor


def init(params: Params, priority: Tensor) -> State:
    """Sample means of its own rewards, and no offer yet."""
    return {**sample_mean_init(params, priority), "offer": priority.new_zeros(priority.shape)}


def hear(state: State, params: Params, offer: Tensor) -> State:
    """Remembers the offer, float [N, A], until the pull is learned from."""
    return {**state, "offer": offer}


def learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Moves the pulled arm's mean by the reward less what was to be expected of the principal."""
    own = reward - state["offer"].gather(-1, arm.unsqueeze(-1)).squeeze(-1)
    return {**sample_mean_learn(state, params, step, arm, own), "offer": state["offer"]}


def act_ucb(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """Each arm once first, whatever the offer; then the largest upper confidence bound of own reward and offer."""
    with_offer = (state["mean"] + state["offer"]).where(state["count"] > 0, state["mean"])
    return ucb.act({**state, "mean": with_offer}, params, step, draws)


def act_epsilon_greedy(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """With probability epsilon a uniform arm, else the arm with the best sum of own mean and offer."""
    with_offer = state["mean"] + state["offer"]
    # Next to an offer the priority of untried arms is lost to rounding: among equals the mean decides, which holds it.
    equals = with_offer == with_offer.amax(-1, keepdim=True)
    return explore_or_best(state["mean"].masked_fill(~equals, float("-inf")), params["epsilon"], draws)


def informed(family: Family, called: str, act: Callable[[State, Params, Tensor, Draws], Tensor]) -> Family:
    """The family, informed: it learns its own rewards, and pulls by `act` with the offer in its state."""
    return replace(
        family,
        name=f"informed_{family.name}",
        description=f"{called} that is told the expected incentive of each arm and plans with it",
        reference=f"{family.reference}; informed as a follower of a commitment (Conitzer, Sandholm 2006)",
        init=init,
        act=act,
        learn=learn,
        hear=hear,
    )


UCB = informed(ucb.FAMILY, "UCB", act_ucb)
EPSILON_GREEDY = informed(epsilon_greedy.FAMILY, "epsilon-greedy", act_epsilon_greedy)
