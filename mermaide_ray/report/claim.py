"""What a sweep's `answer` section claims: a measure, conditions, and the sides that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mermaide_ray.errors import InputError
from mermaide_ray.registry import near
from mermaide_ray.report.cells import Cell
from mermaide_ray.report.names import is_privileged, is_trained, label
from mermaide_ray.report.sources import MEASURES, number
from mermaide_ray.report.study import Study, short, shown
from mermaide_ray.sweep.sections import Claim, label_of

METHOD, K, CONDITION = "method", "k", "condition"
# Where conditions are what is compared, a side has cells of its own condition only.
ANYWHERE = "–"


class Unjudged(InputError):
    """What is claimed is known to the sweep but has no rows: its runs failed, were stopped, or are still to come."""


@dataclass(frozen=True)
class Side:
    """One of the things compared: its name, and its cells by condition."""

    name: str
    cells: Mapping[str, list[Cell]]

    def over(self, conditions: Sequence[str]) -> list[Cell]:
        """Its cells in these conditions."""
        return [cell for condition in conditions for cell in self.cells[condition]]


def measure_of(study: Study, claim: Claim) -> tuple[str, int]:
    """The measure compared, and 1 where more of it is better, -1 where less is."""
    if claim.measure not in study.cells.measures:
        known = ", ".join(measure for measure in MEASURES if measure in study.cells.measures)
        raise InputError(f"`answer.measure` must be a metric of these rows ({known}), got {claim.measure!r}")
    return claim.measure, 1 if claim.better == "higher" else -1


def conditions_of(study: Study, claim: Claim) -> list[str]:
    """The conditions that the claim is about."""
    wanted = list(claim.conditions or study.conditions)
    missing = [name for name in wanted if name not in study.conditions]
    if missing:
        raise InputError(
            f"`answer.conditions` must be conditions of the rows ({', '.join(study.conditions)}), got {missing[0]!r}"
        )
    return wanted


def sides_of(study: Study, claim: Claim, conditions: Sequence[str]) -> tuple[Side, list[Side], int]:
    """The side that is claimed to be better, the others, and K (-1 where K is what is compared)."""
    compare = claim.compare
    method = str(claim.claimed([study.main])) if compare == METHOD else study.main
    if method not in study.methods:
        if any(method in (source.document.get("methods") or ()) for source in study.sources):
            raise Unjudged(f"no run of {method} is finished")
        raise InputError(f"`answer.value` must be a method of the rows ({', '.join(study.methods)}), got {method!r}")
    given = _Given(study, compare, method, _k_of(study, claim, method, conditions), conditions)
    every = _every(given)
    value = claim.claimed(every)
    side = {METHOD: _of_method, K: _of_k, CONDITION: _of_condition}.get(compare, _of_setting)
    one = side(given, value)
    if not one.over(conditions):
        raise Unjudged(f"no run with {compare} = {value} is finished")
    claimed = _as_in_rows(study, compare, value)
    rivals = [other for other in every if number(other) != claimed] if claim.against is None else claim.against
    others = [side(given, rival) for rival in rivals]
    for other in others:
        if claim.against is not None and not other.over(conditions):
            # A sweep that is still running may lack some of them yet.
            study.cells.left_out[f"{other.name}: not compared, though the claim names it, since it has no rows."] = None
    return one, [other for other in others if other.over(conditions)], -1 if compare == K else given.k


@dataclass(frozen=True)
class _Given:
    """What both sides have in common, but for what is compared.

    Attributes:
        study: Whose rows.
        compare: What is compared.
        method: The method within which; where methods are compared, the claimed one.
        k: Numbers of support episodes.
        conditions: The conditions.
    """

    study: Study
    compare: str
    method: str
    k: int
    conditions: Sequence[str]

    @property
    def whose(self) -> str:
        """The method, to begin a side's name, where it isn't the only one: methods are not averaged over."""
        return f"{label(self.method)}, " if sum(map(is_trained, self.study.methods)) > 1 else ""


def _of_method(given: _Given, name: Any) -> Side:
    study, name = given.study, str(name)
    k = study.cells.k_beside(name, given.k, given.conditions)
    at = f" at K = {k}" * (k != given.k and is_trained(name))
    return Side(label(name) + at, {c: study.cells_of(name, k, [c]) for c in given.conditions})


def _of_k(given: _Given, k: Any) -> Side:
    cells = {c: given.study.cells_of(given.method, int(k), [c]) for c in given.conditions}
    return Side(f"{given.whose}K = {int(k)}", cells)


def _of_condition(given: _Given, condition: Any) -> Side:
    cells = given.study.cells_of(given.method, given.k, [str(condition)])
    return Side(f"{given.whose}{condition}", {ANYWHERE: cells})


def _of_setting(given: _Given, value: Any) -> Side:
    study, key = given.study, given.compare
    wanted = _as_in_rows(study, key, value)
    chosen = [str(setting) for setting, at in study.settings[key].items() if at == wanted]
    cells = {c: study.cells_of(given.method, given.k, [c], chosen) for c in given.conditions}
    return Side(f"{given.whose}{short(key)} = {shown(number(value))}", cells)


def _k_of(study: Study, claim: Claim, method: str, conditions: Sequence[str]) -> int:
    """K at which the method is compared: the claim's, or the largest that all its conditions have in common, if any."""
    are_compared, scored = claim.compare == CONDITION, study.cells.ks(method)
    named = study.conditions if claim.against is None else claim.against
    given = [claim.claimed(study.conditions), *named] if are_compared else conditions
    places = list(dict.fromkeys(map(str, given)))
    shared = study.cells.shared_ks(method, places)
    if are_compared and claim.k is None and not shared and any(study.cells.ks(method, at) for at in places):
        raise Unjudged(f"{method} was scored at no K in common in {', '.join(places)}")
    k = max(shared or scored) if claim.k is None else claim.k
    if claim.compare != K and k not in scored:
        raise InputError(f"`answer.k` must be a K of the rows of {method} {scored}, got {k}")
    return k


def _every(given: _Given) -> list[Any]:
    """All that could be compared: methods, numbers of support episodes, conditions, or values of a setting."""
    study, compare, method = given.study, given.compare, given.method
    if compare == METHOD:
        return [method, *(name for name in study.methods if name != method and not is_privileged(name))]
    if compare == K:
        return list(study.cells.ks(method))
    if compare == CONDITION:
        return list(study.conditions)
    if compare in study.settings:
        return study.values_of(compare)
    known = [METHOD, K, CONDITION, *map(str, study.settings.columns)]
    raise InputError(f"`answer.compare` must be one of {', '.join(known)}, got {compare!r}{near(compare, known)}")


def _as_in_rows(study: Study, compare: str, value: Any) -> Any:
    """A value as rows have it: of a setting as it stands, or with the digits that labels of broken numbers have."""
    value = number(value)
    known = set(study.settings[compare]) if compare in study.settings else {value}
    return value if value in known or not isinstance(value, float) else number(label_of(value))
