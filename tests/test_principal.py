"""The principal's networks and their home, the RLModule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny

from mermaide_ray.experiment import Experiment
from mermaide_ray.models.architecture import Weights
from mermaide_ray.models.categorical import choose
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import features, project, replay, shared, step
from mermaide_ray.models.rl_module import PrincipalModule


def _module(experiment: Experiment) -> PrincipalModule:
    return PrincipalModule(model_config={"experiment": experiment.to_dict()})


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_equal_seeds_give_equal_weights_and_others_give_others() -> None:
    first, again, other = (_module(tiny(seed=seed)).arrays() for seed in (1, 1, 2))
    assert _equal(first, again)
    drawn = [name for name in _module(tiny()).weights() if not name.endswith("bias")]
    assert drawn
    for name in drawn:
        assert not np.array_equal(first[name], other[name]), name


def test_initial_weights_do_not_depend_on_torchs_own_seed() -> None:
    torch.manual_seed(0)
    one = _module(tiny()).arrays()
    torch.manual_seed(1)
    assert _equal(one, _module(tiny()).arrays())


@pytest.mark.parametrize("learn", [False, True])
def test_state_survives_a_round_trip(learn: bool) -> None:
    experiment = tiny(meta_learning={"learn_inner_lr": learn})
    one, other = _module(experiment), _module(experiment.model_copy(update={"seed": 7}))
    assert not _equal(one.get_state(), other.get_state())
    with torch.no_grad():
        for name, rate in one.inner_rates().items():
            one.parameters_by_name["log_inner_lr_" + name].copy_((2 * rate).log())
    other.set_state(one.get_state())
    assert _equal(one.get_state(), other.get_state())
    for name, rate in other.inner_rates().items():
        # One that is not learned is that of the settings, whatever it was when the state was written.
        torch.testing.assert_close(rate.detach(), torch.tensor(0.2 if learn else 0.1))
        assert rate.requires_grad == learn, name


def test_rate_of_zero_stays_exactly_zero() -> None:
    rates = _module(tiny(meta_learning={"inner_lr": 0})).inner_rates()
    assert rates
    assert all(float(rate) == 0 for rate in rates.values())


def test_arrays_are_copies() -> None:
    module = _module(tiny())
    module.arrays()["core_bias"] += 1
    assert not module.arrays()["core_bias"].any()


@pytest.mark.parametrize("world_model", [True, False])
def test_replay_is_one_step_after_another(world_model: bool) -> None:
    """Also with a state to start from and a set of weights per task."""
    architecture = Method.of(tiny(world_model={"enabled": world_model})).architecture
    tasks, pulls, episodes = 3, 4, 2
    rng = torch.Generator().manual_seed(0)
    per_task = [architecture.initial_weights(rng) for _ in range(tasks)]
    weights: Weights = {name: torch.stack([each[name] for each in per_task]) for name in per_task[0]}
    observations = torch.randn(tasks, pulls, episodes, architecture.observation_size, generator=rng)
    state = torch.randn(tasks, episodes, architecture.hidden_size, generator=rng)
    outputs = replay(architecture, weights, observations, initial=state)
    for t in range(pulls):
        logits, state = step(architecture, weights, project(weights, observations[:, t]), state)
        torch.testing.assert_close(outputs.policy_logits[:, t], logits)
        arms, _ = features(architecture, weights, state, None, None)
        assert (arms is None) == (not world_model)
        if arms is not None and outputs.prediction is not None:
            torch.testing.assert_close(outputs.prediction[:, t], arms)
    torch.testing.assert_close(outputs.state, state)


def test_shared_weights_are_not_copied() -> None:
    weights = Method.of(tiny()).architecture.initial_weights(torch.Generator().manual_seed(0))
    for name, value in shared(weights, 5).items():
        assert value.shape == (5, *weights[name].shape)
        assert value.data_ptr() == weights[name].data_ptr()


@pytest.mark.parametrize("probabilities", [[0.3, 0.7], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4]])
def test_actions_come_with_the_policys_probabilities(probabilities: list[float]) -> None:
    """Evenly spaced dice hit each action in proportion; and no die, however high, names an action beyond the last."""
    dice = torch.arange(1000) / 1000
    actions = choose(torch.tensor(probabilities).log().expand(1000, -1), dice)
    counts = actions.bincount(minlength=len(probabilities)) / 1000
    torch.testing.assert_close(counts, torch.tensor(probabilities), atol=0.002, rtol=0)
    highest = torch.tensor([1 - 2**-24])
    assert int(choose(torch.tensor([probabilities]).log(), highest)) < len(probabilities)


def test_untrained_policy_prefers_nothing() -> None:
    architecture = Method.of(tiny()).architecture
    weights = shared(architecture.initial_weights(torch.Generator().manual_seed(0)), 1)
    observations = torch.rand(1, 10, 20, architecture.observation_size, generator=torch.Generator().manual_seed(1))
    probabilities = replay(architecture, weights, observations).policy_logits.softmax(-1)
    assert (probabilities - 0.5).abs().max() < 0.1
