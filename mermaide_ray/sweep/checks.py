"""What is wrong with a sweep, found before anything starts: all that could only fail after hours of training.

Imports neither Ray nor Torch, but to play what is the user's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from mermaide_ray.agents.contract import check_own_families
from mermaide_ray.baselines.contract import check_own_rules
from mermaide_ray.config_file import flat, one_line
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment, check_game, check_imaginable
from mermaide_ray.metrics import SCALARS, is_validation, validation_key
from mermaide_ray.registry import near
from mermaide_ray.sweep.plan import HAIR, Plan, Setting
from mermaide_ray.sweep.sections import label_of, typed

# What file systems take, less the ending of the longest file of that name (`failures/<run>.txt`, while it is written).
_LONGEST_NAME = 230

# What may change while a principal is trained: of all else, weights or iterations of one member would not fit another.
_BREEDABLE = (
    "meta_learning.inner_lr",
    "meta_learning.inner_steps",
    "meta_learning.order",
    "meta_learning.estimator",
    "meta_learning.inner_policy_weight",
    "meta_learning.support_weight",
    "world_model.loss_weight",
    "world_model.policy_gradient",
)
# Rules of the user's own are played in so many games before anything starts.
_MOST_GAMES_TRIED = 8


def check_plan(plan: Plan) -> None:
    """Builds every setting, to find what is wrong before anything starts.

    Raises:
        InputError: A combination is no valid experiment, or can't be scored in one of the conditions.
    """
    _check_names(plan)
    settings = plan.extremes
    for setting in settings:
        if setting.experiment.name in plan.baselines:
            raise InputError(f"methods must have names of their own, got {setting.experiment.name!r}, a baseline's")
        bred = plan.sweep.tune.scheduler == "pbt"  # its members have numbers for names
        if not bred and len(name := setting.run_name(max(plan.sweep.seeds))) > _LONGEST_NAME:
            raise InputError(
                f"a run's name, which is its folder's, must have at most {_LONGEST_NAME} characters, got "
                f"{len(name)} in {name[:60]}… (give the values of `search` shorter labels, or vary fewer settings; "
                f"{plan.where})"
            )
        check_own_families(setting.experiment)
        _check_conditions(plan, setting)
    if plan.sweep.tune.scheduler == "pbt":
        _check_population(plan, settings)
    _check_scheduler(plan, settings)
    _check_rules(plan, settings)
    _check_metrics(plan, settings)
    _check_claim(plan, settings)


def _check_population(plan: Plan, settings: Sequence[Setting]) -> None:
    """Whether all that a population draws may change while its members are trained."""
    first, *others = (_unbreedable(setting.experiment) for setting in settings)
    for other in others:
        if differing := [key for key in first if first[key] != other.get(key)]:
            raise InputError(
                "`search` must hold what may change during training where tune.scheduler = pbt (all of `training` "
                f"but env_steps, {', '.join(_BREEDABLE)}), got {differing[0]} ({plan.where})"
            )
    if "meta_learning.inner_lr" in plan.dimensions and settings[0].experiment.meta_learning.learn_inner_lr:
        raise InputError(
            "`search` must not hold meta_learning.inner_lr where tune.scheduler = pbt and "
            f"meta_learning.learn_inner_lr is true: rates only start there ({plan.where})"
        )


def _check_scheduler(plan: Plan, settings: Sequence[Setting]) -> None:
    """Whether a scheduler hears of a trial in time to act on it: only at validations, the last of which ends it."""
    tune = plan.sweep.tune
    first = {"asha": ("asha.grace", tune.asha.grace), "pbt": ("pbt.interval", tune.pbt.interval)}
    if tune.scheduler not in first:
        return
    key, share = first[tune.scheduler]
    for setting in settings:
        experiment = setting.experiment
        total, apart = experiment.num_iterations, experiment.iterations_per_validation
        last = (total - 1) // apart * apart / total
        if last + HAIR < share:
            raise InputError(
                f"`evaluation.every` must give tune.scheduler = {tune.scheduler} a validation to act on, not before "
                f"tune.{key} ({share:g} of the budget) and not at the end, got {experiment.evaluation.every:g}, whose "
                f"last before the end is at {last:.2g} ({plan.place_of(setting.name)})"
            )


def _check_rules(plan: Plan, settings: Sequence[Setting]) -> None:
    """Whether rules that plan may, and how rules of the user's own play the first games in which they are scored."""
    from mermaide_ray.baselines import BASELINES

    for planner in (name for name in plan.baselines if name in BASELINES and BASELINES[name].plans):
        for setting in settings:
            for _, experiment, _ in plan.scored_in(setting):
                check_imaginable(experiment, f"for {planner} in `baselines`, {plan.where}")
    if not any(":" in name for name in plan.baselines):
        return
    games = {
        plan.game_key(condition, experiment): (experiment, plan.split(condition))
        for setting in settings
        for condition, experiment, _ in plan.scored_in(setting)
    }
    for experiment, split in itertools.islice(games.values(), _MOST_GAMES_TRIED):
        try:
            check_own_rules(plan.baselines, experiment, split)
        except InputError as error:
            raise InputError(f"{error} (`baselines`, {plan.where})") from error


def _check_names(plan: Plan) -> None:
    """What would say nothing (a `seed` beneath `seeds`), and rules that there are not."""
    from mermaide_ray.baselines import BASELINES, baseline_named

    if "seed" in plan.sweep.settings or "seed" in plan.sweep.search:
        raise InputError(
            f"training seeds must be given by `seeds`, got `seed` in `settings`, `search` or --set ({plan.where})"
        )
    for name in plan.baselines:
        if name not in BASELINES:  # those there are need no import of Torch
            try:
                baseline_named(name)
            except InputError as error:
                raise InputError(f"{error} (`baselines`, {plan.where})") from None


