"""Known ways in which the method fails, looked for in every study; each finding carries its numbers.

Each check is a function from a study to findings; `CHECKS` lists them. A check that finds nothing is named in the
report as well: silence then means "looked at", not "not looked at".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mermaide_ray.report.cells import Cell
from mermaide_ray.report.names import FLOORS, SEEDS_FOR_AN_INTERVAL, is_trained
from mermaide_ray.report.study import Study
from mermaide_ray.sweep.status import FAILED

# Intervening at fewer than this share of the steps, or at all but this share, is no longer a policy.
COLLAPSED = 0.01
# Seeds disagree where their mean scores lie further apart than this, on the scale from never (0) to the oracle (1), …
SEED_RANGE = 0.1
# … and vary this many times more than chance between seeds would make them (an F ratio).
SEED_RATIO = 5.0
# Share of the agents for which intervening may leave less than never intervening before it is worth a word.
LOSING_TASKS = 0.2
MOST_NAMED = 5
SERIOUS, NOTE = "serious", "note"
SIGNED = "{:+.3f}"


@dataclass(frozen=True)
class Finding:
    """One failure signature that was found.

    Attributes:
        check: Key of the check in CHECKS.
        severity: serious (a conclusion may be wrong) or note.
        text: What was found, with its numbers, in one or two sentences.
    """

    check: str
    severity: str
    text: str


@dataclass(frozen=True)
class Check:
    """One failure signature that is looked for.

    Attributes:
        title: What is found, if it is.
        meaning: What is looked for, and what to do about it.
        find: The findings in a study.
    """

    title: str
    meaning: str
    find: Callable[[Study], Iterator[tuple[str, str]]]


def diagnose(study: Study) -> list[Finding]:
    """All findings, serious ones first."""
    # The first check tells of what had to be left out, which is known once the others have looked.
    found = {key: list(check.find(study)) for key, check in reversed(CHECKS.items())}
    findings = [Finding(key, *finding) for key in CHECKS for finding in found[key]]
    return sorted(findings, key=lambda finding: finding.severity != SERIOUS)


def _world_model(study: Study) -> Iterator[tuple[str, str]]:
    if not {"wm_nll_after", *FLOORS} <= study.cells.measures:
        return
    for method, k, condition, cells in _trained(study, largest=True):
        after = study.cells.pooled(cells, "wm_nll_after")
        if not after.size:
            continue
        floor, above = study.better_floor(cells)
        gap = study.cells.interval_of(above, 0)
        if gap.high >= 0:
            how = "no better than" if gap.value >= 0 else "not for sure better than"
            yield (
                SERIOUS if gap.value >= 0 else NOTE,
                f"{method}, {condition}, K = {k}: the world model's loss on the next pull is {_mean(after):.3f} nats "
                f"per pull, {how} the {FLOORS[floor]} ({_mean(after - above):.3f}; difference "
                f"{gap.text(SIGNED)}, 95%).",
            )


def _adaptation(study: Study) -> Iterator[tuple[str, str]]:
    for method, k, condition, _ in _trained(study, largest=True):
        gain = study.gain_of_k(method, condition)
        if not gain.size:
            continue
        least = min(study.cells.ks(method, condition))
        overall = study.cells.interval_of(gain)
        if overall.high < 0:
            yield (
                SERIOUS,
                f"{method}, {condition}: K = {k} is worse than K = {least}, by {overall.text(SIGNED)} in score (95%).",
            )
        elif overall.low <= 0:
            yield (
                NOTE,
                f"{method}, {condition}: K = {k} is not for sure better than K = {least} (difference in score "
                f"{overall.text(SIGNED)}, 95%).",
            )
        families = study.cells.families(gain.columns)
        several = len(set(families)) > 1
        for family in dict.fromkeys(families) if several and overall.high >= 0 else ():
            of_family = study.cells.interval_of(gain.loc[:, [name == family for name in families]])
            if of_family.high < 0:
                yield (
                    SERIOUS,
                    f"{method}, {condition}: adapting to {family} agents hurts: K = {k} changes their score by "
                    f"{of_family.text(SIGNED)} (95%) against K = {least}.",
                )


def _cost(study: Study) -> Iterator[tuple[str, str]]:
    if not {"return", "never_return"} <= study.cells.measures:
        return
    for method, k, condition, cells in _trained(study, largest=False):
        returns = study.cells.pooled(cells, "return")
        if not returns.size:
            continue
        gain = returns - study.cells.pooled(cells, "never_return").reindex_like(returns)
        losing = float((gain.mean() < 0).mean())
        overall = study.cells.interval_of(gain, 0)
        if overall.high < 0 or losing > LOSING_TASKS:
            amount = study.cells.pooled(cells, "interventions") if "interventions" in study.cells.measures else None
            spent = "" if amount is None else f", with {_mean(amount):.1f} interventions per episode"
            yield (
                SERIOUS if overall.value < 0 else NOTE,
                f"{method}, {condition}, K = {k}: interventions bring {overall.text('{:+.2f}')} (95%) of return per "
                f"episode against never intervening{spent}; for {losing:.0%} of the agents they cost more than they "
                "bring.",
            )


def _seeds(study: Study) -> Iterator[tuple[str, str]]:
    for method, k, condition, cells in _trained(study, largest=True):
        by_setting: dict[str, list[Cell]] = {}
        for cell in cells:
            by_setting.setdefault(cell.setting, []).append(cell)
        apart = []
        for setting, of_setting in by_setting.items():
            scores = study.cells.pooled(of_setting)
            if len(scores) < 2 or scores.shape[1] < 2:
                continue
            means = scores.mean(axis=1)
            if means.max() - means.min() > SEED_RANGE and _seed_ratio(scores) > SEED_RATIO:
                apart.append((float(means.max() - means.min()), setting, means))
        if apart:
            _, setting, means = max(apart, key=lambda found: found[0])
            where = f" with {setting}" if setting else ""
            several = f" (the widest of {len(apart)} among {len(by_setting)} settings)" if len(apart) > 1 else ""
            yield (
                SERIOUS,
                f"{method}, {condition}, K = {k}{where}: mean scores of {len(means)} training seeds range from "
                f"{means.min():.2f} (seed {means.idxmin()}) to {means.max():.2f} (seed {means.idxmax()}){several}.",
            )


def _collapse(study: Study) -> Iterator[tuple[str, str]]:
    if "interventions" not in study.cells.measures:
        return
    for method, k, condition, cells in _trained(study, largest=True):
        counted: dict[str, list[str]] = {"never": [], "always": []}
        runs = 0
        for cell in cells:
            amounts, horizon = study.cells.matrix(cell, "interventions"), study.horizon(cell)
            runs += len(amounts)
            for seed, amount in amounts.mean(axis=1).items():
                name = f"seed {seed}" + (f" of {cell.setting}" if cell.setting else "")
                if amount <= COLLAPSED * horizon:
                    counted["never"].append(f"{name}: {amount:.1f} of {horizon:.0f}")
                elif amount >= (1 - COLLAPSED) * horizon:
                    counted["always"].append(f"{name}: {amount:.1f} of {horizon:.0f}")
        for way, named in counted.items():
            if named:
                yield (
                    SERIOUS,
                    f"{method}, {condition}, K = {k}: {len(named)} of {runs} trained principals {way} intervene "
                    f"(steps per episode: {_listed(named)}).",
                )


def _few_seeds(study: Study) -> Iterator[tuple[str, str]]:
    for method in study.methods:
        cells = [cell for cell in study.cells if cell.method == method and is_trained(method)]
        fewest = min((len(study.cells.seeds(cell)) for cell in cells), default=SEEDS_FOR_AN_INTERVAL)
        if fewest < SEEDS_FOR_AN_INTERVAL:
            only = "its intervals are over tasks only" if fewest == 1 else "its intervals are too narrow"
            yield NOTE, f"{method} has {fewest} training seed{'s' * (fewest > 1)} in some setting: {only}."


def _games(study: Study) -> Iterator[tuple[str, str]]:
    apart: dict[str, dict[str, None]] = {}
    for one, other in study.cells.mixed_games():
        apart.setdefault(f"{one.condition}, {one.method}", {})[other.method] = None
    for where, others in apart.items():
        yield (
            SERIOUS,
            f"{where} played another game than {', '.join(others)}: never intervening earns another return on the same "
            "tasks, or they met other agents. Their figures stand side by side, but can't be compared.",
        )


def _failures(study: Study) -> Iterator[tuple[str, str]]:
    for source in study.sources:
        if source.trials is None:
            continue
        failed = source.trials[source.trials["status"].astype(str) == FAILED]
        if len(failed):
            named = [f"{trial}, seed {seed}" for trial, seed in zip(failed["trial"], failed["seed"], strict=True)]
            yield (
                SERIOUS,
                f"{source.name}: {len(failed)} of {len(source.trials)} training runs failed ({_listed(named)}); what "
                "is left may be the easier part.",
            )
    for note in study.cells.left_out:
        yield SERIOUS, note


CHECKS: dict[str, Check] = {
    "failed_trials": Check(
        "training runs failed or are incomplete",
        "Failed runs are missing from every figure; if the hard settings fail, what is left looks better than it is.",
        _failures,
    ),
    "mixed_games": Check(
        "methods did not play the same game",
        "The return of never intervening on a task is the game's own: where it differs between methods of one setting "
        "and condition, folders of other games or other agents were put together.",
        _games,
    ),
    "world_model_floor": Check(
        "the world model is no better than its floors",
        "Its loss on the agent's next pull is compared with two predictors that learn nothing: the uniform one, and "
        "the agent's own running frequencies. Adaptation can't work through a model that has learned nothing about "
        "agents.",
        _world_model,
    ),
    "adaptation": Check(
        "adaptation does not help, or hurts",
        "The score at the largest K against that at the smallest one, paired, over all agents and per family.",
        _adaptation,
    ),
    "cost": Check(
        "interventions cost more than they bring",
        "The return against that of never intervening on the same task with the same luck.",
        _cost,
    ),
    "seeds_disagree": Check(
        "training seeds disagree",
        f"Mean scores of training seeds lie more than {SEED_RANGE} apart, and vary more than {SEED_RATIO:.0f} times as "
        "much as chance allows: a mean over them describes none of them.",
        _seeds,
    ),
    "collapse": Check(
        "principals collapsed into never or always intervening",
        f"Fewer than {COLLAPSED:.0%} or more than {1 - COLLAPSED:.0%} of the steps have an intervention.",
        _collapse,
    ),
    "few_seeds": Check(
        "few training seeds",
        f"With fewer than {SEEDS_FOR_AN_INTERVAL} training seeds, 95% intervals cover less than they say.",
        _few_seeds,
    ),
}


def _trained(study: Study, largest: bool) -> Iterator[tuple[str, int, str, list[Cell]]]:
    """(method, K, condition, cells) of trained methods, at the largest K or at all."""
    for method in study.methods:
        if is_trained(method):
            for condition in study.conditions:
                ks = study.cells.ks(method, condition)
                for k in ks[-1:] if largest else ks:
                    cells = study.cells_of(method, k, [condition])
                    if cells:
                        yield method, k, condition, cells


def _seed_ratio(scores: pd.DataFrame) -> float:
    """F ratio of training seeds in a two-way layout [S, T]: variance between seeds over what is left of it."""
    values = scores.to_numpy()
    seeds, tasks = values.shape
    by_seed, by_task = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    between = tasks * ((by_seed - values.mean()) ** 2).sum() / (seeds - 1)
    left = ((values - by_seed - by_task + values.mean()) ** 2).sum() / ((seeds - 1) * (tasks - 1))
    return float("inf") if left == 0 else float(between / left)


def _mean(values: pd.DataFrame) -> float:
    return float(np.mean(values.to_numpy()))


def _listed(names: Sequence[str]) -> str:
    more = f"; and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return "; ".join(names[:MOST_NAMED]) + more
