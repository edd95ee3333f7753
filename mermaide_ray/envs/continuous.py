"""The continuous game: the agent chooses a point, and what an intervention does to it goes by nearness to the target.

nearness = exp(-|point - target|^2 / (2 w^2)), w = `target_width`. Between what a hit and what a miss get in the game of
arms, an incentive lies in proportion to nearness:

    signed, graded: delta * size * (2 * nearness - 1)     bonus: delta * nearness
    principal reward = nearness - alpha * cost

A cost `per_intervention` is the intervention's size; `paid`, the positive part of the incentive in units of delta. A
pull within w of the target is a success. Pure functions, like those that they stand in for; knows no Ray.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mermaide_ray.envs.incentive import Incentives
from mermaide_ray.points import SmoothReward, Space, squared_distance

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.environment import Environment

# Nearness at a distance of w; a rounding below it, so that w itself still is a success.
_AT_WIDTH = math.exp(-0.5) - 1e-6


class PointIncentives(Incentives):
    """`Incentives` of the continuous game. Arms and targets are places on the lattice, int64."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._space = Space(environment.dimensions)
        self._falloff = 0.5 / environment.target_width**2
        self._base_reward = SmoothReward(self._space, environment.base_length)

    def base_reward(self, base: Tensor, arm: Tensor) -> Tensor:
        """See base; the vector of a task is `SmoothReward`'s."""
        return self._base_reward(base, arm)

    def value(self, arm: Tensor, target: Tensor) -> Tensor:
        """Nearness to the target, float in (0, 1], broadcast over both."""
        return (-self._falloff * squared_distance(self._space.point(arm), self._space.point(target))).exp()

    def success(self, arm: Tensor, target: Tensor) -> Tensor:
        """Whether a pull lies within w of the target, bool."""
        return self.value(arm, target) >= _AT_WIDTH

    def incentive(self, intervention: Tensor, arm: Tensor, target: Tensor) -> Tensor:
        """See base."""
        return self._miss[intervention].lerp(self._hit[intervention], self.value(arm, target))

    def cost(self, intervention: Tensor, arm: Tensor, target: Tensor) -> Tensor:
        """See base; `paid` is the positive part of the incentive, in units of delta."""
        if self.environment.cost == "per_intervention":
            return self._cost[intervention]
        return self.incentive(intervention, arm, target).clamp(min=0) / self.environment.delta
