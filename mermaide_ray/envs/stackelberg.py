"""The Stackelberg game as an RLlib environment: the reference path, for any stock algorithm with continuous actions.

Given the same dice it plays exactly the rounds of `stackelberg.meeting`, one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from pydantic import Field
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.utils.typing import MultiAgentDict

from mermaide_ray.envs.turns import Schedule, Turns
from mermaide_ray.noise import Key
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.settings import Whole
from mermaide_ray.stackelberg.games import GameDistribution, deal, play_round
from mermaide_ray.stackelberg.settings import Game


class EnvSettings(Schedule):
    """What `env_config` may hold: a game, and which of its episodes to play."""

    game: Game = Field(default_factory=Game, description="the game")
    training_seed: Whole = Field(0, ge=0, lt=2**32, description="seed of training followers and of the luck with them")


class StackelbergEnv(MultiAgentEnv):
    """A principal commits to a mixed strategy, again and again, against a follower whose payoffs it does not know.

    Agents: "principal" alone. The follower has nothing to learn or to remember: its best response is a function, part
    of the game. Observation, float32 [M * C + M + C + 2]: the leader's payoffs, the last commitment, the last response
    and the last payoff as observed (zeros before the first round of an episode), t / T. Action: Box [M] in [0, 1],
    weights of the rows, scaled to sum to 1 (all zero: uniform). Reward: the commitment's expected payoff against the
    best response. Terminates after `rounds` rounds. Infos, never shown to a policy, say what happened.

    Args:
        config: See `EnvSettings`. In RLlib's EnvContext, env runners share the schedule out between them.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._settings = EnvSettings.read(config)
        game = self._settings.game
        self._distribution = GameDistribution(game, self._settings.training_seed)
        self._turns = Turns(config, self._settings.tasks, self._settings.episodes)
        size = game.rows * game.columns + game.rows + game.columns + 2
        self.observation_spaces = {PRINCIPAL: gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)}
        self.action_spaces = {PRINCIPAL: gym.spaces.Box(0.0, 1.0, (game.rows,), np.float32)}
        self.possible_agents = [PRINCIPAL]
        self.agents = [PRINCIPAL]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[MultiAgentDict, MultiAgentDict]:
        """Deals the next episode of the schedule.

        Args:
            seed: Without effect: luck is keyed by the schedule.
            options: Without effect.
        """
        super().reset(seed=seed, options=options)
        settings, game = self._settings, self._settings.game
        task, episode = self._turns.next()
        self._games = self._distribution.tasks(settings.split, [task])
        dice_seed = settings.training_seed if settings.split == "train" else game.seed
        key = Key(dice_seed, settings.split, settings.purpose, settings.iteration)
        self._dice = deal(key, [task], 1, episode + 1, game.rounds)
        self._at, self._round = episode, 0
        self._last = np.zeros(game.rows + game.columns + 1, dtype=np.float32)
        return {PRINCIPAL: self._observation()}, {PRINCIPAL: {"task": task, "episode": episode}}

    def step(
        self, action_dict: MultiAgentDict
    ) -> tuple[MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict]:
        """One round. See the class docstring."""
        game, games, dice = self._settings.game, self._games, self._dice
        commitment = _mixed(torch.as_tensor(action_dict[PRINCIPAL], dtype=torch.float32))
        at = (0, 0, self._at, self._round)
        outcome = play_round(
            game,
            games.leader[0],
            games.follower[0],
            commitment,
            dice.garble[at],
            dice.garbled[at],
            dice.payoff_noise[at],
        )
        self._round += 1
        response, seen = int(outcome.response), int(outcome.seen_response)
        shown = np.eye(game.columns, dtype=np.float32)[seen]
        self._last = np.concatenate([commitment.numpy(), shown, outcome.seen_payoff.numpy()[None]])
        over = self._round == game.rounds
        info = {"commitment": commitment.tolist(), "response": response, "seen_response": seen}
        return (
            {PRINCIPAL: self._observation()},
            {PRINCIPAL: float(outcome.payoff)},
            {PRINCIPAL: over, "__all__": over},
            {"__all__": False},
            {PRINCIPAL: info},
        )

    def _observation(self) -> np.ndarray:
        time = np.float32(self._round / self._settings.game.rounds)
        return np.concatenate([self._games.leader[0].flatten().numpy(), self._last, [time]]).astype(np.float32)


def _mixed(weights: torch.Tensor) -> torch.Tensor:
    """Weights as a mixed strategy; one that is a mixed strategy already stays as it is, to the last bit."""
    weights = weights.clamp(min=0)
    total = weights.sum()
    if total <= 0:
        return torch.full_like(weights, 1 / len(weights))
    return weights if (total - 1).abs() <= 1e-6 else weights / total
