"""A learner of no school: sample means, a bonus for arms seldom pulled, softmax choice, lapses.

The agent that a learner model supposes (`models/learner_model.py`, where the sources are), as one that can be played.
UCB, epsilon-greedy and softmax agents are special cases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import (
    Draws,
    Family,
    Hyperparameter,
    Params,
    State,
    sample_mean_init,
    sample_mean_learn,
    softmax_arm,
    uniform_arm,
)

if TYPE_CHECKING:
    from torch import Tensor


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """With probability lapse a uniform arm, else one in proportion to exp(value / temperature)."""
    mean, count = state["mean"], state["count"]
    bonus = params["ucb_coefficient"] * (step + 1).log().sqrt() * count.clamp(min=1).rsqrt()
    value = (mean + bonus).where(count > 0, params["untried_value"])
    lapses = draws.uniform[:, 0] < params["lapse"].squeeze(-1)
    pulled = draws.uniform[:, 1]
    return uniform_arm(pulled, mean.shape[-1]).where(lapses, softmax_arm(value, params["temperature"], pulled))


FAMILY = Family(
    name="generic_learner",
    description="sample means, a UCB bonus, softmax choice and lapses at once: what a learner model supposes",
    reference="Wilson, Collins 2019 (softmax with lapses); Sutton, Barto 2018, section 2.7",
    init=sample_mean_init,
    act=act,
    learn=sample_mean_learn,
    hyperparameters={
        "ucb_coefficient": Hyperparameter("weight of the confidence bonus, in units of reward", 0.0, 100.0),
        "untried_value": Hyperparameter("value of an arm before its first pull, in units of reward", -100.0, 100.0),
        "temperature": Hyperparameter("temperature, in units of reward", 1e-3, 100.0),
        "lapse": Hyperparameter("probability of a uniform arm", 0.0, 1.0),
    },
)
