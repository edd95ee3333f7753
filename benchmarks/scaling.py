"""How an iteration scales from one node to a thousand: measured bytes and times, then a simulation, then a check of it.

    python -m benchmarks.scaling [measure] [check] [clock] [straggle]        (all, if none is named)

Measured here: what one task costs a sampling actor and the learner, what a message costs the driver, and how many bytes
cross the network. Assumed: nodes with RUNNERS sampling actors each, BANDWIDTH and LATENCY between them. Weak scaling:
TASKS tasks per node, so that the meta-batch grows with the cluster; with one learner, with one learner per node, and
with as many actors and learners as are fastest. The check compares CPU seconds, which other work on the machine changes
little; `clock` is by the clock, for an idle machine with a core for each process; `straggle` slows one of several
actors down tenfold.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import math
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed import of_mermaide
from mermaide_ray.experiment import Experiment

NODES = (1, 2, 5, 10, 30, 100, 300, 1000)
RUNNERS = 15
TASKS = 48
BANDWIDTH = 10e9 / 8
LATENCY = 5e-4
ROUNDS = 5
_CLOCK_ROUNDS = 3
# (tasks, actors, learners, GPUs per learner) of `clock`.
_CLOCKED = (
    *((TASKS, actors, 1, 0) for actors in (0, 1, 4, 14)),
    *((TASKS, 4, learners, 0) for learners in (2, 8)),
    *((10 * TASKS, actors, learners, 0) for actors, learners in ((1, 1), (14, 1), (7, 8))),
    *((count * TASKS, 14, 1, 1) for count in (1, 10, 40, 100, 200)),
)


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        sample_fixed, sample_task: Seconds of a sampling actor per call and per task.
        update_fixed, update_task: Seconds of a learner per meta-step and per task.
        gpu_fixed, gpu_task: Likewise of one on a GPU, by the clock; NaN where there is none.
        message: Seconds of the driver per sampling actor and iteration.
        task_bytes: Bytes of a task's trajectories, as they are shipped.
        sample_bytes: Bytes around them, per sampling actor.
        weight_bytes: Bytes of the weights: once per iteration and node, since all its actors read one copy.
    """

    sample_fixed: float
    sample_task: float
    update_fixed: float
    update_task: float
    gpu_fixed: float
    gpu_task: float
    message: float
    task_bytes: float
    sample_bytes: float
    weight_bytes: float


