"""What a principal believes of a follower, and how that changes with what it sees.

A belief is a matrix of the follower's payoffs, float [B, E, M, C]: the probability of a column is the softmax of its
expected payoff against the commitment. Three kinds of principal form it:

- `Adaptive` (mermaide): a world model, meta-learned: what to believe before anything was seen, and the directions in
  which a belief may move. Gradient steps on the responses seen move it. Only these context parameters adapt, as in
  CAVIA (Zintgraf et al., arXiv 1810.03642); through the belief, the policy adapts with them.
- `scratch`: the same class with nothing learned: no belief, every direction alike.
- `Recurrent` (rl2): a recurrent network that reads commitments, responses and payoffs, trained by policy gradient
  alone.

B tasks, E trials, N rounds seen so far, M rows, C columns, F context parameters, H hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mermaide_ray.models.gru import gru_scan
from mermaide_ray.stackelberg.games import Outcome, mixture
from mermaide_ray.stackelberg.settings import Game, PrincipalSettings, Settings

# Networks speak in this unit (nats): believing in a sharp best response shouldn't take large weights.
PAYOFF_UNIT = 5.0


def response_log_p(belief: Tensor, commitment: Tensor) -> Tensor:
    """Log-probabilities of the columns, float [..., C], for beliefs [..., M, C] and commitments [..., M]."""
    return mixture(commitment, belief).log_softmax(-1)


def seen_log_p(log_p: Tensor, response_noise: float) -> Tensor:
    """Log-probabilities of what is seen of a response, float [..., C], from those of the response itself.

    The channel is known: with probability `response_noise` anything is seen.
    """
    if not response_noise:
        return log_p
    columns = log_p.shape[-1]
    anything = torch.full((), math.log(response_noise / columns), dtype=log_p.dtype)
    kept = math.log1p(-response_noise) if response_noise < 1 else -math.inf
    return torch.logaddexp(log_p + kept, anything)


@dataclass(frozen=True)
class Context:
    """An adaptive principal's state with a batch of followers.

    Attributes:
        prior: Belief before anything was seen, float [B, M, C].
        directions: float [B, F, M, C].
        context: float [B, E, F]; zero before anything was seen.
        commitments: Those made so far, float [B, E, M] each.
        responses: Those seen so far, int64 [B, E] each.
    """

    prior: Tensor
    directions: Tensor
    context: Tensor
    commitments: tuple[Tensor, ...] = ()
    responses: tuple[Tensor, ...] = ()


class Adaptive(nn.Module):
    """Gradient adaptation of a belief within meta-learned directions.

    Each step is preconditioned by a bound on the loss's curvature, so that none overshoots. Plain steps at a learned
    rate, and Newton's, made the meta-gradient explode (norms up to 27,000) once beliefs became sharp.
    """

    each_round = False

    def __init__(self, game: Game, principal: PrincipalSettings, generator: torch.Generator) -> None:
        super().__init__()
        self._noise = game.response_noise
        self._steps, self._rate = principal.inner_steps, principal.inner_lr
        size = game.rows * game.columns
        self._shape = (game.rows, game.columns)
        scale = principal.payoff_scale / PAYOFF_UNIT
        # Free directions, and some that are linear in the leader's payoffs (at zero, their gradient would be zero).
        self.free = nn.Parameter(scale * torch.eye(size))
        self.linear = nn.Parameter(
            0.3 * scale * torch.randn(principal.linear_factors, size, size, generator=generator) / math.sqrt(size)
        )
        # Where adaptation starts; as good as any to begin with.
        self.initial = nn.Parameter(torch.zeros(size + principal.linear_factors))
        self.log_prior_weight = nn.Parameter(torch.tensor(math.log(principal.prior_weight)))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(principal.sharpness)))

    def begin(self, leader: Tensor, trials: int) -> Context:
        """Before the first round with the followers of these games, leader payoffs float [B, M, C]."""
        flat = leader.flatten(1)
        linear = torch.einsum("bm,fmn->bfn", flat, self.linear)
        directions = torch.cat([self.free.expand(len(leader), -1, -1), linear], dim=1)
        directions = PAYOFF_UNIT * directions.view(*directions.shape[:2], *self._shape)
        prior = torch.einsum("f,bfmc->bmc", self.initial, directions)
        return Context(prior, directions, leader.new_zeros(len(leader), trials, len(self.initial)))

    def belief(self, state: Context) -> Tensor:
        """float [B, E, M, C]."""
        return state.prior.unsqueeze(1) + torch.einsum("bef,bfmc->bemc", state.context, state.directions)

    def observe(self, state: Context, commitment: Tensor, outcome: Outcome) -> Context:
        """Remembers a round; learns nothing yet."""
        return replace(
            state,
            commitments=(*state.commitments, commitment),
            responses=(*state.responses, outcome.seen_response),
        )

    def adapt(self, state: Context) -> Context:
        """Takes the inner steps, on all that was seen."""
        seen = Support.of(state, self._noise)
        context, prior_weight = state.context, self.log_prior_weight.exp()
        step = self._rate * torch.linalg.inv(seen.curvature(prior_weight))
        for _ in range(self._steps):
            context = context - (step @ seen.gradient(context, prior_weight).unsqueeze(-1)).squeeze(-1)
        return replace(state, context=context)


@dataclass(frozen=True)
class Support:
    """The rounds seen so far, and how well a context explains them.

    Attributes:
        prior: Belief at context zero, float [B, 1, M * C].
        directions: float [B, F, M * C].
        commitments: float [B, E, N, M].
        seen: One-hot responses, float [B, E, N, C].
        response_noise: The channel's p.
    """

    prior: Tensor
    directions: Tensor
    commitments: Tensor
    seen: Tensor
    response_noise: float

    @classmethod
    def of(cls, state: Context, response_noise: float) -> Support:
        """What a principal in this state has seen."""
        commitments = torch.stack(state.commitments, dim=2)
        seen = nn.functional.one_hot(torch.stack(state.responses, dim=2), state.prior.shape[-1])
        prior, directions = state.prior.flatten(1).unsqueeze(1), state.directions.flatten(2)
        return cls(prior, directions, commitments, seen.to(commitments.dtype), response_noise)

    def logits(self, context: Tensor) -> Tensor:
        """Of the responses, float [B, E, N, C], for contexts [B, E, F]."""
        rows, columns = self.commitments.shape[-1], self.seen.shape[-1]
        belief = self.prior + context @ self.directions
        return self.commitments @ belief.view(*context.shape[:2], rows, columns)

    def loss(self, context: Tensor, prior_weight: Tensor) -> Tensor:
        """What adaptation descends, float [B, E]: nats over all rounds, and the pull to the prior."""
        log_p = seen_log_p(self.logits(context).log_softmax(-1), self.response_noise)
        return -(log_p * self.seen).sum((-2, -1)) + prior_weight * context.square().sum(-1) / 2

    def gradient(self, context: Tensor, prior_weight: Tensor) -> Tensor:
        """Of the loss, float [B, E, F]; in closed form, so that the meta-gradient needs no second backward pass."""
        p = self.logits(context).softmax(-1)
        # How likely it is that what was seen is the response itself: certain without noise, however unlikely that was.
        true = (1 - self.response_noise) * (p * self.seen).sum(-1, keepdim=True)
        true = true / (true + self.response_noise / p.shape[-1]) if self.response_noise else torch.ones_like(true)
        by_entry = self.commitments.transpose(-1, -2) @ (true * (p - self.seen))
        return by_entry.flatten(2) @ self.directions.transpose(1, 2) + prior_weight * context

    def curvature(self, prior_weight: Tensor) -> Tensor:
        """An upper bound on the loss's curvature at any context, float [B, E, F, F].

        Per round, x x' kron (1 - 1/C) / 2. Source: Boehning, Annals of the Institute of Statistical Mathematics 44
        (1992), Eq. 2.6; a garbled channel only lowers it, by Jensen's inequality as in EM.
        """
        columns = self.seen.shape[-1]
        rounds = self.commitments.transpose(-1, -2) @ self.commitments
        bound = (torch.eye(columns, dtype=rounds.dtype) - 1 / columns) / 2
        batch, factors, _ = self.directions.shape
        directions = self.directions.view(batch, factors, -1, columns)
        # [B, F, M, C] times the bound over columns, then times the rounds over rows.
        halfway = (directions @ bound).flatten(2)
        across = torch.einsum("bemn,bfnc->befmc", rounds, directions).flatten(3)
        curved = across @ halfway.transpose(1, 2).unsqueeze(1)
        return curved + prior_weight * torch.eye(factors, dtype=curved.dtype)


def scratch(settings: Settings, payoff_scale: float, sharpness: float) -> Adaptive:
    """An adaptive principal that has learned nothing: what meta-training starts from, with settings of its own.

    Args:
        settings: The experiment, at one observation noise.
        payoff_scale: Standard deviation of the payoffs (in nats) that it expects.
        sharpness: Inverse temperature of its exploration.
    """
    own = {"inner_steps": settings.scratch.inner_steps, "payoff_scale": payoff_scale, "sharpness": sharpness}
    principal = settings.principal.model_copy(update={"linear_factors": 0, **own})
    return Adaptive(settings.game, principal, torch.Generator()).requires_grad_(False)


@dataclass(frozen=True)
class Memory:
    """A recurrent principal's state: leader payoffs, float [B, E, M * C], and the network's state, float [B, E, H]."""

    leader: Tensor
    hidden: Tensor


class Recurrent(nn.Module):
    """A recurrent state carried over all episodes (RL squared). Source: Duan et al., arXiv 1611.02779."""

    each_round = True

    def __init__(self, game: Game, principal: PrincipalSettings, generator: torch.Generator) -> None:
        super().__init__()
        self._shape = (game.rows, game.columns)
        size, hidden = game.rows * game.columns, principal.hidden_size
        self.input = _linear(size + game.rows + game.columns + 1, 3 * hidden, generator)
        self.recurrent = nn.Parameter(_uniform((1, hidden, 3 * hidden), hidden, generator))
        self.hidden = _linear(size + hidden, hidden, generator)
        self.output = _silent(hidden, size)
        self.skip = _silent(size + hidden, size)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(principal.sharpness)))

    def begin(self, leader: Tensor, trials: int) -> Memory:
        """As in `Adaptive`."""
        flat = leader.flatten(1).unsqueeze(1).expand(-1, trials, -1)
        return Memory(flat, leader.new_zeros(len(leader), trials, self.recurrent.shape[1]))

    def belief(self, state: Memory) -> Tensor:
        """float [B, E, M, C]."""
        read = torch.cat([state.leader, state.hidden], dim=-1)
        flat: Tensor = self.output(self.hidden(read).relu()) + self.skip(read)
        return PAYOFF_UNIT * flat.view(*flat.shape[:2], *self._shape)

    def observe(self, state: Memory, commitment: Tensor, outcome: Outcome) -> Memory:
        """Takes a round in."""
        seen = nn.functional.one_hot(outcome.seen_response, self._shape[1]).to(commitment.dtype)
        read = torch.cat([state.leader, commitment, seen, outcome.seen_payoff.unsqueeze(-1)], dim=-1)
        batch, trials, width = state.hidden.shape
        # One step of a scan: the cell alone is for sampling, it works in place and has no gradient.
        rows = (1, batch * trials)
        hidden = gru_scan(self.input(read).view(1, *rows, -1), state.hidden.view(*rows, -1), self.recurrent)
        return replace(state, hidden=hidden.view(batch, trials, width))

    def adapt(self, state: Memory) -> Memory:
        """Nothing more to do: the state has it all."""
        return state


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan_in)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Weights uniform by fan-in, bias zero: torch's own initialisation draws from the global generator."""
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(_uniform((outputs, inputs), inputs, generator))
        layer.bias.zero_()
    return layer


def _silent(inputs: int, outputs: int) -> nn.Linear:
    """Weights and bias zero."""
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    return layer
