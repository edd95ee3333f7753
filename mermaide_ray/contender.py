"""A trained principal outside training: to be scored, or played with step by step. Needs Torch, not Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from mermaide_ray.config_file import merge
from mermaide_ray.experiment import Experiment, check_game, validate
from mermaide_ray.kshot import KShot, Prepared
from mermaide_ray.lockstep import Principal
from mermaide_ray.models.architecture import Weights
from mermaide_ray.models.principal import shared
from mermaide_ray.noise import Key
from mermaide_ray.trajectory import Trajectories

# Of the draws by which a principal plans that is played with step by step.
_ALONE = Key(0, "test", "player", 0)


@dataclass(frozen=True)
class Contender:
    """A trained principal that is to be scored.

    Attributes:
        name: Its name in the rows.
        seed: Training seed.
        kshot: The game, its method, and whether it plans.
        weights: Unadapted weights, without task axis.
        inner_rates: Inner learning rate by weight name.
    """

    name: str
    seed: int
    kshot: KShot
    weights: Weights
    inner_rates: dict[str, Tensor]

    def at(self, experiment: Experiment) -> Contender:
        """The same principal as another experiment scores it: in its game, planning and rehearsing (or not) as it says.

        Raises:
            InputError: See `in_game_of`.
        """
        kshot = replace(self.kshot, rehearsals=experiment.evaluation.planned_rehearsals)
        return replace(self, kshot=kshot).in_game_of(experiment)

    def in_game_of(self, experiment: Experiment) -> Contender:
        """The same principal in another experiment's game, planning as it does.

        Raises:
            InputError: Its networks can't be used in that game, or its method not there or with those agents.
        """
        environment, method, where = experiment.environment, self.kshot.method, f"principal {self.name}"
        own = {"world_model": method.world_model, "meta_learning": method.meta, "training": method.training}
        settings = {name: section.model_dump(mode="json") for name, section in own.items()}
        settings["evaluation"] = {"planning": self.kshot.rehearsals is not None}
        # Who trains is of no account: nothing is trained.
        validate(merge({**experiment.to_dict(), "env_runners": {}}, settings), where)
        trained = experiment.model_copy(update={**own, "environment": self.kshot.environment})
        check_game(trained, environment, "environment", where)
        kshot = replace(self.kshot, environment=environment, method=method.at(environment))
        return replace(self, kshot=kshot)

    def player(
        self,
        played: Trajectories | None = None,
        episodes: int = 1,
        task: int = 0,
        key: Key = _ALONE,
    ) -> Principal:
        """It as a player of the lockstep game, step by step.

        Args:
            played: Episodes [1, K, T] with one agent, to which it adapts, and by which it plans if it does; None: it
                knows no agent.
            episodes: Episodes that are to be played side by side.
            task: Number of the agent, by which agents are imagined: each with draws of its own.
            key: Of these draws.
        """
        weights = shared(self.weights, 1)
        prepared = Prepared(weights)
        if played is not None:
            adaptation = self.kshot.adapt(played, self.weights, self.inner_rates)
            prepared = self.kshot.prepare((task,), played, weights, adaptation, key)
        return self.kshot.player(prepared, 1, episodes)
