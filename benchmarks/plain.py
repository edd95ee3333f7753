"""The meta-loss written out plainly: one task after another, one pull after another, autograd for everything.

What `learners/maml.py` and `models/gru.py` must agree with (tests/test_plain.py, in float64) and are measured against
(speed.py). Covers preset mermaide: value baseline, REINFORCE, no carried state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mermaide_ray.models.architecture import Weights
from mermaide_ray.models.method import Method
from mermaide_ray.trajectory import Experience


def meta_loss(
    method: Method,
    weights: Weights,
    inner_rates: Weights,
    support: Experience,
    query: Experience,
    entropy_weight: float,
) -> Tensor:
    """The meta-loss of a meta-batch, 0-dim, differentiable in `weights` (without task axis)."""
    parts = []
    for task in range(query.rewards.shape[0]):
        outputs = _episodes(method, weights, support, task)
        adapted = weights
        old_log_p = _log_p(outputs, support, task).detach()
        for inner_step in range(method.meta.inner_steps):
            current = outputs if not inner_step else _episodes(method, adapted, support, task)
            advantages = _advantages(method, outputs["values"], support.rewards[task])[0]
            advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-6)
            loss = _inner_loss(method, current, support, task, advantages, old_log_p)
            names = method.adaptable()
            gradients = torch.autograd.grad(
                loss, [adapted[name] for name in names], create_graph=method.meta.order == "second", retain_graph=True
            )
            steps = {n: inner_rates[n] * g for n, g in zip(names, gradients, strict=True)}
            adapted = {name: value - steps[name] if name in steps else value for name, value in adapted.items()}
        parts.append((outputs, _episodes(method, adapted, query, task)))
    total = torch.zeros((), dtype=weights["core_bias"].dtype)
    for which, experience, weight in ((0, support, method.meta.support_weight), (1, query, 1.0)):
        outputs = [part[which] for part in parts]
        pairs = [_advantages(method, o["values"], r) for o, r in zip(outputs, experience.rewards, strict=True)]
        advantages = torch.stack([pair[0] for pair in pairs])
        targets = torch.stack([pair[1] for pair in pairs])
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-6)
        logits = torch.stack([o["policy"] for o in outputs])
        values = torch.stack([o["values"] for o in outputs])
        arms = torch.stack([o["arms"] for o in outputs])
        policy = F.cross_entropy(logits.flatten(0, 2), experience.history.actions.flatten(), reduction="none")
        loss = (policy * advantages.flatten()).mean()
        error = (values - targets) / method.architecture.value_scale
        loss = loss + method.training.value_weight * error.square().mean()
        loss = loss - entropy_weight * torch.distributions.Categorical(logits=logits).entropy().mean()
        nll = F.cross_entropy(arms.flatten(0, 2), experience.history.labels.flatten())
        total = total + weight * (loss + method.world_model.loss_weight * nll)
    return total


def _episodes(method: Method, weights: Weights, experience: Experience, task: int) -> dict[str, Tensor]:
    """All outputs of one task, [T, E, …]."""
    observations = experience.history.observations[task].to(weights["core_bias"].dtype)
    size = method.architecture.hidden_size
    hidden = observations.new_zeros(observations.shape[1], size)
    arms, policy, values = [], [], []
    for now in observations:
        x = now @ weights["core_input"] + weights["core_bias"]
        h = hidden @ weights["core_recurrent"]
        reset = torch.sigmoid(x[:, :size] + h[:, :size])
        update = torch.sigmoid(x[:, size : 2 * size] + h[:, size : 2 * size])
        candidate = torch.tanh(x[:, 2 * size :] + reset * h[:, 2 * size :])
        hidden = (1 - update) * candidate + update * hidden
        prediction = hidden @ weights["world_model_weight"] + weights["world_model_bias"]
        read = torch.cat([hidden, prediction.softmax(-1)], dim=-1)
        arms.append(prediction)
        for head, into in (("policy", policy), ("value", values)):
            layer = torch.relu(read @ weights[f"{head}_hidden_weight"] + weights[f"{head}_hidden_bias"])
            into.append(layer @ weights[f"{head}_output_weight"] + weights[f"{head}_output_bias"])
    scale = method.architecture.value_scale
    return {"arms": torch.stack(arms), "policy": torch.stack(policy), "values": torch.stack(values)[..., 0] * scale}


def _advantages(method: Method, values: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantages and value targets, [T, E], constants."""
    values, gamma, lam = values.detach(), method.training.gamma, method.training.gae_lambda
    advantages = torch.zeros_like(values)
    after, following = torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for t in reversed(range(len(values))):
        after = rewards[t] + gamma * following - values[t] + gamma * lam * after
        advantages[t], following = after, values[t]
    return advantages, advantages + values


def _log_p(outputs: dict[str, Tensor], experience: Experience, task: int) -> Tensor:
    actions = experience.history.actions[task]
    return -F.cross_entropy(outputs["policy"].flatten(0, 1), actions.flatten(), reduction="none").view(actions.shape)


def _inner_loss(
    method: Method, outputs: dict[str, Tensor], support: Experience, task: int, advantages: Tensor, old_log_p: Tensor
) -> Tensor:
    log_p = _log_p(outputs, support, task)
    advantages = advantages * (log_p.detach() - old_log_p).exp()
    if method.meta.estimator == "vanilla":
        surrogate = log_p
    elif method.meta.estimator == "lvc":
        surrogate = (log_p - log_p.detach()).exp()
    else:
        through_now = log_p.cumsum(0)
        through_before = through_now - log_p
        surrogate = (through_now - through_now.detach()).exp() - (through_before - through_before.detach()).exp()
    nll = F.cross_entropy(outputs["arms"].flatten(0, 1), support.history.labels[task].flatten())
    return method.world_model.loss_weight * nll - method.meta.inner_policy_weight * (surrogate * advantages).mean()
