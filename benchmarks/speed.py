"""How fast it is, in CPU seconds of one process with one thread, and as ratios within this run.

    python -m benchmarks.speed [sampling] [meta] [planning] [memory] [gpu]        (all, if none is named)

`gpu` is by the clock, and skipped where Torch finds none.

Rounds are interleaved and the median is quoted: the machine's speed drifts. What counts is the ratio.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import plain
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment, load_preset, overlaid, validate
from mermaide_ray.kshot import KShot
from mermaide_ray.learners.maml import meta_loss
from mermaide_ray.models.architecture import LATENTS
from mermaide_ray.models.method import Method
from mermaide_ray.noise import Key

ROUNDS = 5


def measure(jobs: dict[str, tuple[Callable[[], Any], int]], rounds: int = ROUNDS) -> dict[str, float]:
    """Env steps per CPU second of each job (a callable and its env steps), interleaved; the median of the rounds."""
    for job, _ in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (job, _) in jobs.items():
            started = time.process_time()
            job()
            seconds[name].append(time.process_time() - started)
    return {name: steps / statistics.median(seconds[name]) for name, (_, steps) in jobs.items()}


def matmul_peak(size: int = 1024) -> float:
    """FLOP per CPU second of a large float32 matrix product."""
    one, other = torch.randn(size, size), torch.randn(size, size)
    return measure({"matmul": (lambda: one @ other, 2 * size**3)})["matmul"]


def step_flops(experiment: Experiment) -> int:
    """Floating-point operations of one step of the principal: its matrix products."""
    a = Method.of(experiment).architecture
    products = a.hidden_size * 3 * a.hidden_size + a.hidden_size * a.num_arms
    products += a.feature_size * a.policy_hidden + a.policy_hidden * a.num_interventions
    return 2 * products


def of_mermaide(settings: dict[str, Any]) -> Experiment:
    """The settings laid over preset mermaide, which the figures before there was another default are of."""
    return validate(overlaid(load_preset("mermaide"), settings))


def sampling() -> None:
    """The lockstep runner against RLlib's own, same game, same agents, H = 64."""
    import ray

    from mermaide_ray.algorithm import MermaideConfig
    from mermaide_ray.baselines.stock_ppo import stock_ppo
    from mermaide_ray.rollout import LockstepEnvRunner

    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    jobs: dict[str, tuple[Callable[[], Any], int]] = {}
    experiment = of_mermaide({"world_model": {"hidden_size": 64}})
    for episodes in (256, 1024, 4096):
        settings = {
            "meta_learning": {
                "meta_batch_size": episodes // 4,
                "adaptation_episodes": 0,
                "inner_steps": 0,
                "query_episodes": 4,
            },
            "world_model": {"hidden_size": 64},
        }
        runner = LockstepEnvRunner(config=MermaideConfig.of(of_mermaide(settings)), worker_index=0)
        jobs[f"lockstep runner, {episodes:5d} episodes"] = (_sampler(runner), episodes * 100)
    config = stock_ppo(experiment, "lstm", envs_per_runner=16)
    stock = config.env_runner_cls or _multi_agent_runner()
    stock_runner = stock(config=config, worker_index=0)
    jobs["stock RLlib runner, 16 envs"] = (lambda: stock_runner.sample(num_episodes=16), 1600)
    rates = measure(jobs)
    peak, flops = matmul_peak(), step_flops(experiment)
    base = rates["stock RLlib runner, 16 envs"]
    print(f"\nsampling, H = 64, |A| = 10, T = 100 (peak {peak / 1e9:.0f} GFLOP/s, {flops / 1e3:.0f} kFLOP a step)")
    for name, rate in rates.items():
        share = f"{rate * flops / 1e9:6.1f} GFLOP/s ({rate * flops / peak:4.0%} of peak)"
        print(f"  {name:32s} {rate / 1e3:8.1f} k env steps / CPU s   {rate / base:6.0f} x stock   {share}")
    ray.shutdown()


def _sampler(runner: Any) -> Callable[[], None]:
    def sample() -> None:
        if (failure := runner.sample().failure) is not None:
            raise RuntimeError(failure)

    return sample


