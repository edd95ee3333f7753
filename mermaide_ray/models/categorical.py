"""Choices among a few, as logits: the policy's interventions, and the agent's next arm that a world model predicts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities over the last axis. Torch's own kernel is 7 times slower on a CPU where that axis is short."""
    return logits - logits.logsumexp(-1, keepdim=True)


def log_probability(logits: Tensor, chosen: Tensor) -> Tensor:
    """Log-probability of what was chosen, int64 [...], under logits [..., I], float [...]."""
    return logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def choose(logits: Tensor, uniform: Tensor) -> Tensor:
    """Actions sampled by inversion: logits [..., I], uniform [...] on [0, 1) -> int64 [...]."""
    if logits.shape[-1] == 2:
        return (uniform < (logits[..., 1] - logits[..., 0]).sigmoid_()).long()
    cumulative = log_softmax(logits).exp().cumsum(-1)[..., :-1]
    return (uniform.unsqueeze(-1) >= cumulative).sum(-1)


@dataclass(frozen=True)
class ArmHead:
    """How the world model's raw outputs are read where the agent pulls arms (points: `mixture.MixtureHead`).

    Attributes:
        num_arms: A.
    """

    num_arms: int

    @property
    def size(self) -> int:
        """Raw outputs: a logit per arm."""
        return self.num_arms

    def initial_bias(self) -> Tensor:
        """All arms alike, float [A]."""
        return torch.zeros(self.num_arms)

    def readable(self, raw: Tensor) -> Tensor:
        """What the policy reads: each arm's probability, float [..., A]."""
        return log_softmax(raw).exp()

    def log_likelihood(self, raw: Tensor, arms: Tensor) -> Tensor:
        """Log-probability, nats [...], of arms int64 [...] under raw outputs [..., A]."""
        return log_probability(raw, arms)

    def hits(self, raw: Tensor, arms: Tensor) -> Tensor:
        """Whether each arm was the likeliest, bool [...]."""
        return raw.argmax(-1) == arms
