"""The density of the agent's next point."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

from mermaide_ray.models.mixture import LEAST_SCALE, MOST_SCALE, MixtureHead

heads = pytest.mark.parametrize("head", [MixtureHead(3, 1, 0.1), MixtureHead(4, 2, 0.1)], ids=["1d", "2d"])


def raw_outputs(head: MixtureHead, *shape: int, scale: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, head.size, generator=generator, dtype=torch.float64)


@heads
@pytest.mark.parametrize("scale", [0.0, 2.0, 20.0])
def test_the_density_integrates_to_one(head: MixtureHead, scale: float) -> None:
    count = 4000 if head.dimensions == 1 else 400
    axis = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    grid = torch.cartesian_prod(*[axis] * head.dimensions).view(-1, head.dimensions)
    for raw in raw_outputs(head, 3, scale=scale):
        density = head.log_density(raw.expand(len(grid), -1), grid).exp()
        assert density.mean().item() == pytest.approx(1.0, abs=2e-3)


@heads
def test_the_log_density_is_that_of_torch_distributions(head: MixtureHead) -> None:
    raw = raw_outputs(head, 5, 7)
    points = torch.rand(5, 7, head.dimensions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixture = head.read(raw)
    normal = Normal(mixture.means, mixture.scales)
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    truncated = normal.log_prob(points.unsqueeze(-2)) - (normal.cdf(one) - normal.cdf(zero)).log()
    log_p = Categorical(logits=mixture.log_weights).logits
    parts = torch.cat([truncated.sum(-1), torch.zeros(5, 7, 1, dtype=torch.float64)], dim=-1)
    expected = (log_p + parts).logsumexp(-1)
    assert torch.allclose(head.log_density(raw, points), expected, atol=1e-10)


@heads
def test_nll_is_a_mean_per_task_and_its_gradient_that_of_finite_differences(head: MixtureHead) -> None:
    raw = raw_outputs(head, 2, 3, 2).requires_grad_()
    points = torch.rand(2, 3, 2, head.dimensions, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(head.nll(raw, points), -head.log_density(raw, points).flatten(1).mean(1))
    assert torch.autograd.gradcheck(lambda x: head.nll(x, points), raw)
    assert torch.autograd.gradgradcheck(lambda x: head.nll(x, points), raw)


@heads
def test_density_and_gradient_stay_finite_in_float32(head: MixtureHead) -> None:
    raw = (100 * torch.sign(raw_outputs(head, 1, 64, 1))).float().requires_grad_()
    points = torch.rand(1, 64, 1, head.dimensions, generator=torch.Generator().manual_seed(3)).round()
    loss = head.nll(raw, points).sum()
    (gradient,) = torch.autograd.grad(loss, raw)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@heads
def test_what_the_policy_reads_is_the_mixture(head: MixtureHead) -> None:
    raw = raw_outputs(head, 6)
    readable, mixture = head.readable(raw), head.read(raw)
    count = head.components
    assert readable.shape == (6, head.size)
    assert torch.allclose(readable[:, : count + 1], mixture.log_weights.exp())
    assert torch.allclose(readable[:, count + 1 : count + 1 + count * head.dimensions], mixture.means.flatten(1))
    relative = (mixture.scales - LEAST_SCALE) / (MOST_SCALE - LEAST_SCALE)
    assert torch.allclose(readable[:, count + 1 + count * head.dimensions :], relative.flatten(1))


@heads
def test_it_starts_with_components_spread_over_the_cube(head: MixtureHead) -> None:
    mixture = head.read(head.initial_bias())
    assert mixture.log_weights.exp().tolist() == pytest.approx([1 / (head.components + 1)] * (head.components + 1))
    assert len(mixture.means.unique(dim=0)) == head.components
    assert (mixture.means.amax(0) - mixture.means.amin(0) > 0.5).all()


def test_a_hit_lies_near_the_likeliest_component() -> None:
    head = MixtureHead(2, 1, 0.1)
    raw = torch.tensor([[0.0, 1.0, 5.0, -20.0, 0.0, 0.0, 0.0]])  # means 0 and 0.5; the uniform is no guess
    assert [bool(head.hits(raw, torch.tensor([[x]]))) for x in (0.0, 0.41, 0.59, 0.65)] == [False, True, True, False]