def predicted(
    costs: Costs, nodes: int, runners: int, tasks: int, learners: int = 1, gpu: bool = False, remote: bool = True
) -> dict[str, float]:
    """Seconds of each part of an iteration.

    Args:
        costs: Measured.
        nodes: Machines.
        runners: Sampling actors, all nodes together, each with a CPU of its own.
        tasks: Tasks of the meta-batch.
        learners: Learner actors, each with a share of the tasks.
        gpu: Whether each has a GPU.
        remote: Whether data crosses a network.
    """
    share, wire = -(-tasks // runners), float(remote)
    data = tasks * costs.task_bytes + runners * costs.sample_bytes
    # The driver's own link carries everything: weights to each node, trajectories from each, batches to the learners.
    to_learners = data if learners > 1 else 0.0
    # A ring: each learner passes its gradient on, twice, in pieces.
    ring = 2 * costs.weight_bytes / BANDWIDTH + 2 * (learners - 1) * LATENCY if learners > 1 else 0.0
    fixed, per_task = (costs.gpu_fixed, costs.gpu_task) if gpu else (costs.update_fixed, costs.update_task)
    return {
        "sampling": costs.sample_fixed + share * costs.sample_task,
        "update": fixed + tasks / learners * per_task + ring,
        "driver": runners * costs.message,
        "network": wire * ((nodes * costs.weight_bytes + data + to_learners) / BANDWIDTH + 4 * LATENCY),
    }


def fastest(costs: Costs, nodes: int) -> tuple[int, int]:
    """(sampling actors per node, learners) with which an iteration is shortest."""

    def seconds(choice: tuple[int, int]) -> float:
        per_node, learners = choice
        return sum(predicted(costs, nodes, nodes * per_node, nodes * TASKS, learners).values())

    learners = [count for count in range(1, nodes + 1) if nodes * TASKS % count == 0]
    return min(((per_node, count) for per_node in range(1, RUNNERS + 1) for count in learners), key=seconds)


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
    return of_mermaide({"meta_learning": {"meta_batch_size": tasks}, **sections})


def measured() -> Costs:
    """Costs of preset mermaide at its defaults, in CPU seconds of this machine."""
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
    for count in (TASKS, 4 * TASKS):
        algorithm = MermaideConfig.of(_experiment(count)).build_algo()
        updates[count] = _median(algorithm.train) - sample[0] - count * sample[1]
        algorithm.stop()
    update = _line(TASKS, updates[TASKS], 4 * TASKS, updates[4 * TASKS])

    gpu = _gpu_update() if torch.cuda.is_available() else (math.nan, math.nan)

    # What the driver spends on an actor: send a call with its share, take back an answer of its size.
    @ray.remote(num_cpus=0)
    class Echo:
        def answer(self, tasks: list[int], payload: bytes) -> bytes:
            return payload

    actors, payload = [Echo.remote() for _ in range(4)], bytes(round(4 * task_bytes))
    calls = lambda: ray.get([actor.answer.remote([1, 2, 3, 4], payload) for actor in actors for _ in range(8)])  # noqa: E731
    message = _median(calls) / (len(actors) * 8)
    ray.shutdown()
    return Costs(*sample, *update, *gpu, message, task_bytes, small - 4 * task_bytes, weights)


def _gpu_update() -> tuple[float, float]:
    """(fixed, per task) seconds of a learner on a GPU."""
    from mermaide_ray.algorithm import MermaideConfig, flat_metrics

    few, many = 10 * TASKS, 40 * TASKS
    seconds = {}
    for count in (few, many):
        algorithm = MermaideConfig.of(_experiment(count, env_runners={"num_gpus_per_learner": 1})).build_algo()
        told = [flat_metrics(algorithm.train())["throughput/update_s"] for _ in range(1 + _CLOCK_ROUNDS)]
        seconds[count] = statistics.median(told[1:])
        algorithm.stop()
    return _line(few, seconds[few], many, seconds[many])


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
        f"\npredicted, {TASKS} tasks a node, {BANDWIDTH * 8 / 1e9:.0f} Gbit/s, {LATENCY * 1e3} ms; "
        f"{RUNNERS} actors a node but for the last column"
    )
    heads = ["one learner", "a learner per node", "fastest numbers of actors, learners"]
    if has_gpu := not math.isnan(costs.gpu_fixed):
        heads.insert(1, "one learner on a GPU")
    print(f"{'nodes':>6} {'tasks':>6}" + "".join(f"   {head:>36}" for head in heads))
    for nodes in NODES:
        per_node, best = fastest(costs, nodes)
        cells = []
        choices = [(RUNNERS, 1, False), (RUNNERS, nodes, False), (per_node, best, False)]
        if has_gpu:
            choices.insert(1, (RUNNERS, 1, True))
        for actors, learners, gpu in choices:
            parts = predicted(costs, nodes, nodes * actors, nodes * TASKS, learners, gpu)
            total, worst = sum(parts.values()), max(parts, key=parts.__getitem__)
            rate = nodes * TASKS * steps / total
            cells.append(f"{total:7.2f} s {rate / 1e6:6.2f} M/s  {worst} {parts[worst] / total:.0%}")
        cells[-1] += f" ({per_node}/node, {best})"
        print(f"{nodes:6d} {nodes * TASKS:6d}" + "".join(f"   {cell:>36}" for cell in cells))


def check(costs: Costs) -> None:
    """Prints the CPU seconds that 1, 2 and 4 actors and their driver spend here, beside what is predicted for them."""
    import ray

    from mermaide_ray.algorithm import MermaideConfig

    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    print(f"\nchecked here (load {os.getloadavg()[0]:.1f}): CPU seconds per iteration of {TASKS} tasks")
    print(f"{'actors':>6} {'each actor':>12} {'predicted':>10} {'driver':>10} {'predicted':>10}")
    for runners in (1, 2, 4):
        algorithm = MermaideConfig.of(_experiment(TASKS, env_runners={"num_env_runners": runners})).build_algo()

        def spent(algorithm: Any = algorithm) -> tuple[float, float]:
            """CPU seconds of the actors' processes (mean) and of this one."""
            actors = algorithm.env_runner_group.foreach_env_runner(
                lambda runner: time.process_time(), local_env_runner=False
            )
            return statistics.mean(actors), time.process_time()

        algorithm.train()
        before = spent()
        for _ in range(ROUNDS):
            algorithm.train()
        seen = [(after - begun) / ROUNDS for begun, after in zip(before, spent(), strict=True)]
        algorithm.stop()
        parts = predicted(costs, 1, runners, TASKS, remote=False)
        driver = parts["update"] + parts["driver"]
        print(f"{runners:6d} {seen[0]:10.3f} s {parts['sampling']:8.3f} s {seen[1]:8.3f} s {driver:8.3f} s")
    ray.shutdown()


