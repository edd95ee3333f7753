"""The meta-gradient, in float64: against finite differences, against a loop over tasks, and setting by setting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from torch import Tensor

from mermaide_ray.learners.adaptation import (
    adapt,
    inner_loss,
    support_advantages,
    trial_advantages,
    unroll,
    unroll_support,
)
from mermaide_ray.learners.maml import MetaLoss, OldLogP, meta_loss, sampling_log_p
from mermaide_ray.models.architecture import CONTEXT, CORE, ENCODER, POLICY, VALUE, WORLD_MODEL_HEAD, Weights
from mermaide_ray.models.categorical import log_probability
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import shared
from mermaide_ray.trajectory import Experience, Trajectories
from mermaide_ray.view import View

B, K, E = 3, 2, 2
GAME = {"num_arms": 3, "horizon": 5}
# Nothing that a finite difference can't see: advantages that don't depend on the weights, and no value function.
BASE: dict[str, Any] = {
    "meta_learning": {
        "adaptation_episodes": K,
        "query_episodes": E,
        "estimator": "vanilla",
        "inner_lr": 0.5,
        "support_weight": 0.25,
    },
    "world_model": {"hidden_size": 3, "policy_hidden": 4},
    "training": {"objective": "reinforce", "baseline": "leave_one_out", "value_weight": 0.0},
}


def _method(**sections: dict[str, Any]) -> Method:
    settings = {name: {**values, **sections.get(name, {})} for name, values in BASE.items()}
    # Set past the checks, which refuse some of these beside each other: their gradients must be right all the same.
    past = {"training": {"baseline": settings["training"].pop("baseline")}}
    if "policy_gradient" in settings["world_model"]:
        past["world_model"] = {"policy_gradient": settings["world_model"].pop("policy_gradient")}
    experiment = tiny(environment=GAME, **settings)
    changed = {name: getattr(experiment, name).model_copy(update=update) for name, update in past.items()}
    return Method.of(experiment.model_copy(update=changed))


def _experience(method: Method, episodes: int, seed: int, tasks: int = B) -> Experience:
    """Random episodes: the learner replays whatever it is given."""
    rng = np.random.default_rng(seed)
    environment = tiny(environment=GAME).environment
    shape = (tasks, episodes, environment.horizon)
    trajectories = Trajectories(
        torch.from_numpy(rng.integers(environment.num_arms, size=shape)),
        torch.from_numpy(rng.integers(environment.num_interventions, size=shape)),
        torch.from_numpy(rng.integers(environment.num_arms, size=tasks)),
    )
    rewards = torch.from_numpy(rng.normal(size=shape)).transpose(1, 2)
    return Experience(View(environment).history(trajectories), rewards)


def _weights(method: Method) -> Weights:
    """Far from the small initial values, so that every part of the networks matters."""
    rng = np.random.default_rng(5)
    return {
        name: torch.from_numpy(rng.normal(size=shape)).requires_grad_()
        for name, shape in method.architecture.shapes().items()
    }


def _rates(method: Method) -> dict[str, Tensor]:
    """Different for each weight, as learned ones are."""
    return {
        name: torch.tensor(0.2 + 0.05 * place, dtype=torch.float64).requires_grad_()
        for place, name in enumerate(method.adaptable())
    }


def _no_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Leaves advantages as they are, so that the loss of a batch is the mean of its tasks' losses."""
    return torch.zeros((), dtype=x.dtype), torch.ones((), dtype=x.dtype)


def _objective(
    method: Method,
    weights: Weights,
    rates: dict[str, Tensor],
    support: Experience | None,
    query: Experience,
    old_log_p: OldLogP | None = None,
) -> MetaLoss:
    return meta_loss(method, weights, rates, support, query, 0.01, old_log_p, _no_moments)


def _gradients(loss: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(parameters.items(), found, strict=True)
    }


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].detach().flatten() for name in sorted(tensors)])


