"""The inner loop: what a few episodes with an agent make of the weights. Pure functions, the same for all who adapt.

    adapted = theta - inner_lr * d/dtheta [ NLL(support; theta) + w * PG(support; theta) ]        per task

Every weight carries a task axis. The unadapted weights enter it by expansion, so their gradient *is* per task, and the
first pass over the support runs with plain matrix products.

Sources: MAML (Finn et al., arXiv 1703.03400) over a policy gradient and the world model's likelihood (MERMAIDE, arXiv
2304.04668).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mermaide_ray.learners.losses import (
    generalised_advantages,
    leave_one_out_advantages,
    policy_gradient_loss,
    prediction_nll,
    standardised,
)
from mermaide_ray.models.architecture import LATENTS, Weights
from mermaide_ray.models.categorical import log_probability
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import Outputs, Reading, policy_and_value, read, replay
from mermaide_ray.trajectory import Experience, History


@dataclass(frozen=True)
class Adaptation:
    """The outcome of the inner loop.

    Attributes:
        weights: Adapted weights, with task axis.
        outputs: What the *unadapted* networks said on the support.
        advantages, value_targets: Of the support, [B, T, E], constants.
        state: Core state from which the query starts, [B, 1, H], or None to start afresh.
        gradient_norm: Norm of each task's first inner gradient, [B].
    """

    weights: Weights
    outputs: Outputs
    advantages: Tensor
    value_targets: Tensor
    state: Tensor | None
    gradient_norm: Tensor


def reading_of(method: Method, weights: Weights, history: History, initial: Tensor | None = None) -> Reading:
    """All but policy and value, over episodes that were played side by side.

    Args:
        method: The method.
        weights: With task axis.
        history: Episodes [B, T, E].
        initial: Core state at the start, [B, 1, H] or [B, E, H]; zeros if not given.
    """
    observations = history.observations.to(weights["core_bias"].dtype)
    if initial is not None:
        initial = initial.expand(observations.shape[0], observations.shape[2], -1)
    return read(method.architecture, weights, observations, history.marks, initial)


def unroll(method: Method, weights: Weights, history: History, initial: Tensor | None = None) -> Outputs:
    """The networks' outputs over episodes that were played side by side; arguments as for `reading_of`."""
    return policy_and_value(method.architecture, weights, reading_of(method, weights, history, initial))


def unroll_support(method: Method, weights: Weights, history: History) -> Outputs:
    """The networks' outputs over support episodes [B, T, K]: one after the other where the state is carried over."""
    if not method.meta.carry_state:
        return unroll(method, weights, history)
    observations = history.observations.to(weights["core_bias"].dtype)
    batch, time, episodes, _ = observations.shape
    marks = None if history.marks is None else _one_by_one(history.marks)
    outputs = replay(method.architecture, weights, _one_by_one(observations), marks)

    def side_by_side(x: Tensor) -> Tensor:
        return x.view(batch, episodes, time, *x.shape[3:]).transpose(1, 2)

    return Outputs(
        prediction=None if outputs.prediction is None else side_by_side(outputs.prediction),
        policy_logits=side_by_side(outputs.policy_logits),
        values=side_by_side(outputs.values),
        state=outputs.state,
    )


def _one_by_one(x: Tensor) -> Tensor:
    """Episodes [B, T, E, …], one after the other as one [B, E T, 1, …]."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, 1, *x.shape[3:])


def advantages_of(method: Method, outputs: Outputs, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and value targets [B, T, E]: constants, whatever the baseline; of a single episode always by value."""
    training = method.training
    values = outputs.values.detach()
    rewards = rewards.to(values.dtype)
    advantages, targets = generalised_advantages(rewards, values, training.gamma, training.gae_lambda)
    if training.baseline == "leave_one_out" and rewards.shape[2] > 1:
        advantages = leave_one_out_advantages(rewards, training.gamma)
    return advantages, targets


