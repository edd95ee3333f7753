"""A principal meets followers: episodes of rounds, and adaptation after each. Used by training and evaluation alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mermaide_ray.stackelberg.beliefs import response_log_p, seen_log_p
from mermaide_ray.stackelberg.games import Games, Outcome, RoundDice, play_round
from mermaide_ray.stackelberg.planner import Planner, choose_commitment
from mermaide_ray.stackelberg.settings import Game


class Believer(Protocol):
    """Any principal of beliefs.py. States are its own."""

    log_sharpness: Any
    each_round: bool
    """Whether a round changes the belief; else only an episode's end does."""

    def begin(self, leader: Tensor, trials: int) -> Any:
        """The state before the first round."""

    def belief(self, state: Any) -> Tensor:
        """The follower's payoffs as believed, float [B, E, M, C]."""

    def observe(self, state: Any, commitment: Tensor, outcome: Outcome) -> Any:
        """The state after a round."""

    def adapt(self, state: Any) -> Any:
        """The state after an episode."""


@dataclass(frozen=True)
class Trial:
    """What happened, round by round; R = episodes * rounds.

    Attributes:
        payoffs: float [B, E, R].
        log_p: Log-probability of each commitment, float [B, E, R].
        entropy: Of the policy that chose it, float [B, E, R].
        nll: Negative log-likelihood of each response seen, by the belief before it, float [B, E, R].
        commitments: float [B, E, R, M].
        seen: Responses as observed, int64 [B, E, R].
    """

    payoffs: Tensor
    log_p: Tensor
    entropy: Tensor
    nll: Tensor
    commitments: Tensor
    seen: Tensor


def meet(
    game: Game,
    principal: Believer,
    games: Games,
    dice: RoundDice,
    commitments: Tensor,
    after: Callable[[int, Tensor], None] | None = None,
) -> Trial:
    """Plays all episodes that dice are dealt for.

    Args:
        game: Settings.
        principal: The principal.
        games: B tasks.
        dice: [B, E, K, T].
        commitments: The lattice to choose from, float [G, M].
        after: Told the belief after 0, 1, …, K episodes.
    """
    trials, episodes, rounds = dice.commit.shape[1:]
    leader, follower = games.leader.unsqueeze(1), games.follower.unsqueeze(1)
    planner = Planner.of(games.leader, commitments)
    state = principal.begin(games.leader, trials)
    if after:
        after(0, principal.belief(state))
    told = []
    for episode in range(episodes):
        for turn in range(rounds):
            if principal.each_round or not turn:
                belief = principal.belief(state)
                logits = principal.log_sharpness.exp() * planner.predicted(belief)
                log_p = logits.log_softmax(-1)
                entropy = -(log_p.exp() * log_p).sum(-1)
            index = choose_commitment(logits.detach(), dice.commit[:, :, episode, turn])
            commitment = commitments[index]
            outcome = play_round(
                game,
                leader,
                follower,
                commitment,
                dice.garble[:, :, episode, turn],
                dice.garbled[:, :, episode, turn],
                dice.payoff_noise[:, :, episode, turn],
            )
            seen = seen_log_p(response_log_p(belief, commitment), game.response_noise)
            told.append(
                (
                    outcome.payoff,
                    log_p.gather(-1, index.unsqueeze(-1)).squeeze(-1),
                    entropy,
                    -seen.gather(-1, outcome.seen_response.unsqueeze(-1)).squeeze(-1),
                    commitment,
                    outcome.seen_response,
                )
            )
            state = principal.observe(state, commitment, outcome)
        if after or episode + 1 < episodes:  # else nobody asks
            state = principal.adapt(state)
        if after:
            after(episode + 1, principal.belief(state))
    return Trial(*(torch.stack(part, dim=2) for part in zip(*told, strict=True)))
