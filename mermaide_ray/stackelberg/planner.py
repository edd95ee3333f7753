"""From a belief about the follower to a commitment.

A principal's action is a mixed strategy, chosen from a lattice in the simplex: the policy is a softmax over its points
of the payoff that the principal's own model predicts. Gaussian logits or a Dirichlet have one mode, but the payoff of a
commitment jumps wherever the best response changes, and has about one local maximum per column. B tasks, E trials,
G lattice points, M rows, C columns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


def lattice(rows: int, resolution: int) -> Tensor:
    """All mixed strategies over `rows` actions in multiples of 1 / resolution, float32 [G, M]."""
    bars = itertools.combinations(range(resolution + rows - 1), rows - 1)
    edges = torch.tensor([(-1, *cut, resolution + rows - 1) for cut in bars])
    return (edges.diff(dim=1) - 1) / resolution


@dataclass(frozen=True)
class Planner:
    """What each commitment would bring, by a belief.

    Attributes:
        commitments: float [G, M].
        payoffs: float [B, 1, C, G], the leader's payoff of each commitment by column.
    """

    commitments: Tensor
    payoffs: Tensor

    @classmethod
    def of(cls, leader: Tensor, commitments: Tensor) -> Planner:
        """For games with these leader payoffs, float [B, M, C]."""
        return cls(commitments, (leader.transpose(1, 2) @ commitments.T).unsqueeze(1))

    def predicted(self, belief: Tensor) -> Tensor:
        """The leader's expected payoff of each commitment, float [B, E, G].

        Args:
            belief: The follower's payoffs as the principal believes them, in nats: a column's probability is the
                softmax of its expected payoff. float [B, E, M, C].
        """
        # Softmax by hand, columns before points: Torch's own is several times slower where the axis is short.
        utility = belief.transpose(-1, -2) @ self.commitments.T
        likely = (utility - utility.amax(-2, keepdim=True).detach()).exp()
        return (likely * self.payoffs).sum(-2) / likely.sum(-2)


def choose_commitment(logits: Tensor, uniform: Tensor) -> Tensor:
    """Indices of commitments sampled by inversion: logits [..., G], uniform [...] on [0, 1) -> int64 [...]."""
    cumulative = logits.softmax(-1).cumsum(-1)[..., :-1].contiguous()
    return torch.searchsorted(cumulative, uniform.unsqueeze(-1).contiguous(), right=True).squeeze(-1)