def trial_advantages(
    method: Method, outputs: Outputs, rewards: Tensor, query: Outputs, query_rewards: Tensor
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of support episodes [B, T, K] whose state is carried into the query.

    What the principal does in a support episode is worth what comes of it in all later ones: the support episodes, in
    order, and then the query (the mean over its episodes) are one long episode.
    Source: Duan et al., arXiv 1611.02779 (RL squared), section 2.2.
    """
    query_advantages, _ = advantages_of(method, query, query_rewards)
    return _in_a_row(method, outputs, rewards, (query_advantages[:, 0].mean(1), query.values[:, 0].detach().mean(1)))


def support_advantages(method: Method, outputs: Outputs, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of support episodes [B, T, K] before the query is played.

    Where the state is carried over, values are of the whole trial (`trial_advantages`): an episode's end is not the
    end, and what follows the support is worth what the last pull of it was held to be worth.
    """
    if not (method.meta.carry_state and method.training.baseline == "value"):
        return advantages_of(method, outputs, rewards)
    follows = outputs.values[:, -1, -1].detach()
    return _in_a_row(method, outputs, rewards, (torch.zeros_like(follows), follows))


def _in_a_row(method: Method, outputs: Outputs, rewards: Tensor, after: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Advantages and value targets [B, T, K] of episodes that follow each other, and are followed by `after`."""
    training, (batch, time, episodes) = method.training, rewards.shape

    def in_a_row(x: Tensor) -> Tensor:
        return x.detach().to(after[0].dtype).transpose(1, 2).reshape(batch, episodes * time, 1)

    long = generalised_advantages(
        in_a_row(rewards), in_a_row(outputs.values), training.gamma, training.gae_lambda, after
    )
    advantages, targets = (x.view(batch, episodes, time).transpose(1, 2) for x in long)
    return advantages, targets


def inner_loss(
    method: Method, outputs: Outputs, history: History, advantages: Tensor, old_log_p: Tensor | None = None
) -> Tensor:
    """The loss that adaptation descends, [B].

    Advantages are standardised within each task's own support: a runner that holds one task of the meta-batch must take
    the same step as one that holds them all.

    Args:
        method: The method.
        outputs: Of the weights that are being adapted.
        history: Support episodes [B, T, K].
        advantages: Constants, [B, T, K].
        old_log_p: Log-probabilities of the actions under the policy that chose them, [B, T, K]: after the first step
            that is another policy, and its actions are weighted accordingly. None: this very policy.
    """
    loss = torch.zeros_like(outputs.values[:, 0, 0])
    if outputs.prediction is not None:
        loss = loss + method.world_model.loss_weight * prediction_nll(
            method.architecture.head, outputs.prediction, history.labels, history.seen
        )
    if method.meta.inner_policy_weight:
        scaled = standardised(advantages)
        log_p = log_probability(outputs.policy_logits, history.actions)
        if old_log_p is not None:
            scaled = scaled * (log_p.detach() - old_log_p).exp()
        loss = loss + method.meta.inner_policy_weight * policy_gradient_loss(log_p, scaled, method.meta.estimator)
    return loss


def adapt(
    method: Method,
    weights: Weights,
    inner_rates: Mapping[str, Tensor],
    support: Experience,
    create_graph: bool,
    old_log_p: Tensor | None = None,
) -> Adaptation:
    """Takes the inner steps, for all tasks at once; puts in what a learner model has inferred.

    Args:
        method: The method.
        weights: Unadapted weights with task axis, part of an autograd graph.
        inner_rates: Inner learning rate by weight name, 0-dim.
        support: Experience [B, T, K].
        create_graph: Whether the outcome is differentiable through the steps (second order).
        old_log_p: Log-probabilities of the support actions under the policy that chose them, [B, T, K]; that of
            `weights` if not given.
    """
    outputs = unroll_support(method, weights, support.history)
    advantages, value_targets = support_advantages(method, outputs, support.rewards)
    names = method.adaptable()
    if old_log_p is None:
        old_log_p = log_probability(outputs.policy_logits, support.history.actions).detach()
    adapted, current = dict(weights), outputs
    norm = torch.zeros_like(outputs.values[:, 0, 0].detach())
    for inner_step in range(method.meta.inner_steps):
        if inner_step:
            current = unroll_support(method, adapted, support.history)
        loss = inner_loss(method, current, support.history, advantages, old_log_p).sum()
        gradients = torch.autograd.grad(
            loss, [adapted[name] for name in names], create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                adapted[name] = adapted[name] - inner_rates[name] * gradient
                if not inner_step:
                    norm = norm + gradient.detach().flatten(1).square().sum(1)
    if support.latents is not None:
        # After the steps: these are taken where the support was played.
        adapted[LATENTS] = support.latents
    state = None
    if method.meta.carry_state:
        state = (unroll_support(method, adapted, support.history) if names else outputs).state[:, :1]
    return Adaptation(adapted, outputs, advantages, value_targets, state, norm.sqrt())
