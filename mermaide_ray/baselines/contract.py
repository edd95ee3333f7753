"""What a rule of the user's own must keep, found out by playing it: a moment, before hours of training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mermaide_ray.agents.contract import called, type_and_shape
from mermaide_ray.baselines import baseline_named
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment
from mermaide_ray.noise import Key

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.agent_settings import Split
    from mermaide_ray.lockstep import Hidden, Seen

_NEEDED = ("begin", "intervene")
# Of those that it will be scored on, the first: enough to see what a rule returns, and soon played.
_MOST_AGENTS, _MOST_EPISODES = 8, 2


def check_own_rules(names: Iterable[str], experiment: Experiment, split: Split) -> None:
    """Plays the rules that are named by dotted paths, with a few of the agents that they are to be scored on.

    Args:
        names: Of rules; those without a colon are this package's, and left alone.
        experiment: The game and its agents.
        split: Whose agents.

    Raises:
        InputError: One of them can't be built, fails, or chooses what is no action.
    """
    for name in names:
        if ":" in name:
            _check(name, experiment, split)


def _check(name: str, experiment: Experiment, split: Split) -> None:
    from mermaide_ray.agents.distribution import AgentDistribution
    from mermaide_ray.lockstep import deal_for, play

    environment, evaluation = experiment.environment, experiment.evaluation
    distribution, episodes = AgentDistribution(experiment), min(evaluation.episodes, _MOST_EPISODES)
    tasks = distribution.held_out(split, min(evaluation.tasks, _MOST_AGENTS))
    rule = called(name, name.rpartition(":")[2], baseline_named(name), experiment, split, tasks, episodes)
    informed = [family.name for family in distribution.families if family.hear is not None]
    needed = (*_NEEDED, *(["probabilities"] if informed else []))
    if missing := [part for part in needed if not callable(getattr(rule, part, None))]:
        for_whom = f", which {informed[0]} agents ask for" if missing[0] == "probabilities" else ""
        raise InputError(
            f"{name!r} must return a principal with {', '.join(f'`{part}`' for part in needed)}, got "
            f"{type(rule).__name__} without `{missing[0]}`{for_whom}"
        )
    dice = deal_for(environment, Key(experiment.agents.seed, split, "contract", 0), tasks, episodes)
    watched = (_Announcing if informed else _Watched)(name, rule, experiment)
    play(environment, tasks, episodes, dice, watched)


class _Watched:
    """A rule, each of whose actions is looked at."""

    def __init__(self, name: str, rule: Any, experiment: Experiment) -> None:
        from mermaide_ray.view import view_of

        self._name, self._rule = name, rule
        self._num_actions = view_of(experiment.environment).num_interventions
        self._num_episodes = 0

    def begin(self, num_episodes: int) -> None:
        """See `lockstep.Principal`."""
        self._num_episodes = num_episodes
        called(self._name, "begin", self._rule.begin, num_episodes)

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        """See `lockstep.Principal`."""
        action: Tensor = called(self._name, "intervene", self._rule.intervene, seen, hidden)
        if (got := type_and_shape(action, self._num_episodes)) not in ("int64 [N]", "int32 [N]"):
            raise InputError(f"`intervene` of {self._name!r} must return int64 [N], got {got}")
        if wrong := [number for number in action.tolist() if not 0 <= number < self._num_actions]:
            raise InputError(
                f"`intervene` of {self._name!r} must return actions from 0 to {self._num_actions - 1}, got {wrong[0]}"
            )
        return action


class _Announcing(_Watched):
    """One that says how likely its actions are."""

    def probabilities(self) -> Tensor:
        """See `lockstep.Announcing`."""
        likely: Tensor = called(self._name, "probabilities", self._rule.probabilities)
        wanted = f"float32 [N, {self._num_actions}]"
        if (got := type_and_shape(likely, self._num_episodes)) != wanted:
            raise InputError(f"`probabilities` of {self._name!r} must return {wanted}, got {got}")
        return likely
