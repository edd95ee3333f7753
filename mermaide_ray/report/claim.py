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
    compare, against = claim.compare, claim.against
    method = str(claim.claimed([study.main])) if compare == METHOD else study.main
    if method not in study.methods:
        if any(method in (source.document.get("methods") or ()) for source in study.sources):
            raise Unjudged(f"no run of {method} is finished")
        raise InputError(f"`answer.value` must be a method of the rows ({', '.join(study.methods)}), got {method!r}")
    named = study.conditions if against is None else against
    given = [claim.claimed(study.conditions), *named] if compare == CONDITION else conditions
    places = list(dict.fromkeys(map(str, given)))
    # At the largest K that all these conditions have in common, if they have any.
    shared = study.cells.shared_ks(method, places)
    if compare == CONDITION and claim.k is None and not shared and any(study.cells.ks(method, at) for at in places):
        raise Unjudged(f"{method} was scored at no K in common in {', '.join(places)}")
    k = max(shared or study.cells.ks(method)) if claim.k is None else claim.k
    if compare != K and k not in study.cells.ks(method):
        raise InputError(f"`answer.k` must be a K of the rows of {method} {study.cells.ks(method)}, got {k}")
    if compare == METHOD:
        every: list[Any] = [method, *(name for name in study.methods if name != method and not is_privileged(name))]
    elif compare == K:
        every = study.cells.ks(method)
    elif compare == CONDITION:
        every = study.conditions
    elif compare in study.settings:
        every = study.values_of(compare)
    else:
        known = [METHOD, K, CONDITION, *map(str, study.settings.columns)]
        raise InputError(f"`answer.compare` must be one of {', '.join(known)}, got {compare!r}{near(compare, known)}")
    value = claim.claimed(every)
    claimed = _as_in_rows(study, compare, value)
    default = [other for other in every if number(other) != claimed]
    # Whose, where it isn't the only one: methods are not averaged over.
    several = sum(is_trained(name) for name in study.methods) > 1
    whose = f"{label(method)}, " if several and compare != METHOD else ""
    rivals = default if against is None else list(against)
    if compare == METHOD:
        unknown = [name for name in rivals if name not in study.methods]
        # A sweep that is still running may lack one of them yet.
        rivals = [name for name in rivals if name not in unknown]
        settings = list(map(str, study.settings.index))

        def side(name: Any) -> Side:
            own = study.cells.k_beside(str(name), k, conditions)
            at = f" at K = {own}" * (own != k and is_trained(str(name)))
            return Side(label(str(name)) + at, {c: study.cells_of(str(name), own, [c], settings) for c in conditions})

    elif compare == K:

        def side(name: Any) -> Side:
            return Side(f"{whose}K = {int(name)}", {c: study.cells_of(method, int(name), [c]) for c in conditions})

    elif compare == CONDITION:

        def side(name: Any) -> Side:
            return Side(f"{whose}{name}", {ANYWHERE: study.cells_of(method, k, [str(name)])})

    else:

        def side(name: Any) -> Side:
            wanted = _as_in_rows(study, compare, name)
            chosen = [str(s) for s, at in study.settings[compare].items() if at == wanted]
            return Side(
                f"{whose}{short(compare)} = {shown(number(name))}",
                {c: study.cells_of(method, k, [c], chosen) for c in conditions},
            )

    one = side(value)
    if not one.over(conditions):
        raise Unjudged(f"no run with {compare} = {value} is finished")
    return one, [other for other in map(side, rivals) if other.over(conditions)], -1 if compare == K else k


def _as_in_rows(study: Study, compare: str, value: Any) -> Any:
    """A value as rows have it: of a setting as it stands, or with the digits that labels of broken numbers have."""
    value = number(value)
    known = set(study.settings[compare]) if compare in study.settings else {value}
    return value if value in known or not isinstance(value, float) else number(label_of(value))