def _assert_slope(function: Any, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    """The gradient is the slope of `function` along random directions, within each group of weights and over all."""
    groups = {
        "encoder": ENCODER,
        "core": CORE,
        "world model": WORLD_MODEL_HEAD,
        "policy": POLICY,
        "all": tuple(parameters),
    }
    rng, step = np.random.default_rng(1), 1e-6
    for group, names in groups.items():
        for _ in range(3):
            direction = {
                name: torch.from_numpy(rng.normal(size=tuple(parameters[name].shape)))
                for name in names
                if name in parameters
            }

            def at(size: float, direction: dict[str, Tensor] = direction) -> float:
                moved = {
                    name: value.detach() + size * direction.get(name, torch.zeros_like(value))
                    for name, value in parameters.items()
                }
                return float(function({name: value.requires_grad_() for name, value in moved.items()}).detach())

            slope = (at(step) - at(-step)) / (2 * step)
            along = sum(float((gradients[name] * value).sum()) for name, value in direction.items())
            assert along == pytest.approx(slope, rel=1e-5, abs=1e-7), group


def _old(
    method: Method, weights: Weights, rates: dict[str, Tensor], support: Experience, query: Experience
) -> OldLogP | None:
    """The policy that sampled, held fixed where the estimator's ratio to it is differentiated."""
    return sampling_log_p(method, weights, rates, support, query) if method.meta.estimator == "lvc" else None


WORLD_MODEL_ONLY = {"meta_learning": {"adapt": "world_model", "inner_policy_weight": 0.0}}
POLICY_ONLY = {"meta_learning": {"adapt": "policy"}, "world_model": {"loss_weight": 0.0}}
EQUIVARIANT: dict[str, Any] = {"arms": "equivariant", "encoder_size": 3}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "world model and policy": {},
    "world model": WORLD_MODEL_ONLY,
    "policy": POLICY_ONLY,
    "heads": {"meta_learning": {"adapt": "heads"}},
    # Of the estimators, only this one's gradient field is that of a function once the policy has moved.
    "three inner steps": {"meta_learning": {"inner_steps": 3, "estimator": "lvc"}},
    "carried state": {"meta_learning": {"carry_state": True}},
    "carried state, two inner steps": {"meta_learning": {"carry_state": True, "inner_steps": 2, "estimator": "lvc"}},
    "no world model": {"world_model": {"enabled": False}},
    "context": {"meta_learning": {"adapt": "context", "context_size": 2}},
    "heavy support": {"meta_learning": {"support_weight": 2.0}},
    "learner model": {"world_model": {"kind": "learner"}},
    "equivariant": {"world_model": EQUIVARIANT},
    "equivariant, two inner steps, carried state": {
        "world_model": EQUIVARIANT,
        "meta_learning": {"carry_state": True, "inner_steps": 2, "estimator": "lvc"},
    },
    "equivariant, no world model": {"world_model": EQUIVARIANT | {"enabled": False}},
    "equivariant, context": {
        "world_model": EQUIVARIANT,
        "meta_learning": {"adapt": "context", "context_size": 2},
    },
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_second_order_meta_gradient_equals_finite_differences(variant: str) -> None:
    method = _method(**VARIANTS[variant])
    support, query = _experience(method, K, 0), _experience(method, E, 1)
    weights, rates = _weights(method), _rates(method)

    old = _old(method, weights, rates, support, query)

    def loss(at: Weights) -> Tensor:
        return _objective(method, at, rates, support, query, old).loss

    _assert_slope(loss, weights, _gradients(loss(weights), weights))


@pytest.mark.parametrize("variant", ["world model and policy", "three inner steps"])
def test_gradient_of_learned_inner_rates_equals_finite_differences(variant: str) -> None:
    method = _method(**VARIANTS[variant])
    support, query = _experience(method, K, 0), _experience(method, E, 1)
    weights, rates = _weights(method), _rates(method)

    old = _old(method, weights, rates, support, query)

    def loss(at: dict[str, Tensor]) -> Tensor:
        return _objective(method, weights, at, support, query, old).loss

    gradients = _gradients(loss(rates), rates)
    assert all(value.abs() > 1e-6 for value in gradients.values())
    _assert_slope(loss, rates, gradients)


@pytest.mark.parametrize("variant", ["world model and policy", "world model", "policy", "three inner steps"])
def test_first_order_meta_gradient_takes_the_inner_step_for_a_constant(variant: str) -> None:
    """Finite differences of the objective in which each task's step is frozen; and it is not the second order's."""
    sections = VARIANTS[variant]
    meta = sections.get("meta_learning", {})
    method = _method(**{**sections, "meta_learning": {**meta, "order": "first"}})
    second = _method(**sections)
    plain = _method(**{**sections, "meta_learning": {**meta, "inner_steps": 0}})
    support, query = _experience(method, K, 0), _experience(method, E, 1)
    weights, rates = _weights(method), _rates(method)
    adapted = adapt(method, shared(weights, B), rates, support, create_graph=False).weights
    steps = {name: (adapted[name] - weights[name]).detach() for name in weights}

    def frozen(at: Weights) -> Tensor:
        total = method.meta.support_weight * _objective(plain, at, {}, None, support).loss
        for task in range(B):
            moved = {name: value + steps[name][task] for name, value in at.items()}
            total = total + _objective(plain, moved, {}, None, _only(query, task)).loss / B
        return total

    gradients = _gradients(_objective(method, weights, rates, support, query).loss, weights)
    _assert_slope(frozen, weights, gradients)
    other = _gradients(_objective(second, weights, rates, support, query).loss, weights)
    assert (_flat(gradients) - _flat(other)).norm() > 0.01 * _flat(other).norm()


def _only(experience: Experience, task: int) -> Experience:
    history, rows = experience.history, slice(task, task + 1)
    one = replace(
        history, observations=history.observations[rows], labels=history.labels[rows], actions=history.actions[rows]
    )
    return Experience(one, experience.rewards[rows])


@pytest.mark.parametrize("estimator", ["vanilla", "lvc", "dice"])
@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("carry", [False, True])
def test_all_tasks_at_once_is_one_task_after_another(estimator: str, order: str, carry: bool) -> None:
    method = _method(
        meta_learning={"estimator": estimator, "order": order, "carry_state": carry, "inner_steps": 2},
        training={"baseline": "value", "value_weight": 0.5},
    )
    support, query = _experience(method, K, 0), _experience(method, E, 1)
    weights, rates = _weights(method), _rates(method)
    together = _objective(method, weights, rates, support, query)
    one_by_one = [_objective(method, weights, rates, _only(support, task), _only(query, task)) for task in range(B)]
    torch.testing.assert_close(together.loss, torch.stack([each.loss for each in one_by_one]).mean())
    mean_of_losses = torch.stack([each.loss for each in one_by_one]).mean()
    everything = {**weights, **{f"rate of {name}": value for name, value in rates.items()}}
    batched, looped = _gradients(together.loss, everything), _gradients(mean_of_losses, everything)
    for name, value in batched.items():
        torch.testing.assert_close(value, looped[name], msg=name)
    for key, told in together.metrics.items():
        torch.testing.assert_close(told, torch.stack([each.metrics[key] for each in one_by_one]).mean(), msg=key)


def test_estimators_take_the_same_inner_step_and_another_meta_gradient() -> None:
    adapted, gradients = {}, {}
    for estimator in ("vanilla", "lvc", "dice"):
        method = _method(meta_learning={"estimator": estimator})
        support, query = _experience(method, K, 0), _experience(method, E, 1)
        weights, rates = _weights(method), _rates(method)
        adapted[estimator] = _flat(adapt(method, shared(weights, B), rates, support, create_graph=False).weights)
        gradients[estimator] = _flat(_gradients(_objective(method, weights, rates, support, query).loss, weights))
    for estimator in ("lvc", "dice"):
        torch.testing.assert_close(adapted[estimator], adapted["vanilla"])
    for one, other in (("lvc", "vanilla"), ("dice", "vanilla"), ("dice", "lvc")):
        assert (gradients[one] - gradients[other]).norm() > 0.01 * gradients[other].norm()


@pytest.mark.parametrize(
    ("which", "world_model", "moving"),
    [
        ("all", True, (*CORE, *WORLD_MODEL_HEAD, *POLICY)),
        ("heads", True, (*WORLD_MODEL_HEAD, *POLICY)),
        ("policy", True, POLICY),
        ("world_model", True, (*CORE, *WORLD_MODEL_HEAD)),
        ("context", True, CONTEXT),
        ("all", False, (*CORE, *POLICY)),
        ("heads", False, POLICY),
        ("policy", False, POLICY),
    ],
)
def test_adaptation_changes_exactly_the_weights_that_it_may(
    which: str, world_model: bool, moving: tuple[str, ...]
) -> None:
    method = _method(meta_learning={"adapt": which}, world_model={"enabled": world_model})
    weights = _weights(method)
    adapted = adapt(method, shared(weights, B), _rates(method), _experience(method, K, 0), create_graph=False).weights
    assert adapted.keys() == weights.keys()
    for name, value in weights.items():
        unchanged = (adapted[name] == value).flatten(1).all(1)
        assert (~unchanged).all() if name in moving else unchanged.all(), name
    assert not set(moving) & set(VALUE)


def test_inner_step_is_the_gradient_of_the_inner_loss_times_the_rate() -> None:
    """By hand for one task: world-model loss plus policy gradient with advantages standardised within the task."""
    method = _method()
    support = _experience(method, K, 0, tasks=1)
    weights, rates = _weights(method), _rates(method)
    outputs = unroll(method, shared(weights, 1), support.history)
    to_go = torch.zeros_like(support.rewards)
    for t in reversed(range(to_go.shape[1])):
        later = to_go[:, t + 1] if t + 1 < to_go.shape[1] else 0
        to_go[:, t] = support.rewards[:, t] + method.training.gamma * later
    advantages = to_go - to_go.flip(2)  # two episodes: each is the other's baseline
    scaled = (advantages - advantages.mean()) / advantages.std(correction=0)
    assert outputs.prediction is not None
    arm = outputs.prediction.log_softmax(-1).gather(-1, support.history.labels.unsqueeze(-1))
    action = outputs.policy_logits.log_softmax(-1).gather(-1, support.history.actions.unsqueeze(-1)).squeeze(-1)
    loss = -arm.mean() - (action * scaled).mean()
    gradients = _gradients(loss, weights)
    adapted = adapt(method, shared(weights, 1), rates, support, create_graph=False)
    for name, rate in rates.items():
        torch.testing.assert_close(
            adapted.weights[name][0], weights[name] - rate * gradients[name], rtol=1e-5, atol=1e-6
        )
    norm = _flat({name: gradients[name] for name in rates}).norm()
    torch.testing.assert_close(adapted.gradient_norm[0], norm, rtol=1e-5, atol=1e-6)


def test_several_inner_steps_are_one_after_another() -> None:
    """Each from the weights that the one before left, on the same support."""
    several, one = (_method(meta_learning={"inner_steps": steps}) for steps in (3, 1))
    support, rates = _experience(one, K, 0), _rates(one)
    weights = shared(_weights(one), B)
    together = adapt(several, weights, rates, support, create_graph=False)
    old = log_probability(unroll(one, weights, support.history).policy_logits, support.history.actions).detach()
    for _ in range(3):
        weights = adapt(one, weights, rates, support, create_graph=False, old_log_p=old).weights
    for name, value in together.weights.items():
        torch.testing.assert_close(value, weights[name], msg=name)


def test_without_inner_steps_nothing_adapts() -> None:
    method = _method(meta_learning={"inner_steps": 0})
    weights = _weights(method)
    adapted = adapt(method, shared(weights, B), {}, _experience(method, K, 0), create_graph=True).weights
    for name, value in weights.items():
        assert torch.equal(adapted[name], value.expand(B, *value.shape))


def test_policy_gradients_stay_out_of_the_core_where_they_should() -> None:
    """World model off the loss, policy gradient off the core: the core learns nothing. With it on, it does."""
    for flows in (True, False):
        method = _method(world_model={"loss_weight": 0.0, "policy_gradient": flows}, training={"value_weight": 0.5})
        support, query = _experience(method, K, 0), _experience(method, E, 1)
        weights, rates = _weights(method), _rates(method)
        gradients = _gradients(_objective(method, weights, rates, support, query).loss, weights)
        for name in (*CORE, *WORLD_MODEL_HEAD):
            assert bool(gradients[name].any()) == flows, name
        assert gradients["policy_output_weight"].any()


def test_carried_state_enters_the_query() -> None:
    """With the state carried, the query starts where the support ended; a control without."""
    for carry in (True, False):
        method = _method(meta_learning={"carry_state": carry, "inner_steps": 0})
        weights = shared(_weights(method), B)
        support, query = _experience(method, K, 0), _experience(method, E, 1)
        state = adapt(method, weights, {}, support, create_graph=False).state
        assert (state is not None) == carry
        if state is None:
            continue
        first, second = support.history.observations.split(1, dim=2)
        joined = replace(
            support.history, observations=torch.cat([first, second, query.history.observations[:, :, 1:]], 1)
        )
        through = unroll(method, weights, joined).policy_logits[:, -GAME["horizon"] :, 0]
        resumed = unroll(method, weights, query.history, state).policy_logits[:, :, 1]
        torch.testing.assert_close(resumed, through)
        afresh = unroll(method, weights, query.history).policy_logits[:, :, 1]
        assert (afresh - resumed).abs().max() > 1e-2


def test_carried_state_is_where_the_adapted_core_ends_the_support() -> None:
    method = _method(meta_learning={"carry_state": True})
    support, weights = _experience(method, K, 0), shared(_weights(method), B)
    adaptation = adapt(method, weights, _rates(method), support, create_graph=False)
    assert adaptation.state is not None
    expected = unroll_support(method, adaptation.weights, support.history).state
    torch.testing.assert_close(adaptation.state, expected)
    assert (adaptation.state - unroll_support(method, weights, support.history).state).abs().max() > 1e-3


def test_a_query_without_support_starts_afresh_in_every_episode() -> None:
    """As it was played, whether a state would be carried over or not."""
    carries, afresh = (_method(meta_learning={"carry_state": carry, "inner_steps": 0}) for carry in (True, False))
    weights, query = _weights(carries), _experience(carries, E, 1)
    one, other = (sampling_log_p(method, weights, {}, None, query).query for method in (carries, afresh))
    torch.testing.assert_close(one, other)
    losses = [float(meta_loss(method, weights, {}, None, query, 0.0).loss.detach()) for method in (carries, afresh)]
    assert losses[0] == pytest.approx(losses[1])


def test_first_epoch_of_the_clipped_objective_is_reinforce() -> None:
    found = {}
    for objective in ("reinforce", "clipped"):
        method = _method(training={"objective": objective})
        support, query = _experience(method, K, 0), _experience(method, E, 1)
        weights, rates = _weights(method), _rates(method)
        result = _objective(method, weights, rates, support, query)
        old = sampling_log_p(method, weights, rates, support, query)
        found[objective] = _flat(_gradients(result.loss, weights)), old, method
    torch.testing.assert_close(found["clipped"][0], found["reinforce"][0])
    # A second epoch at other weights is held back by the first one's probabilities.
    _, old, method = found["clipped"]
    moved = {name: (value.detach() * 1.2).requires_grad_() for name, value in _weights(method).items()}
    support, query = _experience(method, K, 0), _experience(method, E, 1)
    later = _gradients(_objective(method, moved, _rates(method), support, query, old).loss, moved)
    fresh = _gradients(_objective(method, moved, _rates(method), support, query).loss, moved)
    assert (_flat(later) - _flat(fresh)).norm() > 0.01 * _flat(fresh).norm()


def test_weight_of_the_support_scales_its_term_alone() -> None:
    losses = []
    for weight in (0.0, 1.0, 2.0):
        method = _method(meta_learning={"support_weight": weight})
        support, query = _experience(method, K, 0), _experience(method, E, 1)
        losses.append(_objective(method, _weights(method), _rates(method), support, query).loss)
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0])
    assert (losses[1] - losses[0]).abs() > 1e-3