def _check_conditions(plan: Plan, setting: Setting) -> None:
    for name, experiment, _ in plan.scored_in(setting):
        check_own_families(experiment)
        check_game(setting.experiment, experiment.environment, f"conditions.{name}", plan.where)


def _check_metrics(plan: Plan, settings: Sequence[Setting]) -> None:
    """A search or a stop by what training never tells would go blindly on."""
    tune = plan.sweep.tune
    metric = [("metric", tune.metric)] if tune.metric else []
    asked = [*metric, *(("stop", name) for name in tune.stop)]
    for setting, (place, name) in itertools.product(settings, asked):
        told = rising(setting.experiment)
        if name not in told:
            raise InputError(
                f"`tune.{place}` must be among what training tells and is to rise ({', '.join(told)}), got {name!r}"
                f"{near(name, told)} ({plan.place_of(setting.name)})"
            )


def rising(experiment: Experiment) -> list[str]:
    """What training with these settings tells, and is to rise."""
    meta = experiment.meta_learning
    needs = {
        "adaptation/": meta.adaptation_episodes,
        "adaptation/inner_lr": meta.inner_steps,
        "world_model/": experiment.world_model.enabled,
    }
    told = [
        metric.key
        for metric in SCALARS
        if not metric.falls and all(given for start, given in needs.items() if metric.key.startswith(start))
    ]
    # Which validation scores there are is for `evaluation.k` to say.
    told = [key for key in told if not is_validation(key)]
    return told + [validation_key(k) for k in sorted(experiment.evaluation.k)]


def _check_claim(plan: Plan, settings: Sequence[Setting]) -> None:
    """What the report could only say after all training."""
    claim = plan.sweep.answer
    if claim is None:
        return
    among = claim.conditions or tuple(plan.sweep.conditions)
    scored_in = [list(plan.scored_in(setting)) for setting in settings]
    places = [place for of_setting in scored_in for place in of_setting if place[0] in among]
    lacking = [
        _lacks(experiment, max(scored) if claim.k is None else claim.k, claim.measure)
        for _, experiment, scored in places
    ]
    if all(lacking):
        raise InputError(
            f"`answer.measure` must be one that the sweep's methods have, got {claim.measure}, for which "
            f"{lacking[0]} ({plan.where})"
        )
    ks = {k for _, _, scored in places for k in scored}
    if claim.compare == "condition" and claim.k is None:
        conditions = list(plan.sweep.conditions)
        compared = [claim.claimed(conditions), *(claim.against or conditions)]
        for of_setting in scored_in:
            scored_at = {name: set(scored) for name, _, scored in of_setting}
            if not set.intersection(*(scored_at[str(place)] for place in compared)):
                raise InputError(
                    f"`answer.compare` = condition needs a K in common ({plan.where}), got "
                    + "; ".join(f"{place}: {sorted(scored_at[str(place)])}" for place in dict.fromkeys(compared))
                )
    alternatives = plan.dimensions[claim.compare].alternatives if claim.compare in plan.dimensions else None
    every: dict[str, list[Any]] = {
        claim.compare: [typed(label) for label in alternatives or ()],
        "method": [settings[0].experiment.name],
        "k": sorted(ks),
        "condition": list(plan.sweep.conditions),
    }
    claimed = claim.claimed(every[claim.compare] or [None])
    if any(_as_text(other) == _as_text(claimed) for other in claim.against or ()):
        raise InputError(
            f"`answer.against` must not name what is claimed to be better, {one_line(claimed)}, got "
            f"{one_line(list(claim.against or ()))} ({plan.where})"
        )
    methods = {*(setting.experiment.name for setting in settings), *plan.baselines}
    sides = {"value": (claim.value,), "against": claim.against or ()}
    known: dict[str, set[Any]] = {"k": ks, "method": methods}
    asked = [(place, given, known[claim.compare]) for place, given in sides.items() if claim.compare in known]
    for place, given, scored in [*asked, ("k", (claim.k,), ks)]:
        for value in given:
            if value is not None and value not in scored:
                there = ", ".join(map(str, sorted(scored)))
                raise InputError(
                    f"`answer.{place}` must be among what the sweep scores ({there}), got {one_line(value)} "
                    f"({plan.where})"
                )


def _as_text(value: Any) -> str:
    """A value of a claim, however it is written."""
    return value if isinstance(value, str) else label_of(value)


def _unbreedable(experiment: Experiment) -> dict[str, Any]:
    """What must stay as it is while a population's principals are trained, by dotted key."""
    settings = dict(flat(experiment.to_dict(), whole=("families",)))
    kept = {
        key: value
        for key, value in settings.items()
        if key not in _BREEDABLE and (not key.startswith("training.") or key == "training.env_steps")
    }
    # Any number of steps adapts the same weights; none adapts none.
    return kept | {"meta_learning.inner_steps": experiment.meta_learning.inner_steps > 0}


def _lacks(experiment: Experiment, most_k: int, measure: str) -> str | None:
    """What a method would have to be for its rows to have a measure; None if they have."""
    if measure.startswith("wm_") and measure.endswith(("_before", "_after")) and not experiment.world_model.enabled:
        return "world_model.enabled must be true"
    if measure == "planned" and not experiment.evaluation.planning:
        return "evaluation.planning must be true"
    return "some K must be > 0" if measure in ("planned", "support_return") and not most_k else None
