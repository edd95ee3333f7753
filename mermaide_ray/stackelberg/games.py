"""Bimatrix games, the follower that best-responds, and all luck dealt up front.

Shapes: B tasks, E trials of each (independent meetings of the same follower), K episodes, T rounds, M rows (the
leader's actions), C columns (the follower's). Knows no Ray and no principal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mermaide_ray.agent_settings import Split
from mermaide_ray.agents.base import uniform_arm
from mermaide_ray.noise import Key, generator
from mermaide_ray.stackelberg.settings import Game

# Utilities closer than this are a tie, which the follower breaks in the leader's favour (strong Stackelberg). Of a
# follower whose payoffs are all below 1, this share of the largest.
TIE = 1e-6


@dataclass(frozen=True)
class Games:
    """A batch of tasks.

    Attributes:
        ids: Task ids, [B].
        leader: float32 [B, M, C], the principal's payoffs; it knows them.
        follower: float32 [B, M, C], the agent's payoffs; hidden.
        alignment: float32 [B], how much of the leader's payoffs is in the follower's.
    """

    ids: tuple[int, ...]
    leader: Tensor
    follower: Tensor
    alignment: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class GameDistribution:
    """Who may be met. Task `id` of a split has its own branch of the seed, so it can be rebuilt from the id alone.

    Args:
        game: Settings.
        training_seed: Seed of the training tasks; all training seeds share validation and test tasks.
    """

    def __init__(self, game: Game, training_seed: int = 0) -> None:
        self._game, self._training_seed = game, training_seed
        shape = (game.tastes, game.rows, game.columns)
        self._basis = generator(game.seed, "all", "stackelberg/basis", 0, 0).standard_normal(shape)

    def tasks(self, split: Split, ids: Sequence[int]) -> Games:
        """Builds the tasks with these ids."""
        game = self._game
        seed = self._training_seed if split == "train" else game.seed
        leader = np.empty((len(ids), game.rows, game.columns))
        follower = np.empty_like(leader)
        alignment = np.empty(len(ids))
        for row, task in enumerate(ids):
            rng = generator(seed, split, "stackelberg/follower", 0, task)
            leader[row] = rng.standard_normal(leader[row].shape)
            (follower[row],), (alignment[row],) = self._follower(leader[row], rng, 1)
        arrays = (torch.from_numpy(x.astype(np.float32)) for x in (leader, follower, alignment))
        return Games(tuple(ids), *arrays)

    def followers_of(self, leader: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Payoffs [count, M, C] of further followers that a leader with these payoffs [M, C] might meet."""
        return self._follower(leader, rng, count)[0]

    def _follower(
        self, leader: NDArray[np.float64], rng: np.random.Generator, count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        game = self._game
        alignment = rng.uniform(-game.alignment, game.alignment, count)
        tastes = rng.normal(0.0, game.taste_scale, (count, game.tastes))
        own = rng.normal(0.0, game.idiosyncrasy, (count, *leader.shape))
        return alignment[:, None, None] * leader + np.tensordot(tastes, self._basis, 1) + own, alignment


def mixture(weights: Tensor, payoffs: Tensor) -> Tensor:
    """Expected payoff of each column, float [..., C], for weights [..., M] on the rows of payoffs [..., M, C].

    Term by term, so that the result doesn't depend on what else is in the batch: a matrix product's last bit may.
    """
    total = weights[..., 0, None] * payoffs[..., 0, :]
    for row in range(1, payoffs.shape[-2]):
        total = total + weights[..., row, None] * payoffs[..., row, :]
    return total


def best_response(commitment: Tensor, leader: Tensor, follower: Tensor) -> Tensor:
    """The follower's column, int64 [...]: its best, and among equally good ones the leader's best.

    Args:
        commitment: Mixed strategy over rows, float [..., M].
        leader: The principal's payoffs, float [..., M, C].
        follower: The agent's, likewise.
    """
    utility = mixture(commitment, follower)
    closer = TIE * follower.abs().amax((-2, -1)).clamp(max=1).unsqueeze(-1)
    best = utility >= utility.amax(-1, keepdim=True) - closer
    return mixture(commitment, leader).masked_fill(~best, -torch.inf).argmax(-1)


def commitment_value(commitment: Tensor, leader: Tensor, follower: Tensor) -> Tensor:
    """What a commitment brings the leader against the best response, float [...]; arguments as in `best_response`."""
    response = best_response(commitment, leader, follower)
    return mixture(commitment, leader).take_along_dim(response.unsqueeze(-1), -1).squeeze(-1)


@dataclass(frozen=True)
class RoundDice:
    """All luck of a batch of trials.

    Attributes:
        commit: float32 [B, E, K, T] on [0, 1), for the principal's own sampling.
        garble: float32 [B, E, K, T] on [0, 1): the response is garbled where it is below p.
        garbled: float32 [B, E, K, T] on [0, 1): which response is seen then.
        payoff_noise: float32 [B, E, K, T] standard normal.
    """

    commit: Tensor
    garble: Tensor
    garbled: Tensor
    payoff_noise: Tensor


def deal(key: Key, tasks: Sequence[int], trials: int, episodes: int, rounds: int) -> RoundDice:
    """Deals the dice of `trials` trials of each task; those of an episode are the same however many follow it."""
    seed, split, purpose, iteration = key
    uniform = np.empty((len(tasks), episodes, trials, rounds, 3), dtype=np.float32)
    normal = np.empty((len(tasks), episodes, trials, rounds), dtype=np.float32)
    for row, task in enumerate(tasks):
        for what, array in (("uniform", uniform), ("normal", normal)):
            rng = generator(seed, split, f"{purpose}/{what}", iteration, task)
            draw = rng.random if what == "uniform" else rng.standard_normal
            draw(out=array[row], dtype=np.float32)

    def by_trial(array: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.swapaxes(1, 2)))

    commit, garble, garbled = (by_trial(uniform[..., which]) for which in range(3))
    return RoundDice(commit, garble, garbled, by_trial(normal))


@dataclass(frozen=True)
class Outcome:
    """What a round brought.

    Attributes:
        response: int64 [...], the follower's column.
        payoff: float [...], what the commitment brings the leader, in expectation over its own rows.
        seen_response: int64 [...], what the principal observes of the response.
        seen_payoff: float [...], what it observes of the payoff.
    """

    response: Tensor
    payoff: Tensor
    seen_response: Tensor
    seen_payoff: Tensor


def play_round(
    game: Game,
    leader: Tensor,
    follower: Tensor,
    commitment: Tensor,
    garble: Tensor,
    garbled: Tensor,
    payoff_noise: Tensor,
) -> Outcome:
    """One round of each trial; a pure function.

    Args:
        game: Settings.
        leader: The principal's payoffs, float [..., M, C].
        follower: The agent's, likewise.
        commitment: float [..., M].
        garble: The round's dice, float [...], as in `RoundDice`.
        garbled: Likewise.
        payoff_noise: Likewise.
    """
    response = best_response(commitment, leader, follower)
    payoff = mixture(commitment, leader).take_along_dim(response.unsqueeze(-1), -1).squeeze(-1)
    columns = leader.shape[-1]
    anything = uniform_arm(garbled, columns)
    seen = torch.where(garble < game.response_noise, anything, response)
    return Outcome(response, payoff, seen, payoff + game.payoff_noise * payoff_noise)
