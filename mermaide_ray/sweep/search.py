"""How Ray Tune chooses trials and ends bad ones early: domains, Optuna, ASHA, population based training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from mermaide_ray.noise import generator
from mermaide_ray.sweep.plan import HAIR, Plan
from mermaide_ray.sweep.sections import Dimension
from mermaide_ray.sweep.status import Statuses
from mermaide_ray.sweep.trainable import SPENT, WORST


def scheduler_of(plan: Plan) -> TrialScheduler | None:
    """What ends trials early, or breeds them; None where each runs to its end."""
    tuning = plan.sweep.tune
    if tuning.scheduler == "asha":
        # Metric and mode are TuneConfig's.
        return ASHAScheduler(
            time_attr=SPENT, max_t=1.0, grace_period=tuning.asha.grace, reduction_factor=tuning.asha.reduction_factor
        )
    if tuning.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr=SPENT,
            perturbation_interval=tuning.pbt.interval - HAIR,
            quantile_fraction=tuning.pbt.quantile,
            # Alternatives as a list, through which it moves: what is drawn from a `choice` it would multiply.
            hyperparam_mutations={
                "drawn": {key: list(d.alternatives or ()) or domain_of(d) for key, d in plan.dimensions.items()}
            },
            custom_explore_fn=partial(_within_bounds, plan.dimensions),
            log_config=False,
        )
    return None


def _within_bounds(dimensions: Mapping[str, Dimension], config: dict[str, Any]) -> dict[str, Any]:
    """Perturbed settings, brought back to where they are defined: Tune multiplies by 0.8 or 1.2 whatever comes out."""
    for key, dimension in dimensions.items():
        if dimension.bounds is not None:
            low, high = dimension.bounds
            config["drawn"][key] = min(max(config["drawn"][key], low), high)
    return config


def optuna_search(plan: Plan, known: Statuses) -> tuple[OptunaSearch, int]:
    """The searcher, told of all trials that have ended and to go on first with those that have not; samples left."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tuning, metric = plan.sweep.tune, plan.metric
    scores: dict[str, list[float]] = {}
    values: dict[str, dict[str, str]] = {}
    for status in known.values():
        values[status.setting] = status.values
        if status.has_ended:
            scores.setdefault(status.setting, []).append(status.metrics.get(metric, WORST))
    scored = [trial for trial in values if len(scores.get(trial, ())) == len(plan.sweep.seeds)]
    points = {
        trial: {f"drawn/{key}": _point(plan, key, label) for key, label in found.items()}
        for trial, found in values.items()
    }
    # Seeded by how many there are: a sampler that starts over would draw the same again.
    dice = generator(tuning.seed, "train", "sweep/optuna", 0, len(values))
    search = OptunaSearch(
        {"drawn": {key: domain_of(dimension) for key, dimension in plan.dimensions.items()}},
        metric=metric,
        mode="max",
        points_to_evaluate=[point for trial, point in points.items() if trial not in scored],
        seed=int(dice.integers(2**31)),
    )
    for trial in scored:
        search.add_evaluated_point(points[trial], float(np.mean(scores[trial])))
    return search, max(0, tuning.samples - len(scored))


def _point(plan: Plan, key: str, label: str) -> Any:
    """A drawn value as `domain_of` has it, from its label."""
    return label if plan.dimensions[key].alternatives is not None else plan.drawn_value(key, label)


def domain_of(dimension: Dimension) -> Any:
    """A drawn dimension as Tune's. Alternatives go by their labels."""
    if dimension.alternatives is not None:
        return tune.choice(list(dimension.alternatives))
    if dimension.randint is not None:
        return tune.randint(dimension.randint[0], dimension.randint[1] + 1)
    if dimension.loguniform is not None:
        return tune.loguniform(*dimension.loguniform)
    assert dimension.uniform is not None
    return tune.uniform(*dimension.uniform)
