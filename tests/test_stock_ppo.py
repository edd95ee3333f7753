"""Stock RLlib PPO trains a principal on our environment, with nothing of ours in its way."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from conftest import stock_families

from mermaide_ray.agents.rl_module import PRINCIPAL
from mermaide_ray.baselines.stock_ppo import Network, stock_ppo

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize("network", get_args(Network))
def test_one_iteration_trains_the_principal_and_nothing_else(network: Network) -> None:
    experiment = stock_families(world_model={"policy_hidden": 8})
    algorithm = stock_ppo(experiment, network, envs_per_runner=4, episodes_per_iteration=16).build_algo()
    try:
        before = algorithm.get_module(PRINCIPAL).get_state()
        result = algorithm.train()
        after = algorithm.get_module(PRINCIPAL).get_state()
    finally:
        algorithm.stop()

    learned = result["learners"]
    assert [module for module in learned if "policy_loss" in learned[module]] == [PRINCIPAL]
    for key in ("policy_loss", "vf_loss", "entropy", "gradients_default_optimizer_global_norm"):
        assert math.isfinite(learned[PRINCIPAL][key])
    assert learned[PRINCIPAL]["gradients_default_optimizer_global_norm"] > 0
    returned = result["env_runners"]["agent_episode_returns_mean"][PRINCIPAL]
    # At worst every intervention is paid for and misses, at best none is needed.
    assert -0.3 * 15 <= returned <= 15
    assert result["env_runners"]["num_env_steps_sampled"] >= 16 * 15
    assert any(not torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name])) for name in before)
    assert all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in after.values())
