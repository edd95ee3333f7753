"""How an iteration scales from one node to a thousand: measured bytes and times, then a simulation, then a check of it.

    python -m benchmarks.scaling [measure] [check]        (both, if none is named)

Measured here: what one task costs a sampling actor and the learner, what a message costs the driver, and how many bytes
cross the network. Assumed: nodes with RUNNERS sampling actors each, BANDWIDTH and LATENCY between them. Weak scaling:
TASKS tasks per node, so that the meta-batch grows with the cluster; with one learner, and with one learner per node.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mermaide_ray.experiment import Experiment, validate

NODES = (1, 2, 5, 10, 30, 100, 300, 1000)
RUNNERS = 15
TASKS = 48
BANDWIDTH = 10e9 / 8
LATENCY = 5e-4
ROUNDS = 5


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        sample_fixed, sample_task: Seconds of a sampling actor per call and per task.
        update_fixed, update_task: Seconds of a learner per meta-step and per task.
        message: Seconds of the driver per sampling actor and iteration.
        task_bytes: Bytes of a task's trajectories, as they are shipped.
        sample_bytes: Bytes around them, per sampling actor.
        weight_bytes: Bytes of the weights: once per iteration and node, since all its actors read one copy.
    """

    sample_fixed: float
    sample_task: float
    update_fixed: float
    update_task: float
    message: float
    task_bytes: float
    sample_bytes: float
    weight_bytes: float


