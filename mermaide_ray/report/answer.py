"""The answer to a study's question: one claim, the figures for and against it, a verdict, a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mermaide_ray.errors import InputError
from mermaide_ray.metrics import ROW_METRICS
from mermaide_ray.registry import near
from mermaide_ray.report.cells import Cell
from mermaide_ray.report.sources import number
from mermaide_ray.report.statistics import (
    QUARTILE,
    Interval,
    paired,
    paired_difference,
    probability_of_improvement,
    unpaired_difference,
)
from mermaide_ray.report.study import Study, short, shown
from mermaide_ray.report.table import SCORE, is_privileged, label

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
METHOD, K = "method", "k"
MEASURE_NAMES = {SCORE: "normalised score"}


@dataclass(frozen=True)
class Side:
    """One of the things compared: its name, and its cells by condition."""

    name: str
    cells: Mapping[str, list[Cell]]

    def over(self, conditions: Sequence[str]) -> list[Cell]:
        """Its cells in these conditions."""
        return [cell for condition in conditions for cell in self.cells[condition]]


@dataclass(frozen=True)
class Contrast:
    """One side against another, in some conditions.

    Attributes:
        other: The other side's name.
        conditions: Where.
        level, other_level: The measure of either.
        difference: This minus the other, positive where this is the higher.
        probability: That this one is better on a random task; None where their tasks differ.
        seeds, tasks: What this side's figure rests on.
        better: Whether the claimed side is better for sure (True), worse for sure (False), or neither (None).
    """

    other: str
    conditions: tuple[str, ...]
    level: Interval
    other_level: Interval
    difference: Interval
    probability: Interval | None
    seeds: int
    tasks: int
    better: bool | None


@dataclass(frozen=True)
class Answer:
    """What a study says to its question.

    Attributes:
        sentence: The answer, with its interval.
        verdict: supported, contradicted or undecided; None where nothing was claimed.
        name: The side that the claim is about.
        measure: The measure compared.
        contrasts: Against each other side, all conditions together; the closest rival first.
        by_condition: The same per condition, where there are several.
    """

    sentence: str
    verdict: str | None
    name: str
    measure: str
    contrasts: tuple[Contrast, ...]
    by_condition: tuple[Contrast, ...]


def answer(study: Study, *, seed: int = 0) -> Answer:
    """The answer to the claim of the sweep's `answer` section, or a neutral comparison of the main method.

    Raises:
        InputError: The section names what is not in the rows.
    """
    claim = study.claim
    neutral = claim is None
    if claim is None:
        held_out = [name for name in study.conditions if name == "test"] or study.conditions
        claim = {"compare": METHOD, "value": study.main, "conditions": held_out}
    measure, sign = _measure(study, claim)
    conditions = _conditions(study, claim)
    one, others, k = _sides(study, claim, conditions)
    contrasts = [_contrast(study, one, other, conditions, measure, sign, seed) for other in others]
    if not contrasts:
        return Answer(_alone(study, one, conditions, measure, k), None, one.name, measure, (), ())
    contrasts.sort(key=lambda contrast: sign * contrast.difference.value)
    single = [
        _contrast(study, one, other, [condition], measure, sign, seed)
        for condition in (conditions if len(conditions) > 1 else [])
        for other in others
        if one.cells[condition] and other.cells[condition]
    ]
    if neutral:
        return Answer(_neutral(contrasts[0], one, measure, k), None, one.name, measure, tuple(contrasts), tuple(single))
    verdict, because = verdict_of(contrasts, single)
    sentence = _sentence(verdict, because, contrasts, one, measure, k, study)
    return Answer(sentence, verdict, one.name, measure, tuple(contrasts), tuple(single))


def verdict_of(contrasts: Sequence[Contrast], by_condition: Sequence[Contrast] = ()) -> tuple[str, Contrast | None]:
    """Whether a claim to be better than all others holds, and the contrast that keeps it from holding, if any.

    Supported: better for sure than each of the others, and worse for sure in no condition. Contradicted: worse for sure
    than one of them. All else is undecided. "For sure": the 95% interval of the difference excludes 0. That each of
    several intervals must do so needs no correction for their number (an intersection-union test).
    """
    worse = next((contrast for contrast in contrasts if contrast.better is False), None)
    if worse is not None:
        return CONTRADICTED, worse
    unsure = next((contrast for contrast in contrasts if contrast.better is None), None)
    if unsure is None:
        unsure = next((contrast for contrast in by_condition if contrast.better is False), None)
    return (SUPPORTED, None) if unsure is None else (UNDECIDED, unsure)


def _measure(study: Study, claim: Mapping[str, Any]) -> tuple[str, int]:
    measure, known = str(claim.get("measure", SCORE)), [metric.key for metric in ROW_METRICS]
    if measure not in known or measure not in study.cells.measures:
        raise InputError(
            f"`answer.measure` must be a metric of the rows ({', '.join(known)}), got {measure!r}{near(measure, known)}"
        )
    better = str(claim.get("better", "higher"))
    if better not in ("higher", "lower"):
        raise InputError(f"`answer.better` must be higher or lower, got {better!r}")
    return measure, 1 if better == "higher" else -1


def _conditions(study: Study, claim: Mapping[str, Any]) -> list[str]:
    wanted = claim.get("conditions") or study.conditions
    wanted = [wanted] if isinstance(wanted, str) else list(map(str, wanted))
    missing = [name for name in wanted if name not in study.conditions]
    if missing:
        raise InputError(
            f"`answer.conditions` must be conditions of the rows ({', '.join(study.conditions)}), got {missing[0]!r}"
        )
    return wanted


def _sides(study: Study, claim: Mapping[str, Any], conditions: Sequence[str]) -> tuple[Side, list[Side], int]:
    """The side that is claimed to be better, the others, and K (-1 where K is what is compared)."""
    compare, value = str(claim.get("compare", METHOD)), claim.get("value", study.main)
    method = str(value) if compare == METHOD else study.main
    if method not in study.methods:
        raise InputError(f"`answer.value` must be a method of the rows ({', '.join(study.methods)}), got {method!r}")
    k = int(claim.get("k", max(study.cells.ks(method))))
    if compare != K and k not in study.cells.ks(method):
        raise InputError(f"`answer.k` must be a K of the rows of {method} {study.cells.ks(method)}, got {k}")
    if compare == METHOD:
        default: list[Any] = [name for name in study.methods if name != method and not is_privileged(name)]
    elif compare == K:
        default = [k for k in study.cells.ks(method) if k != number(value)]
    elif compare in study.settings:
        default = [other for other in study.values_of(compare) if other != number(value)]
    else:
        known = [METHOD, K, *map(str, study.settings.columns)]
        raise InputError(f"`answer.compare` must be one of {', '.join(known)}, got {compare!r}{near(compare, known)}")
    against = claim.get("against")
    rivals = default if against is None else list(against) if isinstance(against, list | tuple) else [against]
    if compare == METHOD:
        unknown = [name for name in rivals if name not in study.methods]
        # A sweep that is still running may lack one of them yet.
        rivals = [name for name in rivals if name not in unknown]
        settings = list(map(str, study.settings.index))

        def side(name: Any) -> Side:
            own = study.k_for(str(name), k)
            return Side(label(str(name)), {c: study.cells_of(str(name), own, [c], settings) for c in conditions})

    elif compare == K:

        def side(name: Any) -> Side:
            return Side(f"K = {int(name)}", {c: study.cells_of(method, int(name), [c]) for c in conditions})

    else:

        def side(name: Any) -> Side:
            chosen = [str(s) for s, at in study.settings[compare].items() if at == number(name)]
            return Side(
                f"{short(compare)} = {shown(number(name))}",
                {c: study.cells_of(method, k, [c], chosen) for c in conditions},
            )

    one = side(value)
    if not one.over(conditions):
        raise InputError(f"`answer.value` must be in the rows, got none with {compare} = {value}")
    return one, [other for other in map(side, rivals) if other.over(conditions)], -1 if compare == K else k


def _contrast(
    study: Study, one: Side, other: Side, conditions: Sequence[str], measure: str, sign: int, seed: int
) -> Contrast:
    shared = [condition for condition in conditions if one.cells[condition] and other.cells[condition]]
    mine, theirs = _in_common(study, one.over(shared), other.over(shared))
    cells, trim = study.cells, QUARTILE if measure == SCORE else 0.0
    x, y = cells.pooled(mine, measure), cells.pooled(theirs, measure)
    if not (x.size and y.size):
        raise InputError(f"{one.name} and {other.name} must have `{measure}` in {', '.join(conditions)}, got none")
    probability = None
    if cells.same_tasks(mine, theirs):
        tasks = x.columns.intersection(y.columns)
        seeds = x.index.intersection(y.index)
        x, y = x[tasks], y[tasks]
        if min(len(x), len(y)) > 1 and len(seeds):
            x, y = x.loc[seeds], y.loc[seeds]
        if min(len(x), len(y)) == 1 or len(seeds):
            difference = paired_difference(*paired(x, y), seed=seed, trim=trim)
        else:
            difference = unpaired_difference(x, y, seed=seed, trim=trim)
        signed = (x, y) if sign > 0 else (y, x)
        probability = probability_of_improvement(*signed, seed=seed, resamples=1000)
    else:
        difference = unpaired_difference(x, y, seed=seed, trim=trim)
    level, other_level = cells.interval(mine, measure, trim), cells.interval(theirs, measure, trim)
    assert level is not None
    assert other_level is not None
    better = sign * difference.value > 0
    sure = difference.low > 0 or difference.high < 0
    return Contrast(
        other=other.name,
        conditions=tuple(shared),
        level=level,
        other_level=other_level,
        difference=difference,
        probability=probability,
        seeds=len(x),
        tasks=x.shape[1],
        better=better if sure else None,
    )


def _in_common(study: Study, mine: list[Cell], theirs: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Only settings in which both sides were scored: a mean over others would compare different games.

    Where the sides are two values of one setting, they are matched by all other settings; if none match, all stand.
    """
    find, (one, *_), (other, *_) = study.cells.find, mine, theirs
    conditions = dict.fromkeys(cell.condition for cell in mine)
    found = [
        (find(one.method, setting, condition, one.k), find(other.method, setting, condition, other.k))
        for condition in conditions
        for setting in map(str, study.settings.index)
    ]
    pairs = [(a, b) for a, b in found if a is not None and b is not None and a in mine and b in theirs]
    if not pairs:
        pairs = [(a, b) for a in mine for b in theirs if _elsewhere(study, a, b)]
    if not pairs:
        return mine, theirs
    return list(dict.fromkeys(a for a, _ in pairs)), list(dict.fromkeys(b for _, b in pairs))


