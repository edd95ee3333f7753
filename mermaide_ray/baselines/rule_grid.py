"""Simple rules of when to intervene, and the grids of them: what oracles choose from, and what planning tries.

A rule says what it looks at; who plays it must be able to see that. Oracles see it in the agent (`oracles.py`),
planning supposes it (`planning.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mermaide_ray.agents.base import Family
from mermaide_ray.baselines.rules import shares_of
from mermaide_ray.environment import Environment

NextArm = Literal["any", "target", "other", "away"]

_FIRST_N = tuple(step / 20 for step in range(1, 21))
_UNTIL = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_GAPS = (0.15, 0.3, 0.5, 0.8, 1.3)
# An agent informed of the policy takes the offer whole: without bonus for exploration, it follows any lead at all.
_SMALL_GAPS = (0.005, 0.05)


@dataclass(frozen=True)
class Rule:
    """Intervenes at pulls t < until while estimate(target) - max estimate(other arm) < gap, if the next arm is right.

    With an agent informed of the policy an offer counts at once: the least probability that brings the lead up to gap.

    Attributes:
        until: n, pulls.
        gap: m, in units of the agent's reward; infinite: no look at the estimates.
        next_arm: Intervene whatever the next arm is, only if it is the target, or only if it is another; in the
            continuous game also only if the next point is farther from the target than the last one (`away`).
        intervention: Which one (kind `arm`: always the target).
        goals_only: Intervene only if the next arm is a goal, one that might be a target.
        restarts: Whether t counts from the last change (base means redrawn, target moved) rather than from the start.
    """

    until: int
    gap: float = float("inf")
    next_arm: NextArm = "any"
    intervention: int = 1
    goals_only: bool = False
    restarts: bool = False


def first_rules(environment: Environment) -> list[Rule]:
    """Never, and the first n for each n of a grid."""
    horizon = environment.horizon
    rules = [
        Rule(n, intervention=intervention)
        for intervention in _interventions(environment)
        for n in shares_of(horizon, _FIRST_N)
        if n
    ]
    return [Rule(0), *_on_each_clock(environment, rules)]


def gap_rules(environment: Environment, families: Sequence[Family] = ()) -> list[Rule]:
    """Every (m, n) of a grid; m in multiples of delta, small ones too where some of the `families` are informed."""
    gaps = _GAPS if all(family.hear is None for family in families) else _SMALL_GAPS + _GAPS
    rules = [
        Rule(n, gap=share * environment.delta, intervention=intervention)
        for intervention in _interventions(environment)
        for share in gaps
        for n in shares_of(environment.horizon, _UNTIL)
        if n
    ]
    return _on_each_clock(environment, rules)


def foresight_rules(environment: Environment, next_arm: NextArm) -> list[Rule]:
    """Intervene only if the next arm is the target, only if it is another, or only if it is away from it, until n."""
    rules = [
        Rule(n, next_arm=next_arm, intervention=intervention)
        for intervention in _interventions(environment)
        for n in shares_of(environment.horizon, _UNTIL)
        if n
    ]
    return _on_each_clock(environment, rules)


def _on_each_clock(environment: Environment, rules: list[Rule]) -> list[Rule]:
    """The rules, and where something changes at once also those whose clock starts anew then."""
    changes = environment.changes
    if not (changes.num_switches or changes.of_target):
        return rules
    return rules + [replace(rule, restarts=True) for rule in rules if rule.until < environment.horizon]


def goal_rules(environment: Environment) -> list[Rule]:
    """Intervene only if the next arm is a goal, or only if it is a goal but not the target, until n."""
    either: tuple[Literal["any", "other"], ...] = ("any", "other")
    return [
        replace(rule, next_arm=next_arm, goals_only=True)
        for next_arm in either
        for rule in foresight_rules(environment, "other")
    ]


def _interventions(environment: Environment) -> range:
    return range(1, environment.num_interventions) if environment.intervention == "graded" else range(1, 2)
