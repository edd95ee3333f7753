"""The top of a posterior, and samples of it: gradients alone, many tasks at once, each by itself.

Shapes: S points of each of B tasks, L latents; a log-density takes [S, B, L] to [S, B].

Not a library's, since those climb and sample one posterior at a time (or bring JAX); here a hundred small ones are one
batch, and a task's outcome must not depend on which others are in it.
Source of the sampler: Neal, MCMC using Hamiltonian dynamics, Handbook of Markov Chain Monte Carlo (2011), section 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LogDensity: TypeAlias = Callable[[Tensor], Tensor]

# Adam's, of the climb: learning rate, decays of the two running means, and what keeps it from dividing by zero.
_RATE, _DECAYS, _EPSILON = 0.1, (0.9, 0.99), 1e-8
# Chains: moves, leaps per move, the first step size (in deviations), the share of moves to accept, and how fast the
# step size follows it.
_MOVES, _LEAPS, _FIRST_STEP, _ACCEPTANCE, _STEP_GAIN = 15, 8, 0.25, 0.75, 0.7


@dataclass(frozen=True)
class Luck:
    """The random numbers of S Hamiltonian chains of C moves for each of B tasks.

    Attributes:
        start: float [S, B, L], standard normal.
        momentum: float [C, S, B, L], standard normal.
        stretch: float [C, S, B], factors of the step size: without them a chain may come round to where it began.
        threshold: float [C, S, B] on [0, 1), below the probability of a move that is accepted.
    """

    start: Tensor
    momentum: Tensor
    stretch: Tensor
    threshold: Tensor

    @classmethod
    def dealt(cls, rngs: Sequence[np.random.Generator], samples: int, size: int) -> Luck:
        """For chains of latents of this size, with a generator for each task."""

        def tensor(draw: Callable[[np.random.Generator], NDArray[np.float64]], axis: int) -> Tensor:
            return torch.from_numpy(np.stack([draw(rng).astype(np.float32) for rng in rngs], axis))

        return cls(
            start=tensor(lambda rng: rng.standard_normal((samples, size)), 1),
            momentum=tensor(lambda rng: rng.standard_normal((_MOVES, samples, size)), 2),
            stretch=tensor(lambda rng: rng.uniform(0.6, 1.4, (_MOVES, samples)), 2),
            threshold=tensor(lambda rng: rng.random((_MOVES, samples)), 2),
        )

    def tasks(self, some: slice) -> Luck:
        """That of some of the tasks."""
        return Luck(
            self.start[:, some], self.momentum[:, :, some], self.stretch[:, :, some], self.threshold[:, :, some]
        )


def climb(log_density: LogDensity, start: Tensor, steps: int) -> Tensor:
    """Points [S, B, L] after some steps of Adam, each climbing by itself.

    Not by `torch.optim.Adam`, whose steps this takes to the last bit: to make one imports Torch's compiler, 1.6 seconds
    in each sampling actor, and its own work is a fifth of the climb. Source: Kingma and Ba, arXiv 1412.6980.
    """
    first_decay, second_decay = _DECAYS
    latents, mean, square = start, torch.zeros_like(start), torch.zeros_like(start)
    for taken in range(1, steps + 1):
        with torch.enable_grad():
            at = latents.detach().requires_grad_()
            (slope,) = torch.autograd.grad(-log_density(at).sum(), [at])
        mean = mean.lerp(slope, 1 - first_decay)
        square = (square * second_decay).addcmul(slope, slope, value=1 - second_decay)
        deviation = (square.sqrt() / (1 - second_decay**taken) ** 0.5).add(_EPSILON)
        latents = latents.addcdiv(mean, deviation, value=-_RATE / (1 - first_decay**taken))
    return latents


def wander(log_density: LogDensity, start: Tensor, deviation: Tensor, luck: Luck) -> Tensor:
    """Points [S, B, L] at the end of Hamiltonian chains, one each: a sample, if they went on for long enough.

    Each task finds a step size of its own as its chains go.

    Args:
        log_density: See above.
        start: float [S, B, L].
        deviation: Rough size of the density along each latent, float [B, L]; steps are in units of it.
        luck: The chains'.
    """

    def slope(latents: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            latents = latents.detach().requires_grad_()
            height = log_density(latents)
            return height.detach(), torch.autograd.grad(height.sum(), [latents])[0]

    latents, (height, gradient) = start, slope(start)
    step = torch.full_like(deviation[:, :1], _FIRST_STEP)
    for momentum, stretch, threshold in zip(luck.momentum, luck.stretch, luck.threshold, strict=True):
        size = step * stretch.unsqueeze(-1) * deviation
        began = new_momentum = momentum
        new, new_gradient = latents, gradient
        for _ in range(_LEAPS):
            new_momentum = new_momentum + size / 2 * new_gradient
            new = new + size * new_momentum
            new_height, new_gradient = slope(new)
            new_momentum = new_momentum + size / 2 * new_gradient
        gain = new_height - height - (new_momentum.square() - began.square()).sum(-1) / 2
        # A trajectory that left all bounds is not a number: refused.
        acceptance = gain.nan_to_num(float("-inf")).clamp(max=0).exp()
        accepted = acceptance > threshold
        latents = new.where(accepted.unsqueeze(-1), latents)
        gradient = new_gradient.where(accepted.unsqueeze(-1), gradient)
        height = new_height.where(accepted, height)
        # Over the last axis: over the first, the order in which Torch sums depends on how many tasks there are.
        share = acceptance.T.contiguous().mean(1, keepdim=True)
        step = step * (_STEP_GAIN * (share - _ACCEPTANCE)).exp()
    return latents
