"""Points of the unit interval or square as actions: the lattice that they lie on, and a smooth base reward over it.

A point is stored as one integer, its place on a lattice of 1,024 cells per coordinate, whose centres are the points
there are: far finer than what any agent, or the noise on its reward, resolves. So trajectories stay compact (2 bytes a
pull for one coordinate, 4 for two), and whatever carries arms carries points. Knows no agent and no network, and uses
tensor methods only: settings are read without Torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

RESOLUTION = 1024
"""Cells of the lattice per coordinate: a power of 2, so that a point is exact in float32."""
_CANDIDATES = {1: 32, 2: 9}


@dataclass(frozen=True)
class Space:
    """The cube [0, 1]^d with its lattice.

    Attributes:
        dimensions: d, 1 or 2.
    """

    dimensions: int

    @property
    def size(self) -> int:
        """Points on the lattice."""
        return int(RESOLUTION**self.dimensions)

    @property
    def candidates_per_axis(self) -> int:
        """Points per coordinate among which agents choose that keep an estimate of every choice."""
        return _CANDIDATES[self.dimensions]

    @property
    def num_candidates(self) -> int:
        """G, points among which such agents choose."""
        return int(self.candidates_per_axis**self.dimensions)

    def point(self, arm: Tensor) -> Tensor:
        """Coordinates, float32 [..., d], of places on the lattice, int64 [...]."""
        places = arm.unsqueeze(-1)
        if self.dimensions == 2:
            places = (places // RESOLUTION).expand(*arm.shape, 2).clone()
            places[..., 1] = arm % RESOLUTION
        return (places.float() + 0.5) / RESOLUTION

    def arm(self, point: Tensor) -> Tensor:
        """The place on the lattice, int64 [...], nearest to a point, float [..., d]; from outside, on the border."""
        cell = (point * RESOLUTION).floor().clamp(0, RESOLUTION - 1).long()
        return cell[..., 0] if self.dimensions == 1 else cell[..., 0] * RESOLUTION + cell[..., 1]

    def candidate_arms(self, like: Tensor) -> Tensor:
        """Places of the candidates, int64 [G], on the device of `like`: centres of a coarse grid's cells."""
        return like.new_tensor(_candidate_places(self)).long()

    def candidates(self, like: Tensor) -> Tensor:
        """Coordinates of the candidates, float32 [G, d], on the device of `like`."""
        return self.point(self.candidate_arms(like))

    def candidate(self, arm: Tensor) -> Tensor:
        """Index of the candidate whose cell of the coarse grid a point lies in, int64 [...]."""
        cell = (self.point(arm) * self.candidates_per_axis).long()
        return cell[..., 0] if self.dimensions == 1 else cell[..., 0] * self.candidates_per_axis + cell[..., 1]


@cache
def _candidate_places(space: Space) -> list[int]:
    count = space.candidates_per_axis
    axis = [int((index + 0.5) / count * RESOLUTION) for index in range(count)]
    return axis if space.dimensions == 1 else [one * RESOLUTION + other for one in axis for other in axis]


def squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """Squared Euclidean distance over the last axis, by broadcasting."""
    return (one - other).square().sum(-1)


class SmoothReward:
    """Base rewards over the cube: sums of random bumps, scaled to span a range.

    A task's base reward is a vector of `size` numbers, and the reward of a point a pure function of it:
    offset + sum over bumps of height * exp(-|point - centre|^2 / (2 * length^2)).

    Args:
        space: Where the points are.
        length: Length scale of the bumps; a coordinate spans 1.
    """

    NUM_BUMPS = 10
    _LEAST_PER_AXIS = 33

    def __init__(self, space: Space, length: float) -> None:
        self.space = space
        self._curvature = 0.5 / length**2
        # Of the fine grid on which a reward spans its range: bumps must not lie between its points.
        self._per_axis = max(self._LEAST_PER_AXIS, round(5 / length))

    @property
    def size(self) -> int:
        """Numbers in a task's vector: offset, heights, centres."""
        return 1 + self.NUM_BUMPS * (1 + self.space.dimensions)

    def draw(self, rng: np.random.Generator, low: float, high: float) -> NDArray[np.float32]:
        """The vector, float32 [size], of a new base reward that spans [low, high] over the cube (on a fine grid)."""
        dimensions = self.space.dimensions
        centres = rng.random((self.NUM_BUMPS, dimensions))
        heights = rng.standard_normal(self.NUM_BUMPS)
        axis = np.linspace(0.0, 1.0, self._per_axis)
        grid = np.stack(np.meshgrid(*[axis] * dimensions, indexing="ij"), axis=-1).reshape(-1, 1, dimensions)
        values = np.exp(-self._curvature * np.square(grid - centres).sum(-1)) @ heights
        scale = (high - low) / (values.max() - values.min())
        offset = low - scale * values.min()
        return np.concatenate([[offset], scale * heights, centres.ravel()]).astype(np.float32)

    def __call__(self, base: Tensor, arm: Tensor) -> Tensor:
        """Base rewards, float [...], of points, int64 [...], under vectors [..., size]."""
        heights, rest = base[..., 1 : 1 + self.NUM_BUMPS], base[..., 1 + self.NUM_BUMPS :]
        centres = rest.reshape(*arm.shape, self.NUM_BUMPS, self.space.dimensions)
        square = squared_distance(self.space.point(arm).unsqueeze(-2), centres)
        return base[..., 0] + (heights * (-self._curvature * square).exp()).sum(-1)
