"""From episodes as they are stored to what networks are trained on.

The networks themselves are not to know the game: this is the one place where both are known.
"""

from __future__ import annotations

from mermaide_ray.environment import Environment
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.trajectory import Experience, Trajectories
from mermaide_ray.view import view_of


def experience_of(environment: Environment, trajectories: Trajectories) -> Experience:
    """Observations and rewards, rebuilt from arms and interventions."""
    rewards = incentives_of(environment).rewards_of(trajectories).transpose(1, 2)
    return Experience(view_of(environment).history(trajectories), rewards)
