"""What an equivariant principal remembers of each arm: closed forms of the history, the same for every arm, no weights.

A recurrent network per arm would cost |A| times one. Here each arm keeps a few running numbers (marks), which a shared
encoder reads; only one network, of fixed size, is recurrent, and it reads pools over the arms. So no weight's shape
depends on |A|, and arms that are renamed are predicted under their new names.

Shapes: as in `trajectory.py`; M marks, F features of an arm, R other entries of an observation.

Source: shared encoder and pooling as in Zaheer et al., arXiv 1703.06114 (Deep Sets), Eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Pulls, pulls that were paid for, how recently it was pulled (two memories), whether its last pull was paid for.
NUM_MARKS = 5
# Share of a memory that is left after a pull: it reaches back some 2 and some 10 pulls.
FAST, SLOW = 0.5, 0.9
# Means over arms, over past pulls, the arm pulled last, the target.
NUM_POOLS = 4


@dataclass(frozen=True)
class Described:
    """The arms at some steps, as the networks read them.

    Attributes:
        features: float [..., A, F], of each arm.
        pools: float [..., NUM_POOLS, A], weights over the arms; the last is one-hot on the target.
        rest: float [..., S + R], what is of no single arm: the last intervention and time.
    """

    features: Tensor
    pools: Tensor
    rest: Tensor


@dataclass(frozen=True)
class PerArm:
    """How the networks of an equivariant principal read observations (`view.View.observation`).

    What is seen late is taken for the last pull: a mark of being paid for is then that of a later intervention.

    Attributes:
        num_arms: A.
        num_symbols: S, A or one more: nothing seen.
        num_interventions: I.
        relative: Whether label 0 is the target; else the observation names it.
        names_arms: Whether an intervention chooses an arm (kind `arm`).
        encoder_size: Units of the shared encoder.
    """

    num_arms: int
    num_symbols: int
    num_interventions: int
    relative: bool
    names_arms: bool
    encoder_size: int

    @property
    def feature_size(self) -> int:
        """F."""
        return 10 if self.names_arms else 9

    def core_size(self, observation_size: int) -> int:
        """Inputs of the recurrent core."""
        arms = self.num_arms * (1 if self.relative else 2)
        signals = 2 if self.names_arms else self.num_interventions
        return NUM_POOLS * self.encoder_size + signals + observation_size - arms - self.num_interventions

    def before(self, like: Tensor, *shape: int) -> Tensor:
        """The marks before an episode, float [*shape, M, A]."""
        return like.new_zeros(*shape, NUM_MARKS, self.num_arms)

    def advance(self, marks: Tensor, observations: Tensor) -> Tensor:
        """The marks [..., M, A] at the next step, from those at this one and what is then seen, [..., D]."""
        pulled, intervention, _, rest = self._parts(observations)
        meant = intervention[..., 1:]
        paid = pulled * (meant if self.names_arms else meant.sum(-1, keepdim=True))
        # An agent learns afresh in each episode, and so do the marks: t = 0 begins one.
        going_on = (rest[..., -1:] > 0).to(marks.dtype).unsqueeze(-1)
        pulls, paid_pulls, fast, slow, last_paid = (marks * going_on).unbind(-2)
        return torch.stack(
            [
                pulls + pulled,
                paid_pulls + paid,
                fast.lerp(pulled, 1 - FAST),
                slow.lerp(pulled, 1 - SLOW),
                paid.where(pulled > 0, last_paid),
            ],
            dim=-2,
        )

    def over(self, observations: Tensor) -> Tensor:
        """The marks at each step of [B, T, E, D], float [B, T, E, M, A]."""
        batch, time, episodes, _ = observations.shape
        marks = observations.new_empty(batch, time, episodes, NUM_MARKS, self.num_arms)
        now = self.before(observations, batch, episodes)
        for t in range(time):
            now = self.advance(now, observations[:, t])
            marks[:, t] = now
        return marks

    def describe(self, marks: Tensor, observations: Tensor) -> Described:
        """What the networks read of marks [..., M, A] and observations [..., D]."""
        pulled, intervention, target, rest = self._parts(observations)
        pulls, paid_pulls, fast, slow, last_paid = marks.unbind(-2)
        share = pulls / pulls.sum(-1, keepdim=True).clamp(min=1)
        features = [
            target,
            pulled,
            (pulls == 0).to(marks.dtype),
            (pulls + 1).rsqrt(),  # as a confidence interval shrinks
            share,
            paid_pulls / pulls.clamp(min=1),
            fast,
            slow,
            last_paid,
        ]
        if self.names_arms:
            features.append(intervention[..., 1:])
            intervention = torch.cat([intervention[..., :1], intervention[..., 1:].sum(-1, keepdim=True)], dim=-1)
        uniform = torch.full_like(share, 1 / self.num_arms)
        return Described(
            features=torch.stack(features, dim=-1),
            pools=torch.stack([uniform, share, pulled, target], dim=-2),
            rest=torch.cat([intervention, rest], dim=-1),
        )

    def _parts(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Last arm [..., A], last intervention [..., I], target [..., A], and the rest, time last [..., R]."""
        arms, end = self.num_arms, self.num_symbols + self.num_interventions
        pulled, intervention = observations[..., :arms], observations[..., self.num_symbols : end]
        if self.relative:
            target = torch.zeros_like(pulled)
            target[..., 0] = 1
        else:
            target, end = observations[..., end : end + arms], end + arms
        rest = torch.cat([observations[..., arms : self.num_symbols], observations[..., end:]], dim=-1)
        return pulled, intervention, target, rest
