"""Scores on held-out followers, as flat rows.

After each number of episodes the commitment that the principal then thinks best is scored against the follower's true
best response. Every method meets the same followers with the same luck; no training seed or noise changes either.
"""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mermaide_ray.agent_settings import Split
from mermaide_ray.noise import Key, generator
from mermaide_ray.stackelberg.beliefs import scratch
from mermaide_ray.stackelberg.equilibrium import strong_stackelberg
from mermaide_ray.stackelberg.games import GameDistribution, Games, commitment_value, deal
from mermaide_ray.stackelberg.meeting import Believer, meet
from mermaide_ray.stackelberg.planner import Planner, lattice
from mermaide_ray.stackelberg.settings import Game, Settings

CONDITIONS = ("test", "unstructured")
# Draws of the follower's payoffs from which the best uninformed commitment is found.
_PRIOR_DRAWS = 256


def unstructured(game: Game) -> Game:
    """The game with payoffs of the same variance, of which each is a follower's own."""
    deviation = math.sqrt(game.alignment**2 / 3 + game.tastes * game.taste_scale**2 + game.idiosyncrasy**2)
    own = {"alignment": 0.0, "taste_scale": 0.0, "idiosyncrasy": float(f"{deviation:.3g}")}
    return game.model_copy(update=own)


class FollowerScoring:
    """One condition's followers and luck, ready to score any number of principals.

    Args:
        settings: The experiment.
        split: Where the tasks come from.
        condition: One of CONDITIONS: the game of training, or one as large without structure, in which there is nothing
            to have meta-learned.
        num_tasks: Tasks; `evaluation.tasks` if not given.
    """

    def __init__(
        self, settings: Settings, split: Split = "test", condition: str = "test", num_tasks: int | None = None
    ) -> None:
        self._settings, self.split, self.condition = settings, split, condition
        game = settings.game if condition == "test" else unstructured(settings.game)
        self.games = GameDistribution(game).tasks(split, range(num_tasks or settings.evaluation.tasks))
        self._fine = lattice(game.rows, settings.principal.fine_resolution)
        leader, follower = (payoffs.double().numpy() for payoffs in (self.games.leader, self.games.follower))
        pairs = zip(leader, follower, strict=True)
        self.equilibrium = np.array([strong_stackelberg(*pair).value for pair in pairs])
        self.uninformed = uninformed_values(game, self.games, split, self._fine)
        # One unit for all tasks: where an uninformed commitment happens to be the best, a ratio per task has none.
        self.span = float((self.equilibrium - self.uninformed).mean())

    def score(self, principal: Believer, response_noise: float) -> dict[int, np.ndarray]:
        """Value of the commitment after each number of episodes: k -> float [B], mean over the trials of a task."""
        settings, games = self._settings, self.games
        game = settings.game.model_copy(update={"response_noise": response_noise})
        planner = Planner.of(games.leader, self._fine)
        leader, follower = games.leader.unsqueeze(1), games.follower.unsqueeze(1)
        values: dict[int, np.ndarray] = {}

        def after(k: int, belief: Tensor) -> None:
            if k in settings.evaluation.k:
                commitment = self._fine[planner.predicted(belief).argmax(-1)]
                values[k] = commitment_value(commitment, leader, follower).mean(1).double().numpy()

        key = Key(game.seed, self.split, "stackelberg/evaluation", 0)
        dice = deal(key, games.ids, settings.evaluation.trials, max(settings.evaluation.k), game.rounds)
        with torch.no_grad():
            meet(game, principal, games, dice, lattice(game.rows, settings.principal.resolution), after)
        return values

    def rows(self, principal: Believer, method: str, seed: int, response_noise: float) -> pd.DataFrame:
        """One row per task and k. Regrets and values are payoffs per round; see `span` for the normalised regret."""
        frames = []
        for k, value in self.score(principal, response_noise).items():
            regret = self.equilibrium - value
            frames.append(
                pd.DataFrame(
                    {
                        "method": method,
                        "seed": seed,
                        "split": self.split,
                        "condition": self.condition,
                        "trial": f"response_noise={response_noise:g}",
                        "setting.game.response_noise": response_noise,
                        "task": self.games.ids,
                        "family": "best_response",
                        "k": k,
                        "value": value,
                        "regret": regret,
                        "normalised_regret": regret / self.span,
                        "equilibrium_value": self.equilibrium,
                        "uninformed_value": self.uninformed,
                        "param.alignment": self.games.alignment.numpy(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)


def uninformed_values(game: Game, games: Games, split: Split, commitments: Tensor) -> np.ndarray:
    """What the best commitment of a leader that knows only the distribution of followers brings, float64 [B].

    Args:
        game: The distribution.
        games: Tasks.
        split: Theirs.
        commitments: Those to choose from, float [G, M].
    """
    distribution = GameDistribution(game)
    values = np.empty(len(games))
    for row, task in enumerate(games.ids):
        leader = games.leader[row]
        rng = generator(game.seed, split, "stackelberg/uninformed", 0, task)
        followers = distribution.followers_of(leader.double().numpy(), _PRIOR_DRAWS, rng)
        # By follower and commitment, [F, G].
        payoffs = commitment_value(commitments, leader[None, None], torch.from_numpy(followers).float().unsqueeze(1))
        chosen = commitments[reduce(torch.add, payoffs).argmax()]
        values[row] = float(commitment_value(chosen, leader, games.follower[row]))
    return values


def tuned_scratch(settings: Settings, validation: FollowerScoring, response_noise: float) -> Believer:
    """The principal without meta-training, with the settings that do best on validation followers (mean over k)."""
    candidates = [
        scratch(settings.with_noise(response_noise), payoff_scale, sharpness)
        for payoff_scale in settings.scratch.payoff_scale
        for sharpness in settings.scratch.sharpness
    ]
    if len(candidates) == 1:
        return candidates[0]
    means = [np.mean(list(validation.score(candidate, response_noise).values())) for candidate in candidates]
    return candidates[int(np.argmax(means))]
