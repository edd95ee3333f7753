"""Whether what a sweep would do is what was done in its folder: the same sweep, and settings that mean what they did.

Imports neither Ray nor Torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from mermaide_ray.config_file import flat, one_line, parse_sections
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import SCORED_ELSEWHERE, Experiment, validate
from mermaide_ray.storage import completed, first_change
from mermaide_ray.sweep.plan import Plan, Setting
from mermaide_ray.sweep.sections import Sweep
from mermaide_ray.sweep.status import RunStatus, Statuses
from mermaide_ray.sweep.store import Store


def check_sweep(theirs: Sweep, sweep: Sweep, other_rules: bool, where: str) -> None:
    """Refuses to go on with a sweep as with another one.

    Args:
        theirs: The one to go on with.
        sweep: What it is to be gone on with as.
        other_rules: Whether `baselines` may differ.
        where: The file of the first, as the user knows it.

    Raises:
        InputError: They differ in more than who does the work, what is asked, and how much there is of it.
    """
    # What a trial takes may change between the two halves of a sweep; what is done may not.
    free = {"resources", "answer", "question", "rows"} | ({"baselines"} if other_rules else set())
    grown = _grown(theirs, sweep)
    for key in type(sweep).model_fields:
        if key not in free and _done_by_anyone(grown, key) != _done_by_anyone(sweep, key):
            may_grow = "; `seeds`, `tune.samples` and, but for a population, `tune.env_steps` may grow"
            more = may_grow if key in ("seeds", "tune") else ""
            told = f" {sweep.name!r} (of a file that gives none, its stem)" if key == "name" else ""
            raise InputError(
                f"a sweep that goes on must stay the same, but `{key}`{told} is not that of {where} "
                f"(give another --out{more})"
            )


def _done_by_anyone(sweep: Sweep, key: str) -> object:
    """A key of a sweep, but for who does the work: another machine may have fewer cores, or no GPU."""
    value = getattr(sweep, key)
    return {name: v for name, v in value.items() if name != "env_runners"} if key == "settings" else value


def _grown(theirs: Sweep, sweep: Sweep) -> Sweep:
    """An earlier sweep, with the seeds, samples and budget that it has now, where these only add to what was done."""
    before, now = theirs.tune, sweep.tune
    tuning: dict[str, object] = {"max_failures": now.max_failures}
    # A scheduler has judged trials by all their seeds, and against each other.
    if before.scheduler == now.scheduler == "none" and before.samples < now.samples:
        tuning["samples"] = now.samples
    # Nor does Tune start those again that it has ended in a population.
    if before.env_steps and before.scheduler != "pbt" and (now.env_steps or math.inf) > before.env_steps:
        tuning["env_steps"] = now.env_steps
    changed: dict[str, object] = {"tune": before.model_copy(update=tuning)}
    enumerated = theirs.is_enumerated and sweep.tune.scheduler == "none"
    if enumerated and theirs.seeds == sweep.seeds[: len(theirs.seeds)]:
        changed["seeds"] = sweep.seeds
    return theirs.model_copy(update=changed)


def check_runs(plan: Plan, store: Store, known: Statuses) -> None:
    """Refuses to add runs to finished ones that were trained or scored otherwise.

    A sweep's file holds what differs from the defaults, and these are not the same in every version. What a run was
    trained and scored with is in its own folder.

    Args:
        plan: The sweep's.
        store: The sweep's.
        known: What is on record of its runs.

    Raises:
        InputError: Settings of a finished run would be others now.
    """
    seen = set()
    for name, status in known.items():
        place = f"runs/{name}/config.yaml"
        text = (store.read(place) or b"").decode() if status.is_done else ""
        but_its_seed = re.sub(r"^seed: \d+$", "", text, flags=re.MULTILINE)
        if not text or but_its_seed in seen:  # each takes a while to read
            continue
        seen.add(but_its_seed)
        where = store.uri(place)
        theirs = validate(completed(parse_sections(text, where)), where)
        for key, then, now in _changes(plan, status, theirs):
            raise InputError(
                f"a sweep that goes on must do what its finished runs did, but `{key}` was {one_line(then)} ({where}) "
                f"and would be {one_line(now)} now: defaults differ between versions (give another --out, and "
                f"--principals {store.root}, with which what was trained alike is only scored again)"
            )


def _changes(plan: Plan, status: RunStatus, theirs: Experiment) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, value then and value now of what has changed in each condition; theirs are a run's settings then."""
    mine = plan.setting(status.values, status.preset).with_seed(status.seed)
    if plan.sweep.tune.scheduler == "pbt":  # which changes all but these while it trains
        mine = theirs.model_copy(update={section: getattr(mine, section) for section in SCORED_ELSEWHERE})
    then, now = ([each for _, each, _ in plan.scored_in(_made_of(each))] for each in (theirs, mine))
    for one, other in zip(then, now, strict=True):
        if key := first_change(one, other):
            was, is_now = (dict(flat(each.to_dict(), whole=("families",))).get(key) for each in (one, other))
            yield key, was, is_now


def _made_of(experiment: Experiment) -> Setting:
    return Setting("", {}, experiment)
