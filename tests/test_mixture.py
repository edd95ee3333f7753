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
        density = head.log_likelihood(raw.expand(len(grid), -1), grid).exp()
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
    assert torch.allclose(head.log_likelihood(raw, points), expected, atol=1e-10)


def drawn_points(head: MixtureHead, raw: Tensor, seed: int) -> Tensor:
    """Points [N, d] from the mixtures [N, size], by rejection of what lies outside the cube."""
    torch.manual_seed(seed)
    mixture = head.read(raw)
    component = Categorical(logits=mixture.log_weights).sample()
    points = torch.rand(len(raw), head.dimensions, dtype=raw.dtype)
    gaussian = component < head.components
    index = component[gaussian, None, None].expand(-1, 1, head.dimensions)
    normal = Normal(*(of[gaussian].gather(-2, index).squeeze(-2) for of in (mixture.means, mixture.scales)))
    own = normal.sample()
    while (outside := (own < 0) | (own > 1)).any():
        own = torch.where(outside, normal.sample(), own)
    points[gaussian] = own
    return points


@heads
def test_the_pit_of_points_drawn_from_the_density_is_uniform_and_independent(head: MixtureHead) -> None:
    raw, other = (each.expand(20_000, -1) for each in raw_outputs(head, 2, 1))
    with torch.random.fork_rng():
        points = drawn_points(head, raw, seed=1)
    pit = head.pit(raw, points)
    assert pit.shape == points.shape
    assert kolmogorov(pit) < 1.63 / len(pit) ** 0.5  # the 1% point
    if head.dimensions == 2:
        assert points.T.corrcoef()[0, 1].abs() > 0.1
        assert pit.T.corrcoef()[0, 1].abs() < 0.02
        assert kolmogorov(head.pit(raw, points.flip(-1))) > 0.03
    assert kolmogorov(head.pit(other, points)) > 0.03


def kolmogorov(pit: Tensor) -> float:
    """The largest gap between the distribution functions of PIT values [N, d], by coordinate, and the uniform one."""
    places = torch.arange(1, len(pit) + 1, dtype=pit.dtype) / len(pit)
    return float((pit.sort(0).values - places[:, None]).abs().max())


@heads
def test_the_pit_is_the_integral_of_the_density(head: MixtureHead) -> None:
    """By a fine grid: of the first coordinate over all of the second, then of the second along the first's value."""
    count = 4000 if head.dimensions == 1 else 500
    axis = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    grid = torch.cartesian_prod(*[axis] * head.dimensions).view(-1, head.dimensions)
    for raw in raw_outputs(head, 3):
        density = head.log_likelihood(raw.expand(len(grid), -1), grid).exp().view([count] * head.dimensions)
        first = density.view(count, -1).mean(1).cumsum(0) / count
        place = count // 3
        point = axis[[place] * head.dimensions]
        expected = [first[place] - 0.5 * density[place].mean() / count]
        if head.dimensions == 2:
            along = density[place] / density[place].sum()
            expected.append(along.cumsum(0)[place] - 0.5 * along[place])
        assert torch.allclose(head.pit(raw, point), torch.stack(expected), atol=2e-3)


@heads
def test_the_gradient_is_that_of_finite_differences(head: MixtureHead) -> None:
    raw = raw_outputs(head, 2, 3, 2).requires_grad_()
    points = torch.rand(2, 3, 2, head.dimensions, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: head.log_likelihood(x, points).mean((1, 2)), raw)
    assert torch.autograd.gradgradcheck(lambda x: head.log_likelihood(x, points).mean((1, 2)), raw)


@heads
def test_density_and_gradient_stay_finite_in_float32(head: MixtureHead) -> None:
    raw = (100 * torch.sign(raw_outputs(head, 1, 64, 1))).float().requires_grad_()
    points = torch.rand(1, 64, 1, head.dimensions, generator=torch.Generator().manual_seed(3)).round()
    loss = -head.log_likelihood(raw, points).mean()
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