def predicted(
    costs: Costs, nodes: int, runners: int, tasks: int, learners: int = 1, remote: bool = True
) -> dict[str, float]:
    """Seconds of each part of an iteration.

    Args:
        costs: Measured.
        nodes: Machines.
        runners: Sampling actors, all nodes together, each with a CPU of its own.
        tasks: Tasks of the meta-batch.
        learners: Learner actors, each with a share of the tasks.
        remote: Whether data crosses a network.
    """
    share, wire = -(-tasks // runners), float(remote)
    data = tasks * costs.task_bytes + runners * costs.sample_bytes
    # The driver's own link carries everything: weights to each node, trajectories from each, batches to the learners.
    to_learners = data if learners > 1 else 0.0
    # A ring: each learner passes its gradient on, twice, in pieces.
    ring = 2 * costs.weight_bytes / BANDWIDTH + 2 * (learners - 1) * LATENCY if learners > 1 else 0.0
    return {
        "sampling": costs.sample_fixed + share * costs.sample_task,
        "update": costs.update_fixed + tasks / learners * costs.update_task + ring,
        "driver": runners * costs.message,
        "network": wire * ((nodes * costs.weight_bytes + data + to_learners) / BANDWIDTH + 4 * LATENCY),
    }


def _median(job: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    job()
    seconds = []
    for _ in range(ROUNDS):
        started = clock()
        job()
        seconds.append(clock() - started)
    return statistics.median(seconds)


def _line(few: int, seconds_few: float, many: int, seconds_many: float) -> tuple[float, float]:
    """(fixed, per task) of a cost that is linear in the tasks."""
    slope = max(0.0, (seconds_many - seconds_few) / (many - few))
    return max(0.0, seconds_few - few * slope), slope


def _experiment(tasks: int, **sections: Any) -> Experiment:
    return validate({"meta_learning": {"meta_batch_size": tasks}, **sections})


def measured() -> Costs:
    """Costs of the default experiment, in CPU seconds of this machine."""
    import ray

    from mermaide_ray.algorithm import MermaideConfig
    from mermaide_ray.rollout import LockstepEnvRunner

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    runner = LockstepEnvRunner(config=MermaideConfig.of(_experiment(TASKS)), worker_index=0)
    seconds = {count: _median(lambda count=count: runner.sample(tasks=range(count))) for count in (4, TASKS)}
    sample = _line(4, seconds[4], TASKS, seconds[TASKS])
    small, large = (len(pickle.dumps(runner.sample(tasks=range(count)), protocol=5)) for count in (4, TASKS))
    task_bytes = (large - small) / (TASKS - 4)
    assert runner.module is not None
    weights = len(pickle.dumps(runner.module.get_state(), protocol=5))

    updates = {}
    for count in (12, TASKS):
        algorithm = MermaideConfig.of(_experiment(count)).build_algo()
        updates[count] = _median(algorithm.train) - sample[0] - count * sample[1]
        algorithm.stop()
    update = _line(12, updates[12], TASKS, updates[TASKS])

    # What the driver spends on an actor: send a call with its share, take back an answer of its size.
    @ray.remote(num_cpus=0)
    class Echo:
        def answer(self, tasks: list[int], payload: bytes) -> bytes:
            return payload

    actors, payload = [Echo.remote() for _ in range(4)], bytes(round(4 * task_bytes))
    calls = lambda: ray.get([actor.answer.remote([1, 2, 3, 4], payload) for actor in actors for _ in range(8)])  # noqa: E731
    message = _median(calls) / (len(actors) * 8)
    ray.shutdown()
    return Costs(*sample, *update, message, task_bytes, small - 4 * task_bytes, weights)


def measure(costs: Costs) -> None:
    """Prints what was measured, and what it means for large clusters."""
    experiment = _experiment(TASKS)
    steps = experiment.env_steps_per_iteration / TASKS
    per_step = costs.task_bytes / steps
    print(
        f"{per_step:.2f} bytes per env step (limit 4), {costs.weight_bytes / 1e3:.0f} kB of weights per iteration, node"
    )
    print(
        f"sampling {costs.sample_fixed * 1e3:.1f} ms + {costs.sample_task * 1e3:.2f} ms a task, update "
        f"{costs.update_fixed * 1e3:.1f} ms + {costs.update_task * 1e3:.2f} ms a task, driver "
        f"{costs.message * 1e6:.0f} µs an actor (CPU)"
    )
    print(
        f"\npredicted, {RUNNERS} actors and {TASKS} tasks a node, {BANDWIDTH * 8 / 1e9:.0f} Gbit/s, {LATENCY * 1e3} ms"
    )
    print(f"{'nodes':>6} {'tasks':>6}   {'one learner':>34}   {'a learner per node':>34}")
    for nodes in NODES:
        cells = []
        for learners in (1, nodes):
            parts = predicted(costs, nodes, nodes * RUNNERS, nodes * TASKS, learners)
            total, worst = sum(parts.values()), max(parts, key=parts.__getitem__)
            rate = nodes * TASKS * steps / total
            cells.append(f"{total:7.2f} s {rate / 1e6:6.2f} M/s  {worst} {parts[worst] / total:.0%}")
        print(f"{nodes:6d} {nodes * TASKS:6d}   {cells[0]:>34}   {cells[1]:>34}")


def check(costs: Costs) -> None:
    """Prints what 1, 2 and 4 actors do here, beside what is predicted for them (wall clock: needs an idle machine)."""
    import ray

    from mermaide_ray.algorithm import MermaideConfig, flat_metrics

    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    print(f"\nchecked here ({cores} cores, load {os.getloadavg()[0]:.1f}): seconds per iteration of {TASKS} tasks")
    print(f"{'actors':>6} {'sampling':>9} {'predicted':>9} {'update':>9} {'predicted':>9}")
    for runners in (1, 2, 4):
        algorithm = MermaideConfig.of(_experiment(TASKS, env_runners={"num_env_runners": runners})).build_algo()
        algorithm.train()
        told = [flat_metrics(algorithm.train()) for _ in range(ROUNDS)]
        algorithm.stop()
        # More actors than cores take turns.
        parts = predicted(costs, 1, min(runners, cores), TASKS, remote=False)
        seen = [statistics.median(each[f"throughput/{part}_s"] for each in told) for part in ("sample", "update")]
        sampling = parts["sampling"] + runners * costs.message
        print(f"{runners:6d} {seen[0]:9.3f} {sampling:9.3f} {seen[1]:9.3f} {parts['update']:9.3f}")
    ray.shutdown()


def main(names: Sequence[str]) -> None:
    """Runs the named sections, or all."""
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sections = {"measure": measure, "check": check}
    costs = measured()
    for name in names or sections:
        sections[name](costs)


if __name__ == "__main__":
    main(sys.argv[1:])
