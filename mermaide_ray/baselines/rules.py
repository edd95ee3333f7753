"""Fixed rules: principals that look at the clock and at their own dice, at nothing of the agent.

The one number of a rule is chosen on validation agents, for the whole mixture: a rule does not know the family.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from mermaide_ray.agent_settings import Split
from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.blocks import blocks_of, tasks_at_once
from mermaide_ray.environment import Environment
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.experiment import Experiment
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.noise import Key
from mermaide_ray.view import View, view_of

# Where a rule's number may lie, as shares of the horizon (n) or as probabilities (p).
_SHARES = tuple(step / 20 for step in range(21))


def strongest(environment: Environment) -> int:
    """What "intervene" means to a rule: the intervention that favours the target most, before `toward_target`."""
    if environment.intervention == "graded":
        return environment.graded_sizes.index(max(environment.graded_sizes)) + 1
    return 1


def toward_target(view: View, environment: Environment, intervention: Tensor, target: Tensor, told: Tensor) -> Tensor:
    """The action that favours the target, as named by who was `told` so (`View.told`); all int64 [N].

    Of the kind `arm`, it is to choose the target; of the others, `intervention` itself.
    """
    return view.action(target + 1 if environment.intervention == "arm" else intervention, told)


def announced(action: Tensor, probability: Tensor, num_interventions: int) -> Tensor:
    """Probabilities of every action, float [N, I]: `probability` [N] for `action` int64 [N], the rest for none."""
    spread = probability.new_zeros(len(action), num_interventions)
    spread[:, 0] = 1 - probability
    return spread.scatter_add_(1, action.unsqueeze(1), probability.unsqueeze(1))


class FixedRule:
    """Intervenes with a probability at the first pulls of an episode, and after each announced move of the target.

    Args:
        environment: The game.
        until: n, pulls after which it intervenes no more, unless it is told of another target.
        probability: p, of intervening at each of the first n pulls.
    """

    def __init__(self, environment: Environment, until: int, probability: float = 1.0) -> None:
        self._environment, self._view = environment, view_of(environment)
        self._until, self._probability = until, probability
        self._intervention = torch.tensor(strongest(environment))

    def begin(self, num_episodes: int) -> None:
        """See `lockstep.Principal`; nothing to forget."""

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        """See `lockstep.Principal`; never looks at `hidden`."""
        intervention = self._intervention.expand_as(seen.target)
        action = toward_target(self._view, self._environment, intervention, seen.target, seen.target)
        probability = self._probability * (seen.since < self._until)
        self._chosen = action, probability
        # Principal dice lie in [0, 1): p = 1 always, p = 0 never.
        return action * (seen.uniform < probability)

    def probabilities(self) -> Tensor:
        """See `lockstep.Announcing`."""
        return announced(*self._chosen, self._environment.num_interventions)


def never(experiment: Experiment, split: Split, tasks: Tasks, episodes: int) -> Principal:
    """Never intervenes."""
    return FixedRule(experiment.environment, until=0)


def always(experiment: Experiment, split: Split, tasks: Tasks, episodes: int) -> Principal:
    """Intervenes at every pull."""
    return FixedRule(experiment.environment, until=experiment.environment.horizon)


def random(experiment: Experiment, split: Split, tasks: Tasks, episodes: int) -> Principal:
    """Intervenes with the probability that is best on validation."""
    return FixedRule(experiment.environment, experiment.environment.horizon, chosen_probability(experiment))


def first_n(experiment: Experiment, split: Split, tasks: Tasks, episodes: int) -> Principal:
    """Intervenes at the first n pulls, with the n that is best on validation."""
    return FixedRule(experiment.environment, chosen_n(experiment))


def chosen_n(experiment: Experiment) -> int:
    """The n of first-n with the highest return on validation agents; the smallest of equals."""
    environment = experiment.environment
    grid = shares_of(environment.horizon, _SHARES)
    rules = [partial(FixedRule, environment, n) for n in grid]
    return grid[once_per_game(experiment, "first_n", lambda: _best_on_validation(experiment, rules))]


def chosen_probability(experiment: Experiment) -> float:
    """The p of random(p) with the highest return on validation agents; the smallest of equals."""
    environment = experiment.environment
    rules = [partial(FixedRule, environment, environment.horizon, p) for p in _SHARES]
    return _SHARES[once_per_game(experiment, "random", lambda: _best_on_validation(experiment, rules))]


_chosen: dict[tuple[str, Hashable], int] = {}


def once_per_game(experiment: Experiment, among: Hashable, choose: Callable[[], int]) -> int:
    """What is best on the validation agents, found once per process: all splits and conditions of a game ask for it.

    Args:
        experiment: The game and the agents.
        among: What it is chosen among.
        choose: Finds its index.
    """
    game = experiment.model_dump_json(
        include={"environment": True, "agents": True, "evaluation": {"tasks", "episodes"}}
    )
    key = game, among
    if key not in _chosen:
        _chosen[key] = choose()
    return _chosen[key]


def shares_of(horizon: int, shares: Sequence[float]) -> list[int]:
    """Shares of the horizon as numbers of pulls, each once, in order."""
    return sorted({round(share * horizon) for share in shares})


def _best_on_validation(experiment: Experiment, candidates: Sequence[Callable[[], Principal]]) -> int:
    """Index of the candidate with the highest mean return; all meet the same validation agents and luck."""
    means = [returns.mean().item() for returns in _returns_on_validation(experiment, candidates)]
    return means.index(max(means))


def _returns_on_validation(experiment: Experiment, candidates: Sequence[Callable[[], Principal]]) -> Tensor:
    """What each of R candidates earns in each episode with the validation agents, float [R, B, E]."""
    environment, evaluation = experiment.environment, experiment.evaluation
    tasks = AgentDistribution(experiment).held_out("validation", evaluation.tasks)
    key = Key(experiment.agents.seed, "validation", "baselines/choice", 0)
    incentives = incentives_of(environment)
    returns = torch.empty(len(candidates), len(tasks), evaluation.episodes)
    for block in blocks_of(tasks, tasks_at_once(environment, tasks, evaluation.episodes)):
        some = tasks.select(block)
        dice = deal_for(environment, key, some, evaluation.episodes)
        for place, candidate in enumerate(candidates):
            played = play(environment, some, evaluation.episodes, dice, candidate())
            returns[place, block] = incentives.rewards_of(played).sum(2)
    return returns
