"""The fast meta-gradient equals the one written out plainly."""

from __future__ import annotations

import pytest
import torch
from conftest import of_mermaide

from benchmarks import plain
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.experience import experience_of
from mermaide_ray.kshot import KShot
from mermaide_ray.learners.maml import meta_loss
from mermaide_ray.models.method import Method
from mermaide_ray.noise import Key


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("estimator", ["vanilla", "dice", "lvc"])
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_meta_gradient_equals_the_plain_one(order: str, estimator: str, inner_steps: int) -> None:
    experiment = of_mermaide(
        {
            "environment": {"num_arms": 4, "horizon": 12},
            "meta_learning": {
                "order": order,
                "estimator": estimator,
                "inner_steps": inner_steps,
                "inner_lr": 0.5,
                "adaptation_episodes": 2,
                "query_episodes": 3,
            },
            "world_model": {"hidden_size": 5, "policy_hidden": 6},
            "training": {"objective": "reinforce"},
        }
    )
    method, distribution = Method.of(experiment), AgentDistribution(experiment)
    kshot = KShot(experiment.environment, method)
    initial = method.architecture.initial_weights(torch.Generator().manual_seed(1))
    rates = {name: torch.tensor(0.5) for name in method.adaptable()}
    meeting = kshot.meet(distribution.tasks("train", range(3)), initial, rates, 2, 3, Key(0, "train", "test", 0))
    assert meeting.support is not None
    support, query = experience_of(kshot.environment, meeting.support), experience_of(kshot.environment, meeting.query)
    weights = {name: value.double().requires_grad_() for name, value in initial.items()}
    fast = meta_loss(method, weights, rates, support, query, entropy_weight=0.01).loss
    slow = plain.meta_loss(method, weights, rates, support, query, entropy_weight=0.01)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    for name, mine, theirs in zip(
        weights,
        torch.autograd.grad(fast, list(weights.values())),
        torch.autograd.grad(slow, list(weights.values())),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