def clock(costs: Costs) -> None:
    """Prints seconds per iteration by the clock, as far as there are cores and a GPU, beside what is predicted."""
    import ray

    from mermaide_ray.algorithm import MermaideConfig, flat_metrics

    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    print(f"\nby the clock, on {cores} cores (load {os.getloadavg()[0]:.1f}): seconds per iteration")
    heads = ("tasks", "actors", "learners", "sampling", "update", "whole", "predicted", "k env steps/s")
    print("".join(f"{head:>{len(head) + 3}}" for head in heads))
    for tasks, runners, learners, gpus in _CLOCKED:
        remote = learners if learners > 1 else 0
        if 1 + runners + remote > cores or (gpus and not torch.cuda.is_available()):
            continue
        workers = {"num_env_runners": runners, "num_learners": remote, "num_gpus_per_learner": gpus}
        algorithm = MermaideConfig.of(_experiment(tasks, env_runners=workers)).build_algo()
        algorithm.train()
        told: dict[str, list[float]] = {"sample_s": [], "update_s": [], "whole": []}
        for _ in range(_CLOCK_ROUNDS):
            started = time.perf_counter()
            result = flat_metrics(algorithm.train())
            told["whole"].append(time.perf_counter() - started)
            for key in ("sample_s", "update_s"):
                told[key].append(result[f"throughput/{key}"])
        rate = algorithm.experiment.env_steps_per_iteration / statistics.median(told["whole"]) / 1e3
        algorithm.stop()
        sample, update, whole = map(statistics.median, told.values())
        expected = sum(predicted(costs, 1, max(1, runners), tasks, learners, gpus > 0, remote=False).values())
        print(
            f"{tasks:8d}{runners:9d}{'GPU' if gpus else learners:>11}{sample:9.3f} s{update:7.3f} s{whole:6.3f} s"
            f"{expected:10.3f} s{rate:16.0f}"
        )
    ray.shutdown()


def straggle(costs: Costs) -> None:
    """Prints what one of three actors that is ten times slower costs: redistributed as shipped, and waited for."""
    import ray

    from mermaide_ray import dispatch
    from mermaide_ray.algorithm import MermaideConfig

    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    algorithm = MermaideConfig.of(_experiment(TASKS, env_runners={"num_env_runners": 3})).build_algo()

    def slow_down(runner: Any) -> None:
        meet = runner._meet

        def slow(*arguments: Any) -> Any:
            started = time.perf_counter()
            columns = meet(*arguments)
            time.sleep(9 * (time.perf_counter() - started))
            return columns

        runner._meet = slow

    def sampling() -> float:
        """Seconds per iteration that go into sampling."""
        seconds = []
        for _ in range(2 * ROUNDS):
            tasks = list(range(TASKS))
            started = time.perf_counter()
            algorithm._meet(algorithm.meta_iteration, tasks)
            seconds.append(time.perf_counter() - started)
        return statistics.mean(seconds)

    sampling()
    undisturbed = sampling()
    algorithm.env_runner_group.foreach_env_runner(slow_down, local_env_runner=False, remote_worker_ids=[2])
    shared = sampling()
    dispatch.LATE_SECONDS = float("inf")
    waited = sampling()
    algorithm.stop()
    ray.shutdown()
    print(f"\nsampling {TASKS} tasks with 3 actors here (load {os.getloadavg()[0]:.1f}), one of them ten times slower:")
    print(
        f"undisturbed {undisturbed:.2f} s, its share redistributed {shared:.2f} s ({shared / undisturbed:.1f} times), "
    )
    print(f"waited for {waited:.2f} s ({waited / undisturbed:.1f} times)")


def main(names: Sequence[str]) -> None:
    """Runs the named sections, or all."""
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sections = {"measure": measure, "check": check, "clock": clock, "straggle": straggle}
    costs = measured()
    for name in names or sections:
        sections[name](costs)


if __name__ == "__main__":
    main(sys.argv[1:])
