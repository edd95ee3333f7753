"""Inner adaptation and the meta-objective: pure functions, the same for the sampling runner and the learner.

MAML (Finn et al., arXiv 1703.03400) over a policy gradient and the world model's likelihood (MERMAIDE, arXiv
2304.04668):

    adapted = theta - inner_lr * d/dtheta [ NLL(support; theta) + w * PG(support; theta) ]        per task
    meta    = PG(query; adapted) + NLL(query; adapted) + support_weight * [the same on support, unadapted]

(each PG in the meta-objective with its value loss and entropy bonus, each NLL times `world_model.loss_weight`).

Every weight carries a task axis. The unadapted weights enter it by expansion, so their gradient *is* per task, and the
first pass over the support runs with plain matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mermaide_ray.learners.losses import (
    clipped_loss,
    entropy,
    generalised_advantages,
    leave_one_out_advantages,
    policy_gradient_loss,
    prediction_nll,
    standardised,
)
from mermaide_ray.models.categorical import log_probability
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import LATENTS, Outputs, Reading, Weights, act, read, replay, shared
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
    return act(method.architecture, weights, reading_of(method, weights, history, initial))


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


Moments = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Mean and standard deviation of a tensor, over all learners' shards."""


def local_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation within this process."""
    mean = x.mean()
    return mean, (x - mean).square().mean().sqrt()


@dataclass(frozen=True)
class OldLogP:
    """Log-probabilities of the actions under the policies that chose them, [B, T, E]: for the clipped objective."""

    support: Tensor | None
    query: Tensor

    def tasks(self, wanted: slice) -> OldLogP:
        """Of some of the tasks."""
        return OldLogP(None if self.support is None else self.support[wanted], self.query[wanted])


@dataclass(frozen=True)
class MetaLoss:
    """The meta-objective and what to tell about it.

    Attributes:
        loss: 0-dim, mean over tasks.
        metrics: Flat metric names to 0-dim tensors, detached.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def meta_loss(
    method: Method,
    weights: Weights,
    inner_rates: Mapping[str, Tensor],
    support: Experience | None,
    query: Experience,
    entropy_weight: float,
    old_log_p: OldLogP | None = None,
    moments: Moments = local_moments,
) -> MetaLoss:
    """The meta-objective on one meta-batch (or a learner's shard of it).

    Args:
        method: The method.
        weights: Unadapted weights *without* task axis.
        inner_rates: Inner learning rate by weight name.
        support: Experience [B, T, K] under the unadapted weights, or None for K = 0.
        query: Experience [B, T, E] under the adapted weights.
        entropy_weight: Weight of the entropy bonus now.
        old_log_p: From before the first step on these episodes (`sampling_log_p`); of the weights as they are, if not
            given.
        moments: How to standardise advantages.
    """
    adapted, state = shared(weights, query.rewards.shape[0]), None
    old_support = None if old_log_p is None else old_log_p.support
    adaptation = None
    if support is not None:
        second_order = method.meta.order == "second"
        adaptation = adapt(method, adapted, inner_rates, support, second_order, old_log_p=old_support)
        adapted, state = adaptation.weights, adaptation.state
    outputs = unroll(method, adapted, query.history, state)
    after = _Part(method, query, outputs, *advantages_of(method, outputs, query.rewards))
    total = after.loss(entropy_weight, None if old_log_p is None else old_log_p.query, moments)
    metrics = after.metrics()
    if support is not None and adaptation is not None:
        worth = adaptation.advantages, adaptation.value_targets
        if method.meta.carry_state and method.training.baseline == "value":
            worth = trial_advantages(method, adaptation.outputs, support.rewards, outputs, query.rewards)
        before = _Part(method, support, adaptation.outputs, *worth)
        total = total + method.meta.support_weight * before.loss(entropy_weight, old_support, moments)
        metrics |= {
            "adaptation/support_return": support.rewards.sum(1).mean(),
            "adaptation/gain": metrics["principal/return"] - support.rewards.sum(1).mean(),
            "adaptation/inner_grad_norm": adaptation.gradient_norm.mean(),
        }
        if before.nll is not None:
            metrics["world_model/nll_before"] = before.nll.detach()
    return MetaLoss(total, metrics)


def sampling_log_p(
    method: Method, weights: Weights, inner_rates: Mapping[str, Tensor], support: Experience | None, query: Experience
) -> OldLogP:
    """The log-probabilities that the actions were sampled with, recomputed.

    Not shipped by the runners: their last bits may depend on how many runners share the meta-batch, and `env_runners`
    is to change no result.

    Args:
        method: The method.
        weights: Those that the episodes were sampled with, without task axis.
        inner_rates: Likewise.
        support: Experience [B, T, K], or None for K = 0.
        query: Experience [B, T, E].
    """
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    adapted, state = shared(leaves, query.rewards.shape[0]), None
    support_log_p = None
    if support is not None:
        adaptation = adapt(method, adapted, inner_rates, support, create_graph=False)
        adapted, state = adaptation.weights, adaptation.state
        support_log_p = log_probability(adaptation.outputs.policy_logits, support.history.actions).detach()
    with torch.no_grad():
        logits = unroll(method, adapted, query.history, state).policy_logits
        return OldLogP(support_log_p, log_probability(logits, query.history.actions))


class _Part:
    """One term of the meta-objective: support or query."""

    def __init__(
        self, method: Method, experience: Experience, outputs: Outputs, advantages: Tensor, value_targets: Tensor
    ) -> None:
        self._method, self._experience, self._outputs = method, experience, outputs
        self._advantages, self._value_targets = advantages, value_targets
        self.nll: Tensor | None = None
        self._told: dict[str, Tensor] = {}

    def loss(self, entropy_weight: float, old_log_p: Tensor | None, moments: Moments) -> Tensor:
        """The loss, mean over tasks, 0-dim."""
        training, outputs = self._method.training, self._outputs
        mean, deviation = moments(self._advantages)
        advantages = (self._advantages - mean) / (deviation + 1e-6)
        log_p = log_probability(outputs.policy_logits, self._experience.history.actions)
        if training.objective == "clipped":
            old_log_p = log_p.detach() if old_log_p is None else old_log_p
            policy = clipped_loss(log_p, old_log_p, advantages, training.clip).mean()
        else:
            policy = policy_gradient_loss(log_p, advantages, "vanilla").mean()
        scale = self._method.architecture.value_scale
        value = ((outputs.values - self._value_targets) / scale).square().mean()
        spread = entropy(outputs.policy_logits).mean()
        total = policy + training.value_weight * value - entropy_weight * spread
        if outputs.prediction is not None:
            history = self._experience.history
            head = self._method.architecture.head
            self.nll = prediction_nll(head, outputs.prediction, history.labels, history.seen).mean()
            total = total + self._method.world_model.loss_weight * self.nll
        self._told = {
            "principal/value_loss": value.detach(),
            "principal/entropy": spread.detach(),
        }
        return total

    def metrics(self) -> dict[str, Tensor]:
        """What this part has to tell."""
        told = dict(self._told)
        told["principal/return"] = self._experience.rewards.sum(1).mean()
        if self.nll is not None and self._outputs.prediction is not None:
            history = self._experience.history
            hit = self._method.architecture.head.hits(self._outputs.prediction, history.labels).float()
            told["world_model/nll_after"] = self.nll.detach()
            # 0 where nothing was seen, as the loss is.
            told["world_model/accuracy"] = (
                hit.mean() if history.seen is None else hit[history.seen].sum() / history.seen.sum().clamp(min=1)
            )
        return told
