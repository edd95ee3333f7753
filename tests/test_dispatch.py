"""Sharing a meta-batch out: actors that are slow, dead or busy with old work cost time, and change nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from mermaide_ray import dispatch
from mermaide_ray.dispatch import Dispatch
from mermaide_ray.errors import RunFault, WorkersLost
from mermaide_ray.sample import Sample, concatenated

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

VERSION = 7
TASKS = list(range(100, 108))


def runner_class() -> type:
    """By value: actors can't import the tests."""

    class Runner:
        """A sampling actor that computes nothing. Its index is in its samples, and its delay in seconds settable."""

        def __init__(self, index: int) -> None:
            self.index, self.delay, self.asked = index, 0.0, []

        def answer(self, iteration: int, tasks: list[int], weights: dict[str, Any]) -> Sample:
            self.asked.append((iteration, tuple(tasks)))
            if self.delay < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.delay)
            columns = {"target": np.array(tasks), "iteration": np.full(len(tasks), iteration)}
            return Sample(tuple(tasks), weights["version"], {**columns, "index": np.full(len(tasks), self.index)})

        def slow_down(self, delay: float) -> None:
            self.delay = delay

        def was_asked(self) -> list[tuple[int, tuple[int, ...]]]:
            return self.asked

        def assert_healthy(self) -> None:
            pass

        def ping(self) -> str:
            return "pong"

        def apply(self, func: Any, **kwargs: Any) -> Any:
            return func(self, **kwargs)

    return Runner


class Crew:
    """Three actors and who shares work out to them."""

    def __init__(self, max_restarts: int = 1) -> None:
        made = ray.remote(num_cpus=0, max_restarts=max_restarts)(runner_class())
        self.actors = [made.remote(index) for index in (1, 2, 3)]
        manager = FaultTolerantActorManager(self.actors, init_id=1)
        group = SimpleNamespace(
            _worker_manager=manager,
            num_remote_env_runners=manager.num_actors,
            healthy_env_runner_ids=manager.healthy_actor_ids,
            probe_unhealthy_env_runners=lambda timeout_seconds: manager.probe_unhealthy_actors(timeout_seconds, True),
        )
        self.dispatch = Dispatch(group)
        self.weights = ray.put({"version": VERSION})
        self.iteration = 0

    def gather(self) -> tuple[list[Sample], float]:
        """Samples of the next iteration, and the seconds that they took."""
        self.iteration = iteration = self.iteration + 1
        started = time.monotonic()
        samples = self.dispatch.gather(iteration, TASKS, self.weights, VERSION)
        columns = concatenated(samples, TASKS)
        np.testing.assert_array_equal(columns["target"], TASKS)
        np.testing.assert_array_equal(columns["iteration"], iteration)
        return samples, time.monotonic() - started

    def slow_down(self, index: int, delay: float) -> None:
        ray.get(self.actors[index - 1].slow_down.remote(delay))

    def asked(self, index: int) -> list[tuple[int, tuple[int, ...]]]:
        told: list[tuple[int, tuple[int, ...]]] = ray.get(self.actors[index - 1].was_asked.remote())
        return told


@pytest.fixture(scope="module")
def all_crew(local_ray: None) -> Iterator[Crew]:
    made = Crew()
    made.gather()  # all have started
    yield made
    made.dispatch.end()


@pytest.fixture
def crew(all_crew: Crew) -> Crew:
    """All of them well and free."""
    for index in (1, 2, 3):
        all_crew.slow_down(index, 0.0)  # waits its turn
    all_crew.gather()
    return all_crew


def shares(samples: list[Sample]) -> list[tuple[int, ...]]:
    return [sample.tasks for sample in samples]


def by(samples: list[Sample]) -> list[int]:
    return [int(sample.columns["index"][0]) for sample in samples]


def test_straggler_s_share_is_sampled_by_who_is_free(crew: Crew) -> None:
    before, _ = crew.gather()
    assert sorted(by(before)) == [1, 2, 3]
    crew.slow_down(2, 5.0)
    asked = len(crew.asked(2))
    for _ in range(3):
        samples, seconds = crew.gather()
        assert seconds < 2.5
        assert shares(samples) == shares(before)
        assert 2 not in by(samples)
    # While it was at it, it was asked for nothing else: its queue would grow for ever.
    assert len(crew.asked(2)) == asked + 1
    crew.slow_down(2, 0.0)
    samples, _ = crew.gather()
    assert sorted(by(samples)) == [1, 2, 3]


def test_without_that_a_straggler_is_waited_for(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control."""
    monkeypatch.setattr(dispatch, "LATE_SECONDS", 60.0)
    crew.slow_down(2, 3.0)
    samples, seconds = crew.gather()
    assert seconds > 2.9
    assert sorted(by(samples)) == [1, 2, 3]


def test_sample_of_other_weights_is_refused(crew: Crew) -> None:
    with pytest.raises(RunFault, match="must sample with the weights that it is given, version 8, got a sample of ver"):
        crew.dispatch.gather(0, TASKS, crew.weights, VERSION + 1)


def test_shares_do_not_depend_on_who_is_left(crew: Crew) -> None:
    """So what is sampled does not either, to the bit: a product of matrices may round otherwise in another batch."""
    before, _ = crew.gather()
    for index in (1, 3):
        crew.slow_down(index, -1.0)  # dies of it
    samples, _ = crew.gather()
    assert shares(samples) == shares(before)
    patience = time.monotonic() + 180
    while sorted(by(samples)) != [1, 2, 3]:  # those that were started again take part again
        assert time.monotonic() < patience
        samples, _ = crew.gather()


def test_actor_that_hangs_with_old_work_is_not_waited_for_when_all_others_are_gone(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "REVIVAL_SECONDS", 1.0)
    crew = Crew(max_restarts=0)
    crew.gather()  # all have started
    crew.slow_down(2, 60.0)
    samples, _ = crew.gather()
    assert 2 not in by(samples)
    for index in (1, 3):
        crew.slow_down(index, -1.0)  # dies of it, for good
    started = time.monotonic()
    with pytest.raises(WorkersLost, match="one of 3 sampling actors must bring what it sampled, but for"):
        crew.gather()
    assert time.monotonic() - started < 40
    ray.kill(crew.actors[1])


def test_actors_that_all_hang_at_once_are_not_waited_for_for_ever(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "REVIVAL_SECONDS", 1.0)
    monkeypatch.setattr(dispatch, "_HANGS_FACTOR", 1.0)
    crew = Crew(max_restarts=0)
    for index in (1, 2, 3):
        crew.slow_down(index, 3.0)
    crew.gather()  # the first time nobody knows how long a share takes
    for index in (1, 2, 3):
        crew.slow_down(index, 120.0)
    with pytest.raises(WorkersLost, match=r"but all are at work and for .* none did, though no share took more than"):
        crew.gather()
    for actor in crew.actors:
        ray.kill(actor)
