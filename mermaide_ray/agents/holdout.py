"""An agent that plays for incentives: it feigns reluctance, and works for no less than it was once paid.

Epsilon-greedy, but for strikes. It knows neither the target nor what of a reward is incentive; but an arm that falls
short of the best that it ever gave, by more than `demand`, was paid before and is not now. After more than `patience`
such pulls in a row the agent leaves the arm for `strike` pulls, though by its own estimates the arm is best, comes back
to see whether it is paid again, and stays if it is. So the principal can't win it over once and for all: each stretch
of work has its price. Under a `bonus` a strike costs it nothing but the better arm; under `signed` incentives it can be
penalised meanwhile, and leaves arms on which it is likewise.
Reference: the idea is that of buyers who refuse a price that they would accept, to have it lowered (Amin, Rostamizadeh,
Syed: Learning Prices for Repeated Auctions with Strategic Buyers, NIPS 2013); the rule is this project's own.
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


def init(params: Params, priority: Tensor) -> State:
    """Sample means; per arm the best reward yet, short pulls in a row, and pulls left of a strike."""
    nothing = priority.new_zeros(priority.shape)
    return {**sample_mean_init(params, priority), "best": nothing, "short": nothing, "away": nothing}


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """With probability epsilon a uniform arm, else the best mean among arms not on strike, or else those first back."""
    on_strike = state["away"] > state["away"].amin(-1, keepdim=True)
    return explore_or_best(state["mean"].masked_fill(on_strike, float("-inf")), params["epsilon"], draws)


def learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Learns the mean; counts short pulls, and begins or ends a strike on the arm."""
    index, reward_column = arm.unsqueeze(-1), reward.unsqueeze(-1)
    first = state["count"].gather(-1, index) == 0
    best = reward_column.where(first, state["best"].gather(-1, index).maximum(reward_column))
    falls_short = best - reward_column > params["demand"]
    short = (state["short"].gather(-1, index) + 1) * falls_short
    begins = short > params["patience"]
    left = (state["away"] - 1).clamp(min=0)
    # What is paid again is worked for again; a short pull, made to explore, shortens no strike.
    away = params["strike"].where(begins, left.gather(-1, index) * falls_short)
    return {
        **sample_mean_learn(state, params, step, arm, reward),
        "best": state["best"].scatter(-1, index, best),
        "short": state["short"].scatter(-1, index, short * ~begins),
        "away": left.scatter(-1, index, away),
    }


FAMILY = Family(
    name="holdout",
    description="plays for incentives: leaves an arm that pays less than it once did, until it pays again",
    reference="after Amin, Rostamizadeh, Syed 2013 (strategic buyers)",
    init=init,
    act=act,
    learn=learn,
    hyperparameters={
        "epsilon": Hyperparameter("probability of a uniform pull", 0.0, 1.0),
        "demand": Hyperparameter("shortfall from an arm's best reward that it minds, in units of reward", 0.0, 100.0),
        "patience": Hyperparameter("short pulls of an arm in a row that it bears", 0.0, 1000.0),
        "strike": Hyperparameter("pulls for which it then stays away from the arm", 0.0, 1000.0),
    },
)
