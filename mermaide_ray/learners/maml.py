"""The meta-objective and its gradient through the inner loop (`adaptation.py`): pure functions.

    meta = PG(query; adapted) + NLL(query; adapted) + support_weight * [the same on support, unadapted]

(each PG with its value loss and entropy bonus, each NLL times `world_model.loss_weight`).

Sources: MAML (Finn et al., arXiv 1703.03400); MERMAIDE (arXiv 2304.04668).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mermaide_ray.learners.adaptation import (
    adapt,
    advantages_of,
    trial_advantages,
    unroll,
)
from mermaide_ray.learners.losses import (
    clipped_loss,
    entropy,
    policy_gradient_loss,
    prediction_nll,
)
from mermaide_ray.models.architecture import Weights
from mermaide_ray.models.categorical import log_probability
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import Outputs, shared
from mermaide_ray.trajectory import Experience

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
