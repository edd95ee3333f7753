"""Rehearsal: before the query, the policy is trained on with agents like this one.

The inner step learns from the few episodes that the support has. Agents imagined from these (`imagination.py`) can be
met as often as wanted: in each round each of them plays one episode with the policy, and policy and value take some
steps of the clipped objective (PPO, arXiv 1707.06347) on it, for each task by itself. Encoder, core and world model
stay: they say what the agent does, and that is not to be learned from what they imagine.

That a policy may learn from a model what it would have to pay for in the world is Dyna's idea (Sutton, 1991); to do so
from a meta-learned initialisation is MB-MPO's (Clavera et al., arXiv 1809.05214).

Rounding depends on which tasks are beside, as in the inner step, and so may an action here and there.

Shapes: B tasks, S imagined agents of each, T pulls.
"""

from __future__ import annotations

import torch

from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.experience import experience_of
from mermaide_ray.imagination import Imagination
from mermaide_ray.learners.adaptation import Adaptation, advantages_of, reading_of
from mermaide_ray.learners.losses import clipped_loss, standardised
from mermaide_ray.lockstep import deal_for, play
from mermaide_ray.models.architecture import POLICY, VALUE, Weights
from mermaide_ray.models.categorical import log_probability
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import policy_and_value
from mermaide_ray.noise import Key
from mermaide_ray.player import NetworkPrincipal
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import view_of

# Chosen on a scaled-down copy of the shift to the test agents (docs/method.md).
_LEARNING_RATE, _EPOCHS = 1e-3, 4


def rehearse(imagination: Imagination, method: Method, adaptation: Adaptation, rounds: int, key: Key) -> Weights:
    """The weights after so many rounds; only those of policy and value differ from the adapted ones.

    Args:
        imagination: Of the B tasks.
        method: Whose policy it is; discount, clip range and weight of the value are those of its training.
        adaptation: To the support of these tasks.
        rounds: One episode with each imagined agent, and the steps on it.
        key: Of all draws.
    """
    agents, weights = imagination.agents(key), adaptation.weights
    own = {
        name: weights[name].detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        for name in (*POLICY, *VALUE)
    }
    optimizer = torch.optim.Adam(own.values(), lr=_LEARNING_RATE)
    for number in range(rounds):
        _round(imagination, method, adaptation, weights | own, agents, key.within(str(number)), optimizer)
    return weights | {name: value.detach() for name, value in own.items()}


def _round(
    imagination: Imagination,
    method: Method,
    adaptation: Adaptation,
    weights: Weights,
    agents: Tasks,
    key: Key,
    optimizer: torch.optim.Optimizer,
) -> None:
    """One episode with each imagined agent, and some steps on what policy and value made of it."""
    game, training, architecture = imagination.game, method.training, method.architecture
    with torch.no_grad():
        principal = NetworkPrincipal(method, view_of(game), weights, adaptation.state)
        played = play(game, agents, 1, deal_for(game, key, agents, 1), principal)
        experience = experience_of(game, _by_task(played, len(imagination.ids)))
        actions = experience.history.actions
        reading = reading_of(method, weights, experience.history, adaptation.state)
        before = policy_and_value(architecture, weights, reading)
        old_log_p = log_probability(before.policy_logits, actions)
        advantages, targets = advantages_of(method, before, experience.rewards)
        advantages = standardised(advantages)
    for _ in range(_EPOCHS):
        with torch.enable_grad():
            now = policy_and_value(architecture, weights, reading)
            log_p = log_probability(now.policy_logits, actions)
            error = ((now.values - targets) / architecture.value_scale).square().mean((1, 2))
            loss = clipped_loss(log_p, old_log_p, advantages, training.clip) + training.value_weight * error
            optimizer.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _by_task(played: Trajectories, num_tasks: int) -> Trajectories:
    """One episode of each of B * S agents, as S episodes of each of B tasks."""
    arms, interventions = (x.view(num_tasks, -1, x.shape[2]) for x in (played.arms, played.interventions))
    return Trajectories(arms, interventions, played.target.view(num_tasks, -1)[:, 0])
