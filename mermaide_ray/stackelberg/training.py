"""Meta-training: many followers at once, each met in several trials, one meta-gradient per iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mermaide_ray.errors import RunFault
from mermaide_ray.learners.losses import discount_matrix
from mermaide_ray.stackelberg.beliefs import Adaptive, Recurrent
from mermaide_ray.stackelberg.games import GameDistribution, deal
from mermaide_ray.stackelberg.meeting import Trial, meet
from mermaide_ray.stackelberg.planner import lattice
from mermaide_ray.stackelberg.settings import Settings, Training


def advantages(training: Training, payoffs: Tensor) -> Tensor:
    """Discounted payoffs to go, over all episodes of a trial, less the mean of the follower's other trials.

    Standardised over the batch. Source of the baseline: Kool, van Hoof, Welling 2019, "Buy 4 REINFORCE samples, get a
    baseline for free".

    Args:
        training: Settings.
        payoffs: float [B, E, R].
    """
    to_go = payoffs @ discount_matrix(payoffs.shape[2], training.gamma, payoffs).T
    trials = to_go.shape[1]
    less = to_go - (to_go.sum(1, keepdim=True) - to_go) / (trials - 1)
    return less / (less.square().mean().sqrt() + 1e-6)


def meta_loss(training: Training, trial: Trial, models: bool, entropy_weight: float) -> Tensor:
    """The meta-objective, 0-dim: policy gradient over the whole trial, and the next response's likelihood.

    Args:
        training: Settings.
        trial: As met.
        models: Whether the principal is trained to predict responses.
        entropy_weight: Weight of the entropy bonus now.
    """
    policy = -(trial.log_p * advantages(training, trial.payoffs)).mean()
    loss = training.policy_weight * policy - entropy_weight * trial.entropy.mean()
    return loss + training.model_weight * trial.nll.mean() if models else loss


def meta_train(settings: Settings, method: str, seed: int, tell=None) -> Adaptive | Recurrent:
    """Trains a principal.

    Args:
        settings: The experiment.
        method: "mermaide" or "rl2".
        seed: Training seed: initialisation, training followers and their luck.
    """
    game, training = settings.game, settings.training
    kind = Adaptive if method == "mermaide" else Recurrent
    principal = kind(game, settings.principal, torch.Generator().manual_seed(seed))
    distribution = GameDistribution(game, seed)
    commitments = lattice(game.rows, settings.principal.resolution)
    optimizer = torch.optim.Adam(principal.parameters(), lr=training.meta_lr)
    for iteration in range(training.iterations):
        done = iteration / training.iterations
        ids = range(iteration * training.tasks, (iteration + 1) * training.tasks)
        games = distribution.tasks("train", ids)
        dice = deal((seed, "train", "stackelberg/trial", iteration), ids, training.trials, training.episodes, game.rounds)
        trial = meet(game, principal, games, dice, commitments)
        loss = meta_loss(training, trial, method == "mermaide", training.entropy_weight * (1 - 0.9 * done))
        optimizer.param_groups[0]["lr"] = training.meta_lr * (1 - 0.9 * done)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(principal.parameters(), training.max_grad_norm)
        if not torch.isfinite(norm):
            raise RunFault(f"the meta-gradient must be finite, got {norm} in iteration {iteration} of {method}")
        optimizer.step()
        if tell: tell(iteration, principal, trial, norm)
    return principal.requires_grad_(False)
