"""The games. A new one is a file and a line in ENVS.

Paths, not classes: `mermaide envs` lists them without importing Ray.
"""

from dataclasses import dataclass

from mermaide_ray.registry import lookup


@dataclass(frozen=True)
class Game:
    """A registered environment.

    Attributes:
        path: Where its class is.
        description: One line for `mermaide envs`.
        has_agents: Whether an experiment says who is met in it; else it has settings of its own.
    """

    path: str
    description: str
    has_agents: bool = True


ENVS: dict[str, Game] = {
    "incentivized_bandit": Game(
        "mermaide_ray.envs.bandit:IncentivizedBanditEnv",
        "a principal pays or penalises a bandit learner that it has never met, so that it pulls a target arm; with "
        "environment.game = continuous (preset mermaide) the learner chooses points of [0, 1]^d",
    ),
    "stackelberg": Game(
        "mermaide_ray.envs.stackelberg:StackelbergEnv",
        "a principal commits to a mixed strategy of a bimatrix game, against a follower whose payoffs it does not know",
        has_agents=False,
    ),
}


def env_named(name: str) -> type:
    """The environment class registered as `name`, or the user's own at a dotted path `package.module:NAME`."""
    classes = {key: game.path for key, game in ENVS.items()}
    path = name if ":" in name else lookup(name, classes, str, "environment")
    return lookup(path, {}, type, "environment")
