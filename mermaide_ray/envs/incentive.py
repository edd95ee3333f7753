"""From an intervention and a pulled arm to the incentive, its cost, and the principal's reward.

Pure functions of small integers: whoever has a batch of trajectories can rebuild every reward from it, so rewards are
never shipped. Knows no Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.environment import Environment

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.trajectory import Trajectories


class Incentives:
    """The incentive and cost of one environment setting, as lookups.

    Interventions are int64 in [0, I): 0 is "none". Arms and targets are int64 in [0, A).
    """

    def __init__(self, environment: Environment) -> None:
        import torch

        self.environment = environment
        self.num_interventions = environment.num_interventions
        # [I]: what each intervention adds on a hit, on a miss, and its full cost.
        self._hit, self._miss = torch.tensor(environment.incentives).unbind(1)
        self._cost = torch.tensor((0.0, *environment.sizes))

    def incentive(self, intervention: Tensor, arm: Tensor, target: Tensor) -> Tensor:
        """What the agent's reward gains (or loses), float, shaped as `arm`."""
        return self._hit[intervention].where(self._is_hit(intervention, arm, target), self._miss[intervention])

    def offer(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """The expected incentive of each arm, float [N, A].

        Args:
            probabilities: float [N, I], of each intervention.
            target: int64 [N].
        """
        if self.environment.intervention == "arm":
            return probabilities[:, 1:] * self.environment.delta
        hit, miss = probabilities @ self._hit, probabilities @ self._miss
        elsewhere = miss.unsqueeze(1).repeat(1, self.environment.num_arms)
        return elsewhere.scatter(1, target.unsqueeze(1), hit.unsqueeze(1))

    @property
    def lead(self) -> Tensor:
        """By how much each intervention favours the arm that it is for over all others, float [I]."""
        return self._hit - self._miss

    def cost(self, intervention: Tensor, arm: Tensor, target: Tensor) -> Tensor:
        """What the intervention costs the principal, float, shaped as `arm`.

        `per_intervention`: its size, whatever the agent did. `paid`: the same, but only where a positive incentive was
        paid out (a penalty costs the principal nothing).
        """
        cost = self._cost[intervention]
        if self.environment.cost == "per_intervention":
            return cost
        return cost * self._is_hit(intervention, arm, target)

    def base_reward(self, base: Tensor, arm: Tensor) -> Tensor:
        """The mean of the agent's own reward, float [...], for arms [...] of tasks with base rewards [..., A]."""
        return base.gather(-1, arm.unsqueeze(-1)).squeeze(-1)

    def value(self, arm: Tensor, target: Tensor) -> Tensor:
        """What a pull is worth to the principal, before costs: 1[arm = target], float."""
        return (arm == target).to(self._cost.dtype)

    def success(self, arm: Tensor, target: Tensor) -> Tensor:
        """Whether a pull is what the principal wants, bool, broadcast over both."""
        return arm == target

    def principal_reward(self, intervention: Tensor, arm: Tensor, target: Tensor) -> Tensor:
        """What the pull is worth (`value`) - alpha * cost, float, shaped as `arm`."""
        cost = self.cost(intervention, arm, target)
        return self.value(arm, target) - self.environment.cost_weight * cost

    def rewards_of(self, played: Trajectories) -> Tensor:
        """The principal's rewards of whole episodes, float [B, E, T]."""
        return self.principal_reward(played.interventions.long(), played.arms.long(), played.targets)

    def successes_of(self, played: Trajectories) -> Tensor:
        """Whether each pull of whole episodes is a success, bool [B, E, T]."""
        return self.success(played.arms.long(), played.targets)

    def costs_of(self, played: Trajectories) -> Tensor:
        """The cost of each intervention of whole episodes, float [B, E, T]."""
        return self.cost(played.interventions.long(), played.arms.long(), played.targets)

    def agent_rewards_of(self, played: Trajectories, base: Tensor) -> Tensor:
        """The agents' rewards of whole episodes without their noise, float [B, E, T].

        Args:
            played: The episodes.
            base: float [B, E, T, A], or 1 for E and T where all are the same: the base means.
        """
        arms = played.arms.long()
        own = self.base_reward(base.expand(*arms.shape, -1), arms)
        return own + self.incentive(played.interventions.long(), arms, played.targets)

    def _is_hit(self, intervention: Tensor, arm: Tensor, target: Tensor) -> Tensor:
        if self.environment.intervention == "arm":
            return arm == intervention - 1
        return arm == target


def incentives_of(environment: Environment) -> Incentives:
    """The incentives of the environment's game."""
    if environment.space is None:
        return Incentives(environment)
    from mermaide_ray.envs.continuous import PointIncentives

    return PointIncentives(environment)
