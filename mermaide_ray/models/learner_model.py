"""A parametric model of the agent: what a principal may assume of anyone who learns which arm pays.

Such an agent values an arm by the mean of what it was paid there, and the principal knows what it has added itself. All
that it doesn't know of an agent are a few numbers (latents): the base reward of each arm, a bonus for arms seldom
pulled, the value of an arm not yet tried, how sharply the agent prefers the better arm, how often it pulls any arm:

    value_a = base_a + incentives_a / pulls_a + c sqrt(ln(t + 1) / pulls_a)        (u, before the first pull)
    p(a)    = (1 - lapse) softmax(value / tau)_a + lapse / A

Nothing here is trained. From support episodes the latents are inferred (the most probable ones); within an episode the
recurrent core corrects them at each step, and policy and prediction see the core through that correction alone. UCB,
epsilon-greedy and softmax agents are special cases; no family is named, and no range of any.

Shapes: as in `trajectory.py`; L latents: A base rewards, ln c, u, ln tau, logit lapse; S starting points.

Sources: the sufficient statistics of a bandit learner, Sutton and Barto (2018), sections 2.2 and 2.7; lapses and
softmax choice as in models of human and animal learners, Wilson and Collins, eLife 8:e49547 (2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mermaide_ray.models.posterior import LogDensity, Luck, climb, wander

# Before anything is seen: mean and standard deviation, in units of the agent's reward. A prior, not a setting.
_BASE = (0.5, 0.3)  # base rewards: as the default game draws them, U[0, 1] has 0.5 and 0.29; the others are wide
_OTHERS = ((-1.9, 1.5), (1.0, 2.0), (-2.0, 1.0), (-3.0, 2.0))  # ln c, u, ln tau, logit lapse
# The search starts at one who explores by the bonus, and at one who explores at random; after some steps the more
# probable goes on alone. Fewer steps leave a support of five episodes unexplained.
_STARTS = ((-1.2, 3.0, -1.6, -5.0), (-3.9, 0.0, -1.6, -2.0))
_SCOUTING, _STEPS = 25, 75
_LEAST_TAU = 0.02
# Probabilities of arms held at once (S * B * T * E * A, some ten floats for each): bounds memory.
_MOST_HELD = 2**24
# Leads beyond this many incentives are safe alike.
_FAR = 2.0
# What the policy reads: see `LearnerModel.predict`.
NUM_FEATURES = 6


@dataclass(frozen=True)
class LearnerModel:
    """The model, for one game in which label 0 is the target.

    Attributes:
        num_arms: A.
        horizon: T.
        incentives: What each intervention adds to the agent's reward on the target and on any other arm (I pairs).
    """

    num_arms: int
    horizon: int
    incentives: tuple[tuple[float, float], ...]

    @property
    def size(self) -> int:
        """L."""
        return self.num_arms + len(_OTHERS)

    def prior(self) -> Tensor:
        """The latents of an agent of whom nothing is known, float [L]."""
        return self._latents(*(mean for mean, _ in _OTHERS))

    def before(self, like: Tensor, *shape: int) -> Tensor:
        """The marks before an episode, pulls and incentives of each arm, float [*shape, 2, A]."""
        return like.new_zeros(*shape, 2, self.num_arms)

    def advance(self, marks: Tensor, observations: Tensor) -> Tensor:
        """The marks [..., 2, A] at the next step, from those at this one and what is then seen, [..., D]."""
        return marks + self._entries(observations)

    def over(self, observations: Tensor) -> Tensor:
        """The marks at each step of [B, T, E, D], float [B, T, E, 2, A]."""
        return self._entries(observations).cumsum(1)

    def log_p(self, latents: Tensor, marks: Tensor) -> Tensor:
        """Log-probability of each next arm, float [..., A].

        Args:
            latents: float [..., L].
            marks: float [..., 2, A].
        """
        return self._log_p(latents, self._values(latents, *self._known(marks))[1])

    def predict(self, latents: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
        """`log_p`, and what the policy reads, float [..., NUM_FEATURES].

        It reads the target's probability; its lead over the best other arm in mean reward so far, in value and in base
        reward (in units of the largest incentive, cut at +-2); its share of pulls so far; t / T.

        Args:
            latents: float [..., L].
            marks: float [..., 2, A].
        """
        mean, value = self._values(latents, *self._known(marks))
        log_p = self._log_p(latents, value)
        pulls = marks[..., 0, :]
        t = pulls.sum(-1, keepdim=True)
        leads = (lead(x / self._unit).clamp(-_FAR, _FAR) for x in (mean, value, latents[..., : self.num_arms]))
        told = [log_p[..., :1].exp(), *leads, pulls[..., :1] / t.clamp(min=1), t / self.horizon]
        return log_p, torch.cat(told, dim=-1)

    def infer(self, observations: Tensor, labels: Tensor) -> Tensor:
        """The most probable latents of each task, given episodes with it, float [B, L].

        Adam on the log-posterior: a few steps from each of S starting points, more from the best; each task by itself.

        Args:
            observations: float [B, T, E, D].
            labels: int64 [B, T, E], the arms then pulled, by label.
        """
        starts = torch.stack([self._latents(*start) for start in _STARTS]).to(observations)
        parts = self._parts(len(starts), labels)
        return torch.cat([self._infer(observations[part], labels[part], starts) for part in parts])

    def _infer(self, observations: Tensor, labels: Tensor, starts: Tensor) -> Tensor:
        """See `infer`: of some tasks, all at once."""
        log_posterior = self._log_posterior(observations, labels)
        scouts = climb(log_posterior, starts.unsqueeze(1).repeat(1, len(labels), 1), _SCOUTING)
        best = scouts[log_posterior(scouts).argmax(0), torch.arange(len(labels))]
        return climb(log_posterior, best.unsqueeze(0), _STEPS)[0]

    def _parts(self, copies: int, labels: Tensor) -> list[slice]:
        """The tasks in parts, each as large as memory allows with so many points of each task."""
        most = max(1, _MOST_HELD // (copies * labels[0].numel() * self.num_arms))
        return [slice(first, first + most) for first in range(0, len(labels), most)]

    def sample(self, observations: Tensor, labels: Tensor, latents: Tensor, luck: Luck) -> Tensor:
        """Latents that each task may have, given episodes with it: a sample of the posterior, float [B, S, L].

        Hamiltonian Monte Carlo, one chain per sample, from near the most probable latents; each task by itself.
        Source: Neal, MCMC using Hamiltonian dynamics, Handbook of Markov Chain Monte Carlo (2011), section 5.3.

        Args:
            observations: float [B, T, E, D].
            labels: int64 [B, T, E].
            latents: What `infer` found, float [B, L].
            luck: The chains', S of each task.
        """
        parts = self._parts(len(luck.start), labels)
        sampled = [self._sample(observations[part], labels[part], latents[part], luck.tasks(part)) for part in parts]
        return torch.cat(sampled)

    def _sample(self, observations: Tensor, labels: Tensor, latents: Tensor, luck: Luck) -> Tensor:
        """See `sample`: of some tasks, all at once."""
        known = self._known(self.over(observations))
        precision = self._deviation().to(latents).square().reciprocal() + self._information(latents, *known)
        start = latents + precision.rsqrt() * luck.start / 2
        return wander(self._log_posterior(observations, labels), start, precision.rsqrt(), luck).transpose(0, 1)

    def _log_posterior(self, observations: Tensor, labels: Tensor) -> LogDensity:
        """Of latents [S, B, L] given episodes with each task, up to a constant: a function to [S, B]."""
        marks = self.over(observations)
        known, pulled = self._known(marks), labels.unsqueeze(-1)
        mean, deviation = self.prior().to(marks), self._deviation().to(marks)

        def log_posterior(latents: Tensor) -> Tensor:
            spread = latents[:, :, None, None]
            scaled, lapse = self._scaled(spread, self._values(spread, *known)[1])
            chosen = scaled.gather(-1, pulled.expand(len(latents), *pulled.shape)) - scaled.logsumexp(-1, keepdim=True)
            likelihood = _with_lapses(chosen, lapse, self.num_arms).sum((2, 3, 4))
            return likelihood - ((latents - mean) / deviation).square().sum(-1) / 2

        return log_posterior

    def _information(self, latents: Tensor, paid: Tensor, width: Tensor, tried: Tensor) -> Tensor:
        """What the pulls of some episodes tell of each latent, the others given, float [B, L].

        The diagonal of Fisher's information, summed over pulls: sum_a p(a) (d ln p(a) / d latent)^2.

        Args:
            latents: float [B, L].
            paid: This and the next two as `_known` gives them, [B, T, E, A].
            width: See there.
            tried: See there.
        """
        spread = latents[:, None, None]
        bonus, _, tau, _ = self._others(spread)
        scaled, logit = self._scaled(spread, self._values(spread, paid, width, tried)[1])
        q, lapse = scaled.softmax(-1), logit.sigmoid()
        p = (1 - lapse) * q + lapse / self.num_arms
        sharp = 1 / self.temperature(tau)
        # For all but the lapse d ln p(a) / d latent = r(a) (d scaled(a) - sum_b q(b) d scaled(b)), with
        # r(a) = (1 - lapse) q(a) / p(a), the probability that a pull of a was no lapse.
        weight = ((1 - lapse) * q).square() / p

        def told_by(change: Tensor) -> Tensor:
            return (weight * (change - (q * change).sum(-1, keepdim=True)).square()).sum((1, 2, 3))

        # A base reward changes the arm's own logit alone, by `sharp`.
        base = tried * sharp.square() * (weight.sum(-1, keepdim=True) * q.square() + weight * (1 - 2 * q))
        others = [
            told_by((bonus.exp() * width * sharp).where(tried, 0.0)),
            told_by(sharp.expand_as(q).where(~tried, 0.0)),
            told_by(scaled * tau.exp() * sharp),
            ((lapse * (1 - lapse) * (1 / self.num_arms - q)).square() / p).sum((1, 2, 3)),
        ]
        return torch.cat([base.sum((1, 2)), torch.stack(others, dim=1)], dim=1)

    def agents(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Generic learners (`agents/generic_learner.py`) that have these latents [..., L].

        Returns:
            Base means by label, float [..., A], and hyperparameters, float [...] each.
        """
        bonus, untried, tau, lapse = (x.squeeze(-1) for x in self._others(latents))
        return latents[..., : self.num_arms], {
            "ucb_coefficient": bonus.exp(),
            "untried_value": untried,
            "temperature": self.temperature(tau),
            "lapse": lapse.sigmoid(),
        }

    @staticmethod
    def temperature(log_tau: Tensor) -> Tensor:
        """Of the softmax choice; never so low that values decide by what rounds away."""
        return log_tau.exp() + _LEAST_TAU

    def _deviation(self) -> Tensor:
        return self._latents(*(deviation for _, deviation in _OTHERS), base=_BASE[1])

    @cached_property
    def _unit(self) -> float:
        """The largest incentive; 1 where there is none."""
        return max((abs(paid) for pair in self.incentives for paid in pair), default=0.0) or 1.0

    @cached_property
    def _effect(self) -> Tensor:
        """What each intervention adds to the agent's reward at each arm, float [I, A]."""
        pairs = torch.tensor(self.incentives)
        return torch.cat([pairs[:, :1], pairs[:, 1:].expand(-1, self.num_arms - 1)], dim=1)

    def _entries(self, observations: Tensor) -> Tensor:
        """What is added to the marks [..., 2, A] on seeing the last pull, [..., D]."""
        pulled = observations[..., : self.num_arms]
        intervention = observations[..., self.num_arms : self.num_arms + len(self.incentives)]
        return torch.stack([pulled, pulled * (intervention @ self._effect.to(observations))], dim=-2)

    @staticmethod
    def _known(marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All of the values that no latent changes, [..., A] each.

        The mean incentive so far, float; sqrt(ln(t + 1) / pulls), float; whether the arm was pulled before, bool.
        """
        pulls, incentives = marks.unbind(-2)
        often = pulls.clamp(min=1)
        return incentives / often, (pulls.sum(-1, keepdim=True).log1p() / often).sqrt(), pulls > 0

    def _values(self, latents: Tensor, paid: Tensor, width: Tensor, tried: Tensor) -> tuple[Tensor, Tensor]:
        """The mean that the agent was paid at each arm, and what it makes of it, float [..., A] each."""
        bonus, untried, _, _ = self._others(latents)
        mean = latents[..., : self.num_arms] + paid
        return mean, (mean + bonus.exp() * width).where(tried, untried)

    def _log_p(self, latents: Tensor, value: Tensor) -> Tensor:
        scaled, lapse = self._scaled(latents, value)
        return _with_lapses(scaled - scaled.logsumexp(-1, keepdim=True), lapse, self.num_arms)

    def _scaled(self, latents: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Values [..., A] as the logits of a choice, and the logit of a lapse [..., 1]."""
        _, _, tau, lapse = self._others(latents)
        return value / self.temperature(tau), lapse

    def _others(self, latents: Tensor) -> tuple[Tensor, ...]:
        """All latents but the base rewards, float [..., 1] each."""
        return tuple(other.unsqueeze(-1) for other in latents[..., self.num_arms :].unbind(-1))

    def _latents(self, *others: float, base: float = _BASE[0]) -> Tensor:
        return torch.tensor([base] * self.num_arms + list(others))


def lead(x: Tensor) -> Tensor:
    """By how much the target is ahead of the best other arm, [..., A] -> [..., 1]."""
    return x[..., :1] - x[..., 1:].amax(-1, keepdim=True)


def _with_lapses(log_p: Tensor, logit_lapse: Tensor, num_arms: int) -> Tensor:
    lapse = logit_lapse.sigmoid()
    return (log_p.exp() * (1 - lapse) + lapse / num_arms).log()
