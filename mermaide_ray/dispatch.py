"""Who samples which tasks: shares a meta-batch out to the sampling actors and gathers it, whatever happens to them.

How the meta-batch is cut depends on the number of actors in the settings alone, never on which of them are well, free
or fast. A share that its actor is late with, or died with, goes to whoever is free, and the first answer counts. Tasks
and dice are keyed and the weights come with the share, so who answers, and when, changes no bit of the result.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorDiedError, RayError

from mermaide_ray.errors import RunFault, WorkersLost
from mermaide_ray.sample import Sample

if TYPE_CHECKING:
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

# How long to wait for sampling actors that Ray is starting again, none being left, before giving up: on a loaded
# machine the imports alone take most of a minute.
REVIVAL_SECONDS = 120.0
# A share is late when half of the others took so many times less. The second number is what a busy machine's hiccups
# last: to sample a share twice because of one would cost more than it gains.
LATE_FACTOR, LATE_SECONDS = 2.0, 0.2
_POLL_SECONDS, _IDLE_SECONDS = 0.02, 0.5
# A round in which nobody answers hangs when it has taken so many times what the longest share has ever taken, and as
# long as a revival may take. Before the first answer nobody knows how long a share takes: then it is waited for.
_HANGS_FACTOR = 20.0
# Between attempts at taking actors back into service, and how long each may wait for an answer.
_PROBE_EVERY, _PROBE_SECONDS = 5.0, 0.5


@dataclass(frozen=True)
class _Call:
    """A share that an actor was asked for, and when."""

    runner: int
    round: int
    share: int
    since: float


class Dispatch:
    """Shares the work of each iteration out.

    Args:
        group: The sampling actors, at least one.
    """

    def __init__(self, group: EnvRunnerGroup) -> None:
        self._group, self._actors = group, group._worker_manager
        self._calls: dict[ray.ObjectRef, _Call] = {}
        self._round = 0
        self._probed = 0.0
        self._longest: float | None = None

    def gather(
        self, iteration: int, tasks: Sequence[int], weights: ray.ObjectRef | Mapping[str, Any], version: int
    ) -> list[Sample]:
        """Every task, met with the given weights.

        Args:
            iteration: Meta-iteration.
            tasks: Ids of the meta-batch.
            weights: The runners' state, best as a reference: each node then fetches it once.
            version: Of the weights.

        Raises:
            RunFault: Sampling fails.
            WorkersLost: No actor is left that could.
        """
        count = self._group.num_remote_env_runners()
        cut = [list(tasks[start::count]) for start in range(min(count, len(tasks)))]
        samples: dict[int, Sample] = {}
        took: list[float] = []
        alone_since: float | None = None
        answered = time.monotonic()
        self._round += 1
        while len(samples) < len(cut):
            under_way = [call for call in self._calls.values() if call.round == self._round]
            missing = set(range(len(cut))) - samples.keys()
            todo = sorted(missing - {call.share for call in under_way})
            # Also while others are free, who may be quick enough to do it all: one that is left out stays out.
            if len(todo) > len(self._free()):
                self.restore(at_once=not under_way and not self._free())
            # An earlier iteration's share that is still under way is no hope: who hangs never answers.
            if todo and not self._free() and not under_way:
                alone_since = alone_since or time.monotonic()
                self._give_up_in_time(alone_since)
            if 2 * len(took) >= len(cut):
                todo += [share for share in _late(under_way, statistics.median(took)) if share in missing]
            free = self._free()
            for runner, share in zip(free, todo, strict=False):
                asked = self._actors.actors()[runner].answer.remote(iteration, cut[share], weights)
                self._calls[asked] = _Call(runner, self._round, share, time.monotonic())
            for call, sample in self._answers(enough=1 if len(todo) > len(free) else len(missing)):
                if call.round != self._round or call.share in samples:
                    continue  # somebody else was faster
                if sample.checked().weights_version != version:
                    raise RunFault(
                        f"a sampling actor must sample with the weights that it is given, version {version}, got a "
                        f"sample of version {sample.weights_version} from actor {call.runner}"
                    )
                samples[call.share] = sample
                answered = time.monotonic()
                took.append(answered - call.since)
                self._longest = max(took[-1], self._longest or 0.0)
                alone_since = None
            if not free:
                self._check_hangs(answered)
        return [samples[share] for share in range(len(cut))]

    def restore(self, at_once: bool = False) -> list[int]:
        """Takes actors that Ray has started again back into service: they need nothing, weights come with a share.

        Args:
            at_once: Not only every few seconds: asking one that hangs takes time.
        """
        if len(self._group.healthy_env_runner_ids()) == self._group.num_remote_env_runners():
            return []
        if not at_once and time.monotonic() - self._probed < _PROBE_EVERY:
            return []
        restored: list[int] = self._group.probe_unhealthy_env_runners(timeout_seconds=_PROBE_SECONDS)
        self._probed = time.monotonic()
        return restored

    def end(self) -> None:
        """Ends all actors. RLlib would first wait for an answer of each (ray 2.60), of one that hangs for ever."""
        self._actors.clear()

    def _free(self) -> list[int]:
        """Actors that are well and have nothing to do, not even an earlier iteration's share."""
        busy = {call.runner for call in self._calls.values()}
        return [runner for runner in self._group.healthy_env_runner_ids() if runner not in busy]

    def _answers(self, enough: int) -> list[tuple[_Call, Sample]]:
        """Answers that are there, after a moment's wait for `enough` of them. Actors that died go out of service."""
        if not self._calls:
            time.sleep(_IDLE_SECONDS)
            return []
        ready, _ = ray.wait(list(self._calls), num_returns=min(enough, len(self._calls)), timeout=_POLL_SECONDS)
        answers = []
        for reference in ready:
            call = self._calls.pop(reference)
            try:
                answers.append((call, ray.get(reference)))
            except RayError:
                self._actors.set_actor_state(call.runner, healthy=False)
        return answers

    def _give_up_in_time(self, since: float) -> None:
        """Raises if nobody has worked on what is left for too long, or nobody ever will."""
        errors, count = self._errors(), self._group.num_remote_env_runners()
        all_dead = len(errors) == count and all(isinstance(error, ActorDiedError) for error in errors)
        if all_dead or time.monotonic() - since > REVIVAL_SECONDS:
            raise WorkersLost(
                f"one of {count} sampling actors must bring what it sampled, but for {time.monotonic() - since:.0f} s "
                f"none did: {self.first_error(errors)}"
            )

    def _check_hangs(self, since: float) -> None:
        """Raises if all actors are at work and none has answered for so long that none will."""
        silent = time.monotonic() - since
        if self._longest is not None and silent > max(REVIVAL_SECONDS, _HANGS_FACTOR * self._longest):
            raise WorkersLost(
                f"one of {self._group.num_remote_env_runners()} sampling actors must bring what it sampled, but all "
                f"are at work and for {silent:.0f} s none did, though no share took more than {self._longest:.1f} s "
                "before"
            )

    def first_error(self, errors: Sequence[Exception] | None = None) -> Exception:
        """Why the first actor that doesn't answer is gone, as far as Ray knows; with its traceback, if any."""
        errors = self._errors() if errors is None else errors
        return errors[0] if errors else RuntimeError("all of them answer again")

    def _errors(self) -> list[Exception]:
        """What asking each actor for its health raises."""
        asked = self._actors.foreach_actor("assert_healthy", healthy_only=False, timeout_seconds=5.0)
        return [result.get() for result in asked if not result.ok]


def _late(under_way: Sequence[_Call], usual: float) -> list[int]:
    """Shares that nobody was asked for lately, longest first."""
    asked: dict[int, float] = {}
    for call in under_way:
        asked[call.share] = max(call.since, asked.get(call.share, 0.0))
    limit = time.monotonic() - max(LATE_SECONDS, LATE_FACTOR * usual)
    return sorted((share for share, since in asked.items() if since < limit), key=asked.__getitem__)