def _multi_agent_runner() -> Any:
    from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner

    return MultiAgentEnvRunner


def meta() -> None:
    """A meta-iteration through the real runner and learner: 48 tasks x (1 support + 4 query) x 100 pulls, H = 48."""
    import ray

    from mermaide_ray.algorithm import MermaideConfig

    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    one_step = {"training": {"objective": "reinforce"}}
    variants: dict[str, dict[str, Any]] = {
        "second order, 1 step": one_step,
        "second order, 4 steps": {},
        "second order, 4 steps, learner": load_preset("mermaide_learner"),
        "first order, 1 step": {**one_step, "meta_learning": {"order": "first"}},
        "second order, 1 step, 192 tasks": {**one_step, "meta_learning": {"meta_batch_size": 192}},
        "no adaptation, 1 step": {**one_step, **load_preset("reinforce_world_model")},
    }
    jobs: dict[str, tuple[Callable[[], Any], int]] = {}
    algorithms = []
    for name, settings in variants.items():
        algorithm = MermaideConfig.of(of_mermaide(settings)).build_algo()
        algorithms.append(algorithm)
        jobs[name] = (algorithm.train, algorithm.experiment.env_steps_per_iteration)
    rates = measure(jobs)
    plain_rate = _plain_rate()
    print("\nmeta-iteration (sampling, adaptation, update), k env steps / CPU s")
    for name, rate in {**rates, "plain loss, update alone": plain_rate}.items():
        print(f"  {name:32s} {rate / 1e3:8.1f}   {rate / rates['second order, 1 step']:5.2f} x the first")
    for algorithm in algorithms:
        algorithm.stop()
    ray.shutdown()


def _plain_rate() -> float:
    """The update alone, written out plainly (8 tasks: it is linear in them), against nothing but the clock."""
    experiment = of_mermaide({"meta_learning": {"meta_batch_size": 8}, "training": {"objective": "reinforce"}})
    method, distribution = Method.of(experiment), AgentDistribution(experiment)
    kshot = KShot(experiment.environment, method)
    weights = method.architecture.initial_weights(torch.Generator().manual_seed(0))
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    rates = {name: torch.tensor(0.1) for name in method.adaptable()}
    meeting = kshot.meet(distribution.tasks("train", range(8)), weights, rates, 1, 4, Key(0, "train", "bench", 0))
    assert meeting.support is not None
    support, query = experience_of(kshot.environment, meeting.support), experience_of(kshot.environment, meeting.query)
    fast = meta_loss(method, weights, rates, support, query, 0.01).loss
    torch.testing.assert_close(
        fast, plain.meta_loss(method, weights, rates, support, query, 0.01), rtol=1e-4, atol=1e-5
    )
    job = lambda: plain.meta_loss(method, weights, rates, support, query, 0.01).backward()  # noqa: E731
    return measure({"plain": (job, experiment.env_steps_per_iteration)}, rounds=2)["plain"]


def planning() -> None:
    """Meeting 64 agents, as scoring does it: 1 support and 16 query episodes of 100 pulls, H = 48."""
    jobs: dict[str, tuple[Callable[[], Any], int]] = {}
    for name, preset, rehearsals in (
        ("recurrent world model", "mermaide", None),
        ("learner model", "mermaide_learner", None),
        ("learner model, planning by rules", "mermaide_learner", 0),
        ("learner model, 30 rehearsals too", "mermaide_learner", 30),
    ):
        experiment = validate(load_preset(preset))
        method, tasks = Method.of(experiment), AgentDistribution(experiment).tasks("train", range(64))
        weights = method.architecture.initial_weights(torch.Generator().manual_seed(0))
        rates = {weight: torch.tensor(0.1) for weight in method.adaptable()}
        key = Key(0, "train", "bench", 0)
        kshot = KShot(experiment.environment, method, rehearsals)
        job = partial(kshot.meet, tasks, weights, rates, 1, 16, key)
        jobs[name] = (job, len(tasks) * 17 * experiment.environment.horizon)
    measured = measure(jobs, rounds=3)
    print("\nmeeting an agent at K = 1 (support, adaptation, query), CPU ms")
    first = measured["recurrent world model"]
    for name, (_, steps) in jobs.items():
        milliseconds, ratio = steps / 64 / measured[name] * 1e3, first / measured[name]
        print(f"  {name:34s} {milliseconds:8.1f}   {ratio:5.2f} x the first")


