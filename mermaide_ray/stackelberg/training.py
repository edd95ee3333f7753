"""Meta-training: many followers at once, each met in several trials, one meta-gradient per iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from mermaide_ray.errors import RunFault
from mermaide_ray.learners.losses import discount_matrix
from mermaide_ray.noise import Key
from mermaide_ray.stackelberg.beliefs import Adaptive, Recurrent
from mermaide_ray.stackelberg.games import GameDistribution, deal
from mermaide_ray.stackelberg.meeting import Trial, meet
from mermaide_ray.stackelberg.planner import lattice
from mermaide_ray.stackelberg.settings import Method, Settings, Training


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
    # Not by `losses.leave_one_out_advantages`, whose axes are in another order: of small batches, the last bit differs.
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


def meta_train(settings: Settings, method: Method, seed: int) -> Adaptive | Recurrent:
    """Trains a principal; deterministic.

    Args:
        settings: The experiment, at one observation noise.
        method: One of LEARNED.
        seed: Training seed: initialisation, training followers and their luck.
    """
    game, training = settings.game, settings.training
    models = method == "mermaide"
    kind = Adaptive if models else Recurrent
    # The raw seed, where all else is drawn from a branch of it (`noise.generator`): published numbers depend on it.
    # Only weights are drawn so, and by Torch's generator, which shares no draw with followers and luck.
    principal = kind(game, settings.principal, torch.Generator().manual_seed(seed))
    distribution = GameDistribution(game, seed)
    commitments = lattice(game.rows, settings.principal.resolution)
    rate = training.meta_lr if models else training.recurrent_lr
    optimizer = torch.optim.Adam(principal.parameters(), lr=rate)
    for iteration in range(training.iterations):
        left = 1 - 0.9 * iteration / training.iterations
        ids = range(iteration * training.tasks, (iteration + 1) * training.tasks)
        key = Key(seed, "train", "stackelberg/trial", iteration)
        dice = deal(key, ids, training.trials, training.episodes, game.rounds)
        trial = meet(game, principal, distribution.tasks("train", ids), dice, commitments)
        loss = meta_loss(training, trial, models, training.entropy_weight * left)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(principal.parameters(), training.max_grad_norm)
        if not torch.isfinite(norm):
            raise RunFault(
                f"the meta-gradient must be finite, got {float(norm)} in iteration {iteration} of {method}, seed {seed}"
            )
        optimizer.param_groups[0]["lr"] = rate * left
        optimizer.step()
    return principal.requires_grad_(False)