def test_advantages_are_standardised_over_the_moments_that_the_learner_gives() -> None:
    """Standardised advantages make the objective indifferent to the scale and the offset of rewards to go."""
    method = _method(meta_learning={"inner_steps": 0})
    query = _experience(method, E, 1)
    weights = _weights(method)
    scaled = Experience(query.history, 7 * query.rewards)
    one, other = (
        _gradients(meta_loss(method, weights, {}, None, each, 0.01).loss, weights) for each in (query, scaled)
    )
    torch.testing.assert_close(_flat(one), _flat(other), rtol=1e-4, atol=1e-6)
    raw = _gradients(_objective(method, weights, {}, None, scaled).loss, weights)
    assert (_flat(raw) - _flat(one)).norm() > 0.1 * _flat(one).norm()


def test_an_inner_step_weighs_actions_by_the_policy_that_chose_them() -> None:
    """Once the policy has moved, the gradient is that of the importance-weighted surrogate, whatever the estimator."""
    for estimator in ("vanilla", "lvc", "dice"):
        method = _method(meta_learning={"estimator": estimator, "adapt": "policy"}, world_model={"loss_weight": 0.0})
        support, weights = _experience(method, K, 0), _weights(method)
        chosen_by = torch.full_like(support.rewards, -0.5)
        advantages = torch.randn(support.rewards.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        outputs = unroll(method, shared(weights, B), support.history)
        found = _gradients(inner_loss(method, outputs, support.history, advantages, chosen_by).sum(), weights)
        outputs = unroll(method, shared(weights, B), support.history)
        log_p = log_probability(outputs.policy_logits, support.history.actions)
        centred = advantages - advantages.mean((1, 2), keepdim=True)
        scaled = centred / centred.square().mean((1, 2), keepdim=True).sqrt()
        expected = _gradients(-((log_p - chosen_by).exp() * scaled).mean((1, 2)).sum(), weights)
        torch.testing.assert_close(_flat(found), _flat(expected), rtol=1e-5, atol=1e-8)


def test_a_carried_trial_does_not_end_where_adaptation_looks_at_it() -> None:
    """Of equal rewards for ever, held to be worth just that, no pull is better than expected, the last ones neither."""
    gamma, reward = 0.9, 0.8
    method = _method(meta_learning={"carry_state": True}, training={"baseline": "value", "gamma": gamma})
    support = _experience(method, K, 0)
    outputs = unroll(method, shared(_weights(method), B), support.history)
    rewards = torch.full_like(support.rewards, reward, dtype=torch.float64)
    knows = replace(outputs, values=torch.full_like(rewards, reward / (1 - gamma)))
    advantages, targets = support_advantages(method, knows, rewards)
    torch.testing.assert_close(advantages, torch.zeros_like(rewards), rtol=0, atol=1e-12)
    torch.testing.assert_close(targets, knows.values)
    afresh = _method(meta_learning={"carry_state": False}, training={"baseline": "value", "gamma": gamma})
    assert (support_advantages(afresh, knows, rewards)[0][:, -1] < -1).all()


def test_support_actions_of_a_carried_trial_are_credited_with_the_query() -> None:
    """Against the query's rewards moved up by one: advantages of the support rise by the discounted return's rise."""
    method = _method(
        meta_learning={"carry_state": True}, training={"baseline": "value", "gamma": 0.9, "gae_lambda": 1.0}
    )
    support, query = _experience(method, K, 0), _experience(method, E, 1)
    weights = shared(_weights(method), B)
    outputs, later = unroll(method, weights, support.history), unroll(method, weights, query.history)
    before, _ = trial_advantages(method, outputs, support.rewards, later, query.rewards)
    after, _ = trial_advantages(method, outputs, support.rewards, later, query.rewards + 1)
    horizon = support.rewards.shape[1]
    rise = (1 - 0.9**horizon) / (1 - 0.9)
    pulls_left = torch.arange(K * horizon, 0, -1, dtype=torch.float64).view(K, horizon).T
    torch.testing.assert_close(after - before, (rise * 0.9**pulls_left).expand(B, -1, -1))
    # The first episode is credited with the second, too.
    more = support.rewards.clone()
    more[:, 0, 1] += 1
    moved, _ = trial_advantages(method, outputs, more, later, query.rewards)
    torch.testing.assert_close((moved - before)[:, 0, 0], torch.full((B,), 0.9**horizon, dtype=torch.float64))
