"""The learners to be steered. One family a file; a new one is a file and a line in FAMILIES.

Families that are made of others, by a change that suits them all, share a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents import (
    adversarial,
    epsilon_decay,
    epsilon_greedy,
    evolution,
    exp3,
    generic_learner,
    gp_ucb,
    gradient_bandit,
    grid_dyna_q,
    grid_q_learning,
    holdout,
    informed,
    kernel_ucb,
    softmax,
    thompson,
    two_point_gradient,
    ucb,
)
from mermaide_ray.agents.base import Family, PointFamily
from mermaide_ray.registry import lookup

if TYPE_CHECKING:
    from mermaide_ray.points import Space

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        ucb.FAMILY,
        epsilon_greedy.FAMILY,
        epsilon_decay.FAMILY,
        thompson.FAMILY,
        softmax.FAMILY,
        gradient_bandit.FAMILY,
        exp3.FAMILY,
        generic_learner.FAMILY,
        holdout.FAMILY,
        grid_q_learning.FAMILY,
        grid_dyna_q.FAMILY,
        informed.UCB,
        informed.EPSILON_GREEDY,
        adversarial.UCB,
        adversarial.EPSILON_GREEDY,
    )
}

POINT_FAMILIES: dict[str, PointFamily] = {
    family.name: family for family in (kernel_ucb.FAMILY, gp_ucb.FAMILY, two_point_gradient.FAMILY, evolution.FAMILY)
}
"""Those of the continuous game."""

ALL_FAMILIES: dict[str, Family | PointFamily] = {**FAMILIES, **POINT_FAMILIES}


def family_named(name: str, space: Space | None = None) -> Family:
    """The family registered as `name`, or the user's own at a dotted path `package.module:NAME`.

    Args:
        name: See above.
        space: Where its points lie, for a family that chooses points; None for one that pulls arms.
    """
    if space is None:
        return lookup(name, FAMILIES, Family, "agent family")
    return lookup(name, POINT_FAMILIES, PointFamily, "agent family of the continuous game").on(space)