def _elsewhere(study: Study, one: Cell, other: Cell) -> bool:
    """Whether two settings differ in a single key (and the cells in nothing else)."""
    lines = study.settings.loc[one.setting], study.settings.loc[other.setting]
    return one.condition == other.condition and sum(a != b for a, b in zip(*lines, strict=True)) == 1


def _named(measure: str) -> str:
    return MEASURE_NAMES.get(measure, measure.replace("_", " "))


def _where(conditions: Sequence[str], k: int) -> str:
    at = f", K = {k}" if k >= 0 else ""
    *first, last = conditions
    return f"{', '.join(first)} and {last}{at}" if first else f"{last}{at}"


def _span(interval: Interval) -> str:
    return f"{interval.low:+.3f} to {interval.high:+.3f}"


def _basis(contrast: Contrast) -> str:
    seeds = "1 training seed" if contrast.seeds == 1 else f"{contrast.seeds} training seeds"
    return f"{seeds} × {contrast.tasks} tasks"


def _sentence(
    verdict: str, because: Contrast | None, contrasts: Sequence[Contrast], one: Side, measure: str, k: int, study: Study
) -> str:
    decisive = because or contrasts[0]
    difference = decisive.difference
    way = "above" if difference.value >= 0 else "below"
    among = f", its closest rival of {len(contrasts)}" if len(contrasts) > 1 and because is None else ""
    only = " alone" if because is not None and len(decisive.conditions) < len(contrasts[0].conditions) else ""
    return (
        f"{verdict.capitalize()}: {one.name} reaches a {_named(measure)} of {decisive.level.value:.3f} "
        f"({_where(decisive.conditions, k)}{only}), {abs(difference.value):.3f} {way} {decisive.other}{among} "
        f"(95% interval of the difference {_span(difference)}; {_basis(decisive)})."
    )


def _neutral(closest: Contrast, one: Side, measure: str, k: int) -> str:
    difference = closest.difference
    way = "above" if difference.value >= 0 else "below"
    sure = "" if closest.better is not None else ", which includes 0: the difference may be chance"
    return (
        f"{one.name} reaches a {_named(measure)} of {closest.level.value:.3f} ({_where(closest.conditions, k)}), "
        f"{abs(difference.value):.3f} {way} {closest.other}, the best unprivileged other method (95% interval of the "
        f"difference {_span(difference)}{sure}; {_basis(closest)})."
    )


def _alone(study: Study, one: Side, conditions: Sequence[str], measure: str, k: int) -> str:
    interval = study.cells.interval(one.over(conditions), measure, QUARTILE if measure == SCORE else 0.0)
    if interval is None:
        return f"{one.name} has no {_named(measure)} in {' and '.join(conditions)}: nothing can be said."
    return (
        f"{one.name} reaches a {_named(measure)} of {interval.value:.3f} ({_where(conditions, k)}; 95% interval "
        f"{interval.low:.3f} to {interval.high:.3f}); there is nothing yet to compare it with."
    )
