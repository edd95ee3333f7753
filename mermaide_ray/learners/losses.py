"""The losses, as pure functions. Shapes: B tasks, T pulls, E episodes; reductions keep the task axis: [B]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mermaide_ray.models.categorical import ArmHead, log_softmax
from mermaide_ray.models.mixture import MixtureHead

Estimator = Literal["vanilla", "dice", "lvc"]


def prediction_nll(
    head: ArmHead | MixtureHead, prediction: Tensor, labels: Tensor, seen: Tensor | None = None
) -> Tensor:
    """World-model loss: mean negative log-likelihood (nats per pull), [B].

    Args:
        head: The world model's.
        prediction: Its raw outputs, [B, T, E, size].
        labels: What the agent did: arms, int64 [B, T, E], or points, float [B, T, E, d].
        seen: Where there is a label, bool [B, T, E]: the mean is over those pulls (0 where there is none).
    """
    return -mean_where(head.log_likelihood(prediction, labels), seen)


def mean_where(log_p: Tensor, seen: Tensor | None) -> Tensor:
    """Mean over pulls, [B], of [B, T, E]: of those seen (0 where there is none), or of all."""
    if seen is None:
        return log_p.mean((1, 2))
    return (log_p * seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the policy (nats), [B]."""
    log_p = log_softmax(logits)
    return -(log_p.exp() * log_p).sum(-1).mean((1, 2))


def generalised_advantages(
    rewards: Tensor, values: Tensor, gamma: float, lam: float, after: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets, both [B, T, E].

    Source: Schulman et al., arXiv 1506.02438, Eq. 16; the sum over time is one product with a triangular matrix.

    Args:
        rewards: [B, T, E].
        values: [B, T, E].
        gamma: Discount per pull.
        lam: Lambda.
        after: Advantage and value of the first step after the last one, [B] each, where the principal's trial goes on;
            without, nothing follows.
    """
    time = rewards.shape[1]
    last = torch.zeros_like(values[:, :1]) if after is None else after[1][:, None, None].expand_as(values[:, :1])
    delta = rewards + gamma * torch.cat([values[:, 1:], last], dim=1) - values
    decay = discount_matrix(time, gamma * lam, delta)
    advantages = torch.einsum("st,bte->bse", decay, delta)
    if after is not None:
        advantages = advantages + gamma * lam * decay[:, -1, None] * after[0][:, None, None]
    return advantages, advantages + values


def leave_one_out_advantages(rewards: Tensor, gamma: float) -> Tensor:
    """Discounted return to go less the mean of the other episodes' at the same step, [B, T, E]; needs E >= 2.

    Source: Kool, van Hoof, Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free".
    """
    to_go = torch.einsum("st,bte->bse", discount_matrix(rewards.shape[1], gamma, rewards), rewards)
    episodes = rewards.shape[2]
    others = (to_go.sum(2, keepdim=True) - to_go) / (episodes - 1)
    return to_go - others


def standardised(advantages: Tensor) -> Tensor:
    """Advantages [B, T, E] with mean 0 and standard deviation 1 within each task, whichever tasks are beside it."""
    centred = advantages - advantages.mean((1, 2), keepdim=True)
    return centred / (centred.square().mean((1, 2), keepdim=True).sqrt() + 1e-6)


def discount_matrix(time: int, discount: float, like: Tensor) -> Tensor:
    """[T, T] with discount^(t - s) at (s, t) for t >= s, else 0."""
    steps = torch.arange(time, device=like.device)
    gap = (steps[None, :] - steps[:, None]).to(like.dtype)
    return torch.where(gap >= 0, discount ** gap.clamp(min=0), torch.zeros_like(gap))


def policy_gradient_loss(log_p: Tensor, advantages: Tensor, estimator: Estimator) -> Tensor:
    """A loss whose gradient is the policy gradient, [B]; mean per pull. All three agree in the first derivative.

    vanilla: -log p * advantage. lvc: -p / p_old * advantage, the low-variance curvature surrogate (Rothfuss et al.,
    arXiv 1810.06784, Eq. 6). dice: second derivatives unbiased for the expected return (Foerster et al., arXiv
    1802.05098, in the form for any advantage of Farquhar et al., arXiv 1909.10549, Eq. 14).

    Args:
        log_p: Log-probabilities of the actions taken, [B, T, E].
        advantages: Constants, [B, T, E].
        estimator: See above.
    """
    if estimator == "vanilla":
        weight = log_p
    elif estimator == "lvc":
        weight = _magic_box(log_p)
    else:
        through_now = log_p.cumsum(1)
        weight = _magic_box(through_now) - _magic_box(through_now - log_p)
    return -(weight * advantages).mean((1, 2))


def clipped_loss(log_p: Tensor, old_log_p: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate, [B]. Source: Schulman et al., arXiv 1707.06347, Eq. 7."""
    ratio = (log_p - old_log_p).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean((1, 2))


def _magic_box(log_p: Tensor) -> Tensor:
    """1 in value; its derivative is that of log_p, times itself."""
    return (log_p - log_p.detach()).exp()
