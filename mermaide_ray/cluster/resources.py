"""Waiting for what a job needs, and refusing at once what the cluster can never have. Ray must be up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import ray
import torch
from rich.console import Console

from mermaide_ray.cluster.nodes import Node, nodes
from mermaide_ray.config_file import load_yaml
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.experiment import EnvRunners
from mermaide_ray.machine import seconds_from
from mermaide_ray.progress import LOG_EVERY, clock

Bundle = Mapping[str, float]
"""What one process needs: {"CPU": 1, "GPU": 0}. All of it must lie on one node."""

# What `ray up` leaves on the head of the file that made the cluster.
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
_LONGEST_WAIT = 600.0  # seconds
# Ways to fill a cluster with machines of its kinds, beyond which it would take long to try them all.
_MOST_MIXES = 1000


def fits(bundles: Sequence[Bundle], on: Sequence[Node]) -> bool:
    """Whether all bundles find room at the same time, each on one node: those with GPUs first, then the largest."""
    free = [dict(node.resources) for node in on]
    for bundle in sorted(bundles, key=lambda bundle: (bundle.get("GPU", 0), bundle.get("CPU", 0)), reverse=True):
        room = next((place for place in free if all(place.get(key, 0) >= need for key, need in bundle.items())), None)
        if room is None:
            return False
        for key, need in bundle.items():
            room[key] = room.get(key, 0) - need
    return True


def check_own_gpu(env_runners: EnvRunners) -> None:
    """Refuses this process a learner on a GPU that it does not have; what actors need is awaited instead.

    Raises:
        InputError: Torch finds no GPU.
    """
    if env_runners.driver_gpus and not torch.cuda.is_available():
        raise InputError(
            "env_runners.num_gpus_per_learner must be 0 where Torch finds no GPU, "
            f"got {env_runners.driver_gpus:g} (--set, or config.yaml of a run that is resumed; on a cluster, with "
            "env_runners.num_learners = 1 a node that has one learns)"
        )


def await_resources(
    bundles: Sequence[Bundle], console: Console, seconds: float | None = None, grows: bool = True
) -> None:
    """Waits until the cluster has room for all bundles at the same time, with a line now and then.

    Args:
        bundles: What must run side by side.
        console: Where waiting is told.
        seconds: Longest wait; MERMAIDE_WAIT_SECONDS, or ten minutes, if not given.
        grows: Whether nodes may yet join.

    Raises:
        InputError: The cluster can never have room: said at once.
        RunFault: It has none in time.
    """
    limit = seconds_from("MERMAIDE_WAIT_SECONDS", _LONGEST_WAIT) if seconds is None else seconds
    started, told, asked = time.monotonic(), -LOG_EVERY, False
    try:
        while not fits(bundles, there := nodes()):
            most = _most(there, bundles) if grows else there
            if most is not None and not fits(bundles, most):
                place, where = ("the cluster", "; max_workers of the cluster's file") if grows else ("this machine", "")
                raise InputError(
                    f"{place} must have room for {_needs(bundles)} at the same time, but it has {_has(most)} at most "
                    f"(env_runners, `resources` of a sweep{where})"
                )
            waited = time.monotonic() - started
            if waited > limit:
                raise RunFault(
                    f"the cluster must have room for {_needs(bundles)} within {clock(limit)} (MERMAIDE_WAIT_SECONDS), "
                    f"but it has {_has(there)}: see `ray status` on the head"
                )
            if waited - told >= LOG_EVERY:
                told = waited
                line = f"waiting for {_needs(bundles)}: {_has(there)} so far, {clock(limit - waited)} left"
                console.print(line, soft_wrap=True, highlight=False)
            if not asked and most is not None and most != there:
                asked = True
                _ask_autoscaler(bundles)
            time.sleep(0.5)
    finally:
        # The autoscaler keeps to what it was asked for, whatever becomes of who asked.
        if asked:
            _ask_autoscaler([])


def _ask_autoscaler(bundles: Sequence[Bundle]) -> None:
    """Has machines started before the first process waits for one."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(bundle) for bundle in bundles])


def _most(there: Sequence[Node], bundles: Sequence[Bundle]) -> list[Node] | None:
    """The most that the cluster can become, as far as this machine knows; None where it doesn't.

    Where it is machines of some kinds or of others, those on which the bundles fit, or else the largest.
    """
    file = BOOTSTRAP.expanduser()
    me = ray.get_runtime_context().get_node_id()
    on_head = any(node["NodeID"] == me and "node:__internal_head__" in node["Resources"] for node in ray.nodes())
    if not on_head or not file.is_file():
        return None
    made_by = load_yaml(file.read_text(encoding="utf-8"))
    provider = made_by.get("provider") or {}
    if provider.get("type") == "local":
        # A head, and as many workers as are named: what those that are still to come have isn't known.
        return list(there) if len(there) > len(provider.get("worker_ips") or ()) else None
    idle = [node for node in there if not node.resources.get("CPU")]
    limit, kinds = int(made_by.get("max_workers", 0)), list[tuple[Node, int]]()
    for name, kind in (made_by.get("available_node_types") or {}).items():
        if name != made_by.get("head_node_type"):
            node = Node("", {key: float(value) for key, value in kind["resources"].items()})
            kinds.append((node, min(int(kind.get("max_workers", 0)), limit)))
    mixes = islice(_mixes([count for _, count in kinds], limit), _MOST_MIXES + 1)
    grown = [
        [*idle, *(node for (node, _), count in zip(kinds, mix, strict=True) for _ in range(count))] for mix in mixes
    ]
    if len(grown) > _MOST_MIXES:  # too many to try: then more than there can be, which refuses nothing that fits
        return [*idle, *(node for node, count in kinds for _ in range(count))]
    asked = [key for key in ("GPU", "CPU") if any(bundle.get(key) for bundle in bundles)]
    grown.sort(key=lambda mix: [sum(node.resources.get(key, 0) for node in mix) for key in asked], reverse=True)
    return next((mix for mix in grown if fits(bundles, mix)), grown[0])


def _mixes(most: Sequence[int], limit: int) -> Iterator[tuple[int, ...]]:
    """All ways to have as many machines as can be, at most `limit`, and of each kind no more than `most`."""
    if not most:
        yield ()
        return
    total = min(limit, sum(most))
    for count in range(max(0, total - sum(most[1:])), min(most[0], total) + 1):
        for others in _mixes(most[1:], total - count):
            yield count, *others


def _needs(bundles: Sequence[Bundle]) -> str:
    """'9 CPUs and 1 GPU in 9 processes'."""
    return f"{_sum(bundles)} in {_plural(len(bundles), 'process', 'processes')}"


def _has(on: Sequence[Node]) -> str:
    """'4 CPUs on 2 nodes'; nodes that do no work are not counted."""
    workers = [node for node in on if node.resources.get("CPU") or node.resources.get("GPU")]
    return f"{_sum([node.resources for node in workers])} on {_plural(len(workers), 'node')}"


def _sum(parts: Sequence[Bundle]) -> str:
    totals = {key: sum(part.get(key, 0) for part in parts) for key in ("CPU", "GPU")}
    named = [_plural(total, key) for key, total in totals.items() if total or key == "CPU"]
    return " and ".join(named)


def _plural(count: float, one: str, many: str | None = None) -> str:
    return f"{count:g} {one if count == 1 else many or one + 's'}"
