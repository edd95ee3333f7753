"""Learning on a GPU: what the CPU learns, but for rounding; the same again to the bit; through every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import of_mermaide, stock_families, tiny
from numpy.typing import NDArray
from sweeping import sweep, write_sweep

from mermaide_ray.algorithm import Mermaide, MermaideConfig, flat_metrics
from mermaide_ray.baselines.stock_ppo import stock_ppo
from mermaide_ray.cli import main
from mermaide_ray.experiment import Experiment, preset_names, variant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.ray,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="Torch finds no GPU here"),
]

Arrays = dict[str, NDArray[Any]]
CONTINUOUS = {"game": "continuous", "dimensions": 2, "horizon": 8}
SETTINGS: dict[str, Experiment] = {
    **{name: variant(tiny(), name) for name in preset_names()},
    "equivariant": tiny(world_model={"arms": "equivariant"}),
    "context": tiny(meta_learning={"adapt": "context"}),
    "several steps": tiny(meta_learning={"inner_steps": 3, "adaptation_episodes": 2}),
    "partial sight": tiny(environment={"sight": {"share": 0.5, "delay": 1}}),
    "moving target": tiny(environment={"changes": {"target_moves": 2}}),
    "continuous": of_mermaide({"environment": CONTINUOUS, "meta_learning": {"meta_batch_size": 8}}),
}


def on(experiment: Experiment, gpus: float, learners: int = 0) -> Experiment:
    runners = experiment.env_runners.model_copy(update={"num_gpus_per_learner": gpus, "num_learners": learners})
    return experiment.model_copy(update={"env_runners": runners})


def built(experiment: Experiment) -> Mermaide:
    algorithm: Mermaide = MermaideConfig.of(experiment).build_algo()
    (place,) = algorithm.learner_group.foreach_learner(lambda learner: learner._device.type)
    assert place.get() == ("cuda" if experiment.env_runners.num_gpus_per_learner else "cpu")
    return algorithm


def learned(experiment: Experiment, iterations: int = 1) -> tuple[Arrays, dict[str, float]]:
    """The weights and what was told in the end."""
    algorithm = built(experiment)
    try:
        told = [flat_metrics(algorithm.train()) for _ in range(iterations)][-1]
        return algorithm.principal().arrays(), told
    finally:
        algorithm.stop()


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_gpu_learns_what_the_cpu_learns(name: str) -> None:
    weights, told = learned(on(SETTINGS[name], gpus=1))
    expected, expected_told = learned(on(SETTINGS[name], gpus=0))
    for key, value in expected.items():
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=1e-5, err_msg=key)
    for key, number in expected_told.items():
        if not key.startswith("throughput/"):
            assert told[key] == pytest.approx(number, rel=1e-3, abs=1e-4), key


def test_a_learner_actor_does_the_same_on_its_gpu() -> None:
    alone, _ = learned(on(tiny(), gpus=1), iterations=3)
    elsewhere, _ = learned(on(tiny(), gpus=1, learners=1), iterations=3)
    for key in alone:
        np.testing.assert_array_equal(alone[key], elsewhere[key], err_msg=key)


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_run_goes_on_from_a_gpu_s_checkpoint(gpus: int, tmp_path: Path) -> None:
    uninterrupted, _ = learned(on(tiny(), gpus=1), iterations=4)
    first = built(on(tiny(), gpus=1))
    for _ in range(2):
        first.train()
    first.save_to_path(str(tmp_path / "checkpoint"))
    first.stop()
    second = built(on(tiny(), gpus=gpus))
    second.restore_from_path(str(tmp_path / "checkpoint"))
    for _ in range(2):
        second.train()
    weights = second.principal().arrays()
    second.stop()
    for key, value in uninterrupted.items():
        # On a GPU again: to the same numbers.
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=0 if gpus else 1e-4, err_msg=key)


def test_two_trials_of_a_sweep_share_a_gpu(tmp_path: Path) -> None:
    settings = on(tiny(), gpus=0.5).to_dict()
    del settings["name"], settings["seed"]
    assert sweep(write_sweep(tmp_path, settings=settings), "--out", tmp_path / "out") == 0
    assert set(pd.read_parquet(tmp_path / "out" / "trials.parquet")["status"]) == {"done"}


def test_train_and_stock_ppo_take_the_setting(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "environment: {num_arms: 4, horizon: 10}\nmeta_learning: {meta_batch_size: 8}\ntraining: {env_steps: 2000}\n"
        "evaluation: {tasks: 6, episodes: 2, validation_tasks: 4}\nenv_runners: {num_gpus_per_learner: 1}\n"
    )
    assert main(["train", "--config", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "rows.parquet").is_file()
    stock = on(stock_families(world_model={"policy_hidden": 8}), gpus=1)
    algorithm = stock_ppo(stock, "lstm", envs_per_runner=4, episodes_per_iteration=16).build_algo()
    algorithm.train()
    algorithm.stop()