def gpu() -> None:
    """The meta-gradient, second order, on a GPU and on a core beside it: 1 support, 4 query episodes of 100 pulls."""
    if not torch.cuda.is_available():
        print("\ngpu: skipped, since Torch finds no GPU here")
        return
    print(f"\nmeta-gradient by the clock, seconds: one core, {torch.cuda.get_device_name()}")
    for preset, hidden, tasks in (
        ("mermaide", 48, 48),
        ("mermaide", 48, 480),
        ("mermaide", 48, 1920),
        ("mermaide_learner", 48, 480),
        ("mermaide", 256, 48),
        ("mermaide", 256, 480),
    ):
        settings = {
            "meta_learning": {"meta_batch_size": tasks},
            "world_model": {"hidden_size": hidden, "policy_hidden": hidden},
        }
        experiment = validate(overlaid(load_preset(preset), settings))
        core, device = (_meta_gradient_seconds(experiment, place) for place in ("cpu", "cuda"))
        print(f"  {preset:16s} H = {hidden:3d} {tasks:5d} tasks   {core:8.3f} {device:8.3f}   {core / device:5.1f} x")


def _meta_gradient_seconds(experiment: Experiment, device: str) -> float:
    method, kshot = Method.of(experiment), KShot(experiment.environment, Method.of(experiment))
    weights = method.architecture.initial_weights(torch.Generator().manual_seed(0))
    rates = {name: torch.tensor(0.1) for name in method.adaptable()}
    # Few agents are met, and stand for many: the gradient's time doesn't depend on what they did.
    met, tasks = 24, experiment.meta_learning.meta_batch_size
    meeting = kshot.meet(
        AgentDistribution(experiment).tasks("train", range(met)), weights, rates, 1, 4, Key(0, "train", "bench", 0)
    )
    assert meeting.support is not None
    assert meeting.adaptation is not None
    inferred = None if method.architecture.learner_model is None else meeting.adaptation.weights[LATENTS]
    repeated = torch.arange(tasks, device=device) % met
    support, query = (
        replace(experience_of(kshot.environment, part), latents=latents).to(device).tasks(repeated)
        for part, latents in ((meeting.support, inferred), (meeting.query, None))
    )
    weights = {name: value.to(device).requires_grad_() for name, value in weights.items()}
    rates = {name: rate.to(device) for name, rate in rates.items()}

    def run() -> float:
        started = time.perf_counter()
        meta_loss(method, weights, rates, support, query, 0.01).loss.backward()  # type: ignore[no-untyped-call]
        # Waits for the device.
        float(next(iter(weights.values())).grad.sum())  # type: ignore[union-attr]
        return time.perf_counter() - started

    run()
    return statistics.median(run() for _ in range(3))


def memory() -> None:
    """Peak memory of a process that samples 4,096 episodes of 200 pulls with 100 arms."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "_sample_large"], check=True, capture_output=True, text=True
    )
    print(f"\nmemory, 4,096 episodes x 200 pulls, |A| = 100: peak {done.stdout.strip()} GB (limit 4)")


def _sample_large() -> None:
    from mermaide_ray.algorithm import MermaideConfig
    from mermaide_ray.rollout import LockstepEnvRunner

    settings = {
        "environment": {"num_arms": 100, "horizon": 200},
        "meta_learning": {"meta_batch_size": 1024, "adaptation_episodes": 0, "inner_steps": 0, "query_episodes": 4},
    }
    _sampler(LockstepEnvRunner(config=MermaideConfig.of(of_mermaide(settings)), worker_index=0))()
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f}")


def main(names: list[str]) -> None:
    """Runs the named sections, or all."""
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sections = {"sampling": sampling, "meta": meta, "planning": planning, "memory": memory, "gpu": gpu}
    known = {**sections, "_sample_large": _sample_large}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"sections must be among {', '.join(sections)}, got {unknown[0]}")
    for name in names or sections:
        known[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
