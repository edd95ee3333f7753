"""The world model's head in the continuous game: a density of the agent's next point (of arms: `ArmHead`).

A mixture of M Gaussians, each truncated to the cube [0, 1]^d and with a diagonal covariance, and of one uniform
component: a proper density, whose logarithm no single point makes very small. Means lie in the cube and deviations in
[LEAST_SCALE, MOST_SCALE], so that the mass that truncation leaves is never small: nothing cancels in float32.

Source: Bishop, Mixture Density Networks, 1994, Eq. 22 to 29; differs: truncation, a uniform component, diagonal
covariances, bounded deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SCALE, MOST_SCALE = 0.02, 0.5


@dataclass(frozen=True)
class Components:
    """The parameters of mixtures.

    Attributes:
        log_weights: float [..., M + 1], the uniform component's last.
        means, scales: float [..., M, d].
    """

    log_weights: Tensor
    means: Tensor
    scales: Tensor


@dataclass(frozen=True)
class MixtureHead:
    """How a head's raw outputs are read. Inputs and outputs may have any leading axes.

    Attributes:
        components: M, Gaussians.
        dimensions: d.
        width: Distance within which a point counts as predicted (`hits`).
    """

    components: int
    dimensions: int
    width: float

    @property
    def size(self) -> int:
        """Raw outputs: a logit per component and one for the uniform, then means, then scales."""
        return self.components * (1 + 2 * self.dimensions) + 1

    def initial_bias(self) -> Tensor:
        """Components of equal weight, their means spread over the cube, float [size]."""
        spread = torch.linspace(-2.0, 2.0, self.components)
        # Along the second coordinate in another order, or all means would lie on the diagonal.
        order = [torch.arange(self.components), torch.arange(self.components) * 2 % self.components]
        means = torch.stack([spread[order[axis]] for axis in range(self.dimensions)], dim=1)
        return torch.cat([torch.zeros(self.components + 1), means.flatten(), torch.full_like(means.flatten(), -1.0)])

    def read(self, raw: Tensor) -> Components:
        """The mixtures that raw outputs [..., size] stand for."""
        logits, rest = raw[..., : self.components + 1], raw[..., self.components + 1 :].sigmoid()
        means, scales = rest.reshape(*raw.shape[:-1], 2, self.components, self.dimensions).unbind(-3)
        return Components(
            log_weights=logits - logits.logsumexp(-1, keepdim=True),
            means=means,
            scales=LEAST_SCALE + (MOST_SCALE - LEAST_SCALE) * scales,
        )

    def readable(self, raw: Tensor) -> Tensor:
        """What the policy reads of a mixture: weights, means and relative scales, float [..., size] in [0, 1]."""
        logits, rest = raw[..., : self.components + 1], raw[..., self.components + 1 :]
        return torch.cat([(logits - logits.logsumexp(-1, keepdim=True)).exp(), rest.sigmoid()], dim=-1)

    def log_likelihood(self, raw: Tensor, points: Tensor) -> Tensor:
        """Logarithm of the density, nats [...], of points [..., d] under raw outputs [..., size]."""
        mixture = self.read(raw)
        log_gaussian = _log_densities(mixture, points).sum(-1)
        uniform = torch.zeros_like(raw[..., :1])
        return (mixture.log_weights + torch.cat([log_gaussian, uniform], dim=-1)).logsumexp(-1)

    def pit(self, raw: Tensor, points: Tensor) -> Tensor:
        """Probability integral transform of points [..., d] under raw outputs [..., size], [..., d] in [0, 1].

        Each coordinate's distribution function given the ones before it: all independent and uniform if the points
        come from these densities. Exact, since within a component coordinates are independent: those before a
        coordinate change only the components' weights, to their posterior.

        Source: Rosenblatt, Remarks on a Multivariate Transformation, 1952.
        """
        mixture = self.read(raw)
        log_gaussian = _log_densities(mixture, points)
        before = log_gaussian.cumsum(-1) - log_gaussian  # [..., M, d]
        uniform = torch.zeros_like(before[..., :1, :])
        weights = (mixture.log_weights.unsqueeze(-1) + torch.cat([before, uniform], dim=-2)).softmax(-2)
        # The uniform component's distribution function is the coordinate itself.
        below = torch.cat([_below(mixture, points), points.to(raw.dtype).unsqueeze(-2)], dim=-2)
        return (weights * below).sum(-2).clamp(0, 1)

    def hits(self, raw: Tensor, points: Tensor) -> Tensor:
        """Whether each point lies within `width` of the likeliest Gaussian's mean, bool [...]."""
        mixture = self.read(raw)
        likeliest = mixture.log_weights[..., :-1].argmax(-1)[..., None, None]
        guess = mixture.means.gather(-2, likeliest.expand(*likeliest.shape[:-1], self.dimensions)).squeeze(-2)
        return (points - guess).square().sum(-1) <= self.width**2


def _log_densities(mixture: Components, points: Tensor) -> Tensor:
    """Log-density of each truncated Gaussian in each coordinate of points [..., d], [..., M, d]."""
    deviation, inside = _deviation(mixture, points), _inside(mixture)
    return -0.5 * deviation.square() - (mixture.scales * inside).log() - 0.5 * math.log(2 * math.pi)


def _below(mixture: Components, points: Tensor) -> Tensor:
    """Distribution function of each truncated Gaussian in each coordinate of points [..., d], [..., M, d]."""
    outside = _normal_cdf(-mixture.means / mixture.scales)
    return (_normal_cdf(_deviation(mixture, points)) - outside) / _inside(mixture)


def _deviation(mixture: Components, points: Tensor) -> Tensor:
    return (points.to(mixture.means.dtype).unsqueeze(-2) - mixture.means) / mixture.scales


def _inside(mixture: Components) -> Tensor:
    """The share of each Gaussian that truncation leaves, by coordinate, [..., M, d]."""
    return _normal_cdf((1 - mixture.means) / mixture.scales) - _normal_cdf(-mixture.means / mixture.scales)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + (x / math.sqrt(2)).erf())
