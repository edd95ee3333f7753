"""The top of a posterior and samples of it: known where the density is a normal one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from mermaide_ray.models.learner_model import LearnerModel
from mermaide_ray.models.posterior import LogDensity, Luck, climb, wander

CENTRES = torch.tensor([[1.0, -2.0, 0.0], [0.0, 5.0, 3.0]])
# Of the second task: latents 0 and 1 belong together, 2 is narrow.
COVARIANCES = torch.stack(
    [torch.eye(3), torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 0.01]])],
)
DEVIATIONS = torch.tensor([[1.0, 1.0, 1.0], [0.8, 0.8, 0.1]])


def _normals(some: slice = slice(None)) -> LogDensity:
    centres, precisions = CENTRES[some], COVARIANCES[some].inverse()

    def log_density(latents: Tensor) -> Tensor:
        away = latents - centres
        return -torch.einsum("sbi,bij,sbj->sb", away, precisions, away) / 2

    return log_density


def _luck(samples: int, tasks: int = 2) -> Luck:
    return Luck.dealt([np.random.default_rng(task) for task in range(tasks)], samples, 3)


def test_the_climb_is_adam_s_to_the_last_bit() -> None:
    start = torch.randn(3, *CENTRES.shape, generator=torch.Generator().manual_seed(0))
    latents = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.1, betas=(0.9, 0.99))
    for _ in range(60):
        (latents.grad,) = torch.autograd.grad(-_normals()(latents).sum(), [latents])
        optimizer.step()
    assert torch.equal(climb(_normals(), start, 60), latents.detach())


def test_inference_imports_no_compiler() -> None:
    """It takes more than a second, in every sampling actor."""
    program = (
        "import sys, torch; from mermaide_ray.models.posterior import climb; "
        "climb(lambda x: -x.square().sum(-1), torch.ones(1, 1, 2), 2); print('torch._dynamo' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_the_climb_ends_at_the_top() -> None:
    start = torch.zeros(2, 2, 3) + torch.tensor([0.0, 1.0]).view(2, 1, 1)
    assert (climb(_normals(), start, 400) - CENTRES).abs().max() < 0.02


def test_chains_have_the_moments_of_the_density_and_forget_where_they_began() -> None:
    far = (CENTRES + 2 * DEVIATIONS).expand(4000, 2, 3)
    found = wander(_normals(), far, DEVIATIONS, _luck(4000))
    torch.testing.assert_close(found.mean(0), CENTRES, rtol=0, atol=0.08)
    for task in range(2):
        torch.testing.assert_close(torch.cov(found[:, task].T), COVARIANCES[task], rtol=0.15, atol=0.05)


def test_each_task_is_sampled_by_itself() -> None:
    start = CENTRES.expand(8, 2, 3)
    together = wander(_normals(), start, DEVIATIONS, _luck(8))
    alone = wander(_normals(slice(1, 2)), start[:, 1:], DEVIATIONS[1:], _luck(8).tasks(slice(1, 2)))
    torch.testing.assert_close(alone, together[:, 1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("edge", [float("nan"), float("-inf")])
def test_no_chain_leaves_where_the_density_is_defined(edge: float) -> None:
    """Beyond 0.5 there is nothing: a move that ends there is refused, and spoils nothing."""

    def log_density(latents: Tensor) -> Tensor:
        inside = -latents.square().sum(-1) / 2
        return inside.where(latents[..., 0] < 0.5, edge)

    found = wander(log_density, torch.zeros(500, 1, 3), torch.ones(1, 3), _luck(500, tasks=1))
    assert found.isfinite().all()
    assert found[..., 0].max() < 0.5
    assert found[..., 0].min() < -1


@pytest.mark.parametrize("at_once", [1, 5])
def test_who_is_sampled_beside_changes_nothing_to_the_last_bit(at_once: int) -> None:
    """As many tasks as scores are made of: sums over chains must not depend on how many there are."""
    model, tasks, arms, pulls = LearnerModel(4, 20, ((0.0, 0.0), (1.0, -1.0))), 16, 4, 20
    rng = np.random.default_rng(0)
    pulled = torch.from_numpy(rng.integers(arms, size=(tasks, pulls, 1)))
    last = torch.cat([torch.zeros(tasks, 1, 1, arms), torch.eye(arms)[pulled[:, :-1]]], dim=1)
    paid = torch.eye(2)[torch.from_numpy(rng.integers(2, size=(tasks, pulls, 1)))]
    seen = torch.cat([last, paid, torch.zeros(tasks, pulls, 1, 1)], dim=-1)
    luck = Luck.dealt([np.random.default_rng(task) for task in range(tasks)], 16, model.size)
    latents = model.infer(seen, pulled)
    together = model.sample(seen, pulled, latents, luck)
    parts = [slice(first, first + at_once) for first in range(0, tasks, at_once)]
    apart = [model.sample(seen[part], pulled[part], latents[part], luck.tasks(part)) for part in parts]
    assert torch.equal(torch.cat(apart), together)
    assert torch.equal(torch.cat([model.infer(seen[part], pulled[part]) for part in parts]), latents)
