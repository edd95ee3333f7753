"""The answer to a study's question: one claim, the figures for and against it, a verdict, a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mermaide_ray.report.cells import Cell, trim_of
from mermaide_ray.report.claim import ANYWHERE, CONDITION, METHOD, Side, Unjudged, conditions_of, measure_of, sides_of
from mermaide_ray.report.comparison import compare
from mermaide_ray.report.names import SCORE, is_trained, measure_name
from mermaide_ray.report.statistics import Interval
from mermaide_ray.report.study import Study
from mermaide_ray.sweep.sections import Claim

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
# More names than this are a count.
MOST_CONDITIONS = 3
# Two equal methods that were trained with one seed each would be told apart "for sure" in half of all studies, with two
# seeds in a third, with three in a tenth (a twentieth is what 95% promise).
SEEDS_FOR_A_VERDICT = 3


@dataclass(frozen=True)
class Contrast:
    """One side against another, in some conditions.

    Attributes:
        other: The other side's name.
        conditions: Where.
        level, other_level: The measure of either, over what is compared.
        difference: This minus the other, positive where this is the higher.
        probability: That this one is better on a random task; None where their tasks differ.
        seeds, tasks: What this side's figure rests on.
        num_settings: Settings that both figures are means over.
        better: Whether the claimed side is better for sure (True), worse for sure (False), or neither (None).
        too_few: Whether nothing is for sure because a trained side has too few training seeds.
        runs_of: Settings whose training runs stand one by one in place of seeds, which they do not share; 0 if none do.
    """

    other: str
    conditions: tuple[str, ...]
    level: Interval
    other_level: Interval
    difference: Interval
    probability: Interval | None
    seeds: int
    tasks: int
    num_settings: int
    better: bool | None
    too_few: bool = False
    runs_of: int = 0


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


def answer(study: Study) -> Answer:
    """The answer to the claim of the sweep's `answer` section, or a neutral comparison of the main method.

    Raises:
        InputError: The section names what is not in the rows.
    """
    if study.claim is None:
        return _answer(study, None)
    try:
        return _answer(study, study.claim)
    except Unjudged as missing:
        found = _answer(study, None)
        return replace(found, sentence=f"Not judged, since {missing}. {found.sentence}")


def _answer(study: Study, claim: Claim | None) -> Answer:
    neutral = claim is None
    if claim is None:
        held_out = [name for name in study.conditions if name == "test"] or study.conditions
        claim = Claim(value=study.main, conditions=tuple(held_out))
    measure, sign = measure_of(study, claim)
    conditions = [ANYWHERE] if claim.compare == CONDITION else conditions_of(study, claim)
    one, every, k = sides_of(study, claim, conditions)
    others = [other for other in every if any(one.cells[name] and other.cells[name] for name in conditions)]
    elsewhere = [other.name for other in every if other not in others]
    besides = f" Not compared, since it shares no condition: {', '.join(elsewhere)}." if elsewhere else ""
    if claim.compare == METHOD:
        apart = [o for o in others if not study.cells.may_stand_together(one.over(conditions), o.over(conditions))]
        others = [other for other in others if other not in apart]
        if apart:
            besides += f" Not compared, since it played no game in common: {', '.join(o.name for o in apart)}."
    found = [(other.name, _contrast(study, one, other, conditions, measure, sign)) for other in others]
    contrasts = [contrast for _, contrast in found if contrast]
    if contrasts and len(contrasts) < len(found):
        lacking = ", ".join(name for name, contrast in found if not contrast)
        besides += f" Not compared, since it has no {measure_name(measure)} to compare: {lacking}."
    if not contrasts:
        return Answer(_alone(study, one, conditions, measure, k) + besides, None, one.name, measure, (), ())
    contrasts.sort(key=lambda contrast: sign * contrast.difference.value)
    single = [
        contrast
        for condition in (conditions if len(conditions) > 1 else [])
        for other in others
        if (contrast := _contrast(study, one, other, [condition], measure, sign))
    ]
    if neutral:
        told = _neutral(contrasts[0], one, measure, k) + besides
        return Answer(told, None, one.name, measure, tuple(contrasts), tuple(single))
    verdict, because = verdict_of(contrasts, single)
    sentence = _sentence(verdict, because, contrasts, one, measure, k) + besides
    return Answer(sentence, verdict, one.name, measure, tuple(contrasts), tuple(single))


def verdict_of(contrasts: Sequence[Contrast], by_condition: Sequence[Contrast] = ()) -> tuple[str, Contrast | None]:
    """Whether a claim to be better than all others holds, and the contrast that keeps it from holding, if any.

    Supported: better for sure than each of the others, and worse for sure in no condition. Contradicted: worse for sure
    than one of them. All else is undecided. "For sure": the 95% interval of the difference excludes 0, and rests on
    `SEEDS_FOR_A_VERDICT` training seeds of each side that was trained. That each of several intervals must do so needs
    no correction for their number (an intersection-union test).
    """
    worse = next((contrast for contrast in contrasts if contrast.better is False), None)
    if worse is not None:
        return CONTRADICTED, worse
    unsure = next((contrast for contrast in contrasts if contrast.better is None), None)
    if unsure is None:
        unsure = next((contrast for contrast in by_condition if contrast.better is False), None)
    return (SUPPORTED, None) if unsure is None else (UNDECIDED, unsure)


def _contrast(
    study: Study, one: Side, other: Side, conditions: Sequence[str], measure: str, sign: int
) -> Contrast | None:
    """Over the conditions in which both sides have the measure; None where they have nothing of it to compare."""
    cells, sides = study.cells, (one, other)
    shared = [name for name in conditions if all(cells.pooled(side.cells[name], measure).size for side in sides)]
    if not shared:
        return None
    mine, theirs = _in_common(study, one.over(shared), other.over(shared))
    where = named_conditions([name for name in shared if name != ANYWHERE], " and ")
    between = f"{one.name} against {other.name}" + f", {where}" * bool(where)
    found = compare(cells, mine, theirs, measure, between=between, sign=sign)
    if found is None:
        return None
    x, y, difference, probability, _, runs_of = found
    better = sign * difference.value > 0
    too_few = any(
        len(matrix) < SEEDS_FOR_A_VERDICT and is_trained(cell.method) for matrix, (cell, *_) in ((x, mine), (y, theirs))
    )
    return Contrast(
        other=other.name,
        conditions=tuple(shared),
        level=cells.interval_of(x, trim_of(measure)),
        other_level=cells.interval_of(y, trim_of(measure)),
        difference=difference,
        probability=probability,
        seeds=len(x),
        tasks=x.shape[1],
        num_settings=1 if runs_of else _num_settings(study, mine, measure),
        runs_of=runs_of,
        better=better if _excludes_zero(difference) and not too_few else None,
        too_few=too_few,
    )


def _in_common(study: Study, mine: list[Cell], theirs: list[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Only settings in which both sides were scored: a mean over others would compare different games.

    Where the sides are two values of one setting, they are matched by all other settings; if none match, all stand.
    """
    find, (one, *_), (other, *_) = study.cells.find, mine, theirs
    # The same ones, unless these are what is compared.
    here, there = (dict.fromkeys(cell.condition for cell in side) for side in (mine, theirs))
    found = [
        (find(one.method, setting, condition, one.k), find(other.method, setting, elsewhere, other.k))
        for condition, elsewhere in zip(here, there, strict=True)
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


def _num_settings(study: Study, cells: Sequence[Cell], measure: str) -> int:
    """The settings that a figure over these cells is a mean of."""
    return len({cell.setting for cell in cells if study.cells.matrix(cell, measure).size})


def _where(conditions: Sequence[str], k: int, settings: int) -> str:
    places = named_conditions([name for name in conditions if name != ANYWHERE], " and ")
    over = f"mean of {settings} settings" if settings > 1 else ""
    return ", ".join(filter(None, (places, f"K = {k}" if k >= 0 else "", over)))


def named_conditions(conditions: Sequence[str], last: str = ", ") -> str:
    """Their names, or how many they are."""
    if len(conditions) > MOST_CONDITIONS:
        return f"{len(conditions)} conditions"
    return last.join(filter(None, (", ".join(conditions[:-1]), *conditions[-1:])))


def _excludes_zero(difference: Interval) -> bool:
    return difference.low > 0 or difference.high < 0


def _span(interval: Interval) -> str:
    return f"{interval.low:+.3f} to {interval.high:+.3f}"


def _basis(contrast: Contrast) -> str:
    several = contrast.runs_of > 1
    units = f"training {'run' if several else 'seed'}{'s' * (contrast.seeds != 1)}"
    of = f" of {contrast.runs_of} settings" * several
    return f"{contrast.seeds} {units}{of} × {contrast.tasks} tasks"


def _sentence(
    verdict: str, because: Contrast | None, contrasts: Sequence[Contrast], one: Side, measure: str, k: int
) -> str:
    decisive = because or contrasts[0]
    difference = decisive.difference
    way = "above" if difference.value >= 0 else "below"
    among = f", its closest rival of {len(contrasts)}" if len(contrasts) > 1 and because is None else ""
    only = " alone" if because is not None and len(decisive.conditions) < len(contrasts[0].conditions) else ""
    return (
        f"{verdict.capitalize()}: {one.name} reaches a {measure_name(measure)} of {decisive.level.value:.3f} "
        f"({_where(decisive.conditions, k, decisive.num_settings)}{only}), {abs(difference.value):.3f} {way} "
        f"{decisive.other}{among} (95% interval of the difference {_span(difference)}; {_basis(decisive)})."
        + f" With fewer than {SEEDS_FOR_A_VERDICT} training seeds there is no verdict."
        * decisive.too_few
    )


def _neutral(closest: Contrast, one: Side, measure: str, k: int) -> str:
    difference = closest.difference
    way = "above" if difference.value >= 0 else "below"
    sure = "" if _excludes_zero(difference) else ", which includes 0: the difference may be chance"
    return (
        f"{one.name} reaches a {measure_name(measure)} of {closest.level.value:.3f} "
        f"({_where(closest.conditions, k, closest.num_settings)}), {abs(difference.value):.3f} {way} {closest.other}, "
        f"the best unprivileged other method (95% interval of the difference {_span(difference)}{sure}; "
        f"{_basis(closest)})."
    )


def _alone(study: Study, one: Side, conditions: Sequence[str], measure: str, k: int) -> str:
    interval = study.cells.interval(one.over(conditions), measure)
    where = _where(conditions, k, _num_settings(study, one.over(conditions), measure))
    cells = one.over(conditions)
    if interval is None and any(study.cells.has_values(cell, measure) for cell in cells):
        return f"{one.name} ({where}): no training seed has a value in each of its settings: nothing can be said."
    if interval is None and measure == SCORE:
        return (
            f"No score for {one.name} ({where}): on none of these agents does the oracle gain anything "
            "by intervening. They do not respond to incentives, or not for what these cost."
        )
    if interval is None:
        return f"{one.name} has no {measure_name(measure)} ({where}): nothing can be said."
    return (
        f"{one.name} reaches a {measure_name(measure)} of {interval.value:.3f} ({where}; 95% interval "
        f"{interval.low:.3f} to {interval.high:.3f}); there is nothing yet to compare it with."
    )
