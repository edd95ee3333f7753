"""The learners to be steered. One family a file; a new one is a file and a line in FAMILIES.

Families that are made of others, by a change that suits them all, share a file.
"""

from mermaide_ray.agents import (
    adversarial,
    epsilon_decay,
    epsilon_greedy,
    exp3,
    gradient_bandit,
    grid_dyna_q,
    grid_q_learning,
    holdout,
    informed,
    softmax,
    thompson,
    ucb,
)
from mermaide_ray.agents.base import Family
from mermaide_ray.registry import lookup

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        ucb,
        epsilon_greedy,
        epsilon_decay,
        thompson,
        softmax,
        gradient_bandit,
        exp3,
        holdout,
        grid_q_learning,
        grid_dyna_q,
    )
} | {
    family.name: family
    for family in (informed.UCB, informed.EPSILON_GREEDY, adversarial.UCB, adversarial.EPSILON_GREEDY)
}


def family_named(name: str) -> Family:
    """The family registered as `name`, or the user's own at a dotted path `package.module:NAME`."""
    return lookup(name, FAMILIES, Family, "agent family")
