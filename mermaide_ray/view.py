"""The principal's eyes: what it sees of a pull, and how it names arms and interventions.

Shapes: as in `trajectory.py`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mermaide_ray.environment import Environment
from mermaide_ray.points import Space, squared_distance
from mermaide_ray.trajectory import History, Trajectories


class View:
    """The principal's view of the game: how arms are named, and the observation vector.

    Observation, float [D]: last symbol seen one-hot [S], last intervention one-hot [I], (absolute labels only) target
    one-hot [A], (moving targets only) news [X], t / T. Before the first pull of an episode the first two are zero.
    Nothing hidden enters it: not the agent's rewards, estimates, family or hyperparameters.

    The symbol of a pull is its arm, and S = A. With noisy sight it may be another arm, with sparse sight (S = A + 1) it
    may be A: nothing seen. With a delay of d it is seen d pulls late: until the first arrives, that input is zero.

    With relative labels an arm is named by its distance from the target, (arm - target) mod A, and so is the arm that
    an intervention of kind `arm` chooses. Base rewards are drawn alike for all arms, so this loses nothing, and it
    saves the principal from learning the same thing once per target.

    Where the target moves and that is announced, arms are named from the new target from that pull on, and the news is
    the new name of the old target, one-hot (zero at all other pulls; nothing with absolute labels, which show the
    target itself). Where it is not announced, arms are named from the first target throughout, and the news is whether
    the last pull was on the target, 0 or 1.
    """

    def __init__(self, environment: Environment) -> None:
        self.num_arms = environment.num_actions  # in the continuous game, places on the lattice
        self.num_symbols = environment.num_symbols
        self.num_interventions = environment.num_interventions
        self.sight = environment.sight
        self.horizon = environment.horizon
        self.space: Space | None = environment.space
        self.relative = environment.arm_labels == "relative"
        self._names_arms = environment.intervention == "arm"
        self.num_news = environment.num_news
        self._target_moves, self._announced = environment.changes.of_target, environment.changes.announced

    @property
    def observation_size(self) -> int:
        """D."""
        return self.num_symbols + self.num_interventions + (0 if self.relative else self.num_arms) + self.num_news + 1

    def symbol(self, arm: Tensor, luck: Tensor) -> Tensor:
        """What the principal sees of pulls: the arm, a uniform one in its place, or A for nothing.

        Args:
            arm: int64 [...].
            luck: Dice, float [..., 2] on [0, 1): what is seen, and which arm instead.
        """
        seen = (luck[..., 1] * self.num_arms).long().where(luck[..., 0] < self.sight.share * self.sight.noise, arm)
        return seen.where(luck[..., 0] < self.sight.share, self.num_arms)

    def label(self, arm: Tensor, target: Tensor) -> Tensor:
        """The principal's name of an arm, int64, broadcast over both."""
        return (arm - target) % self.num_arms if self.relative else arm

    def symbol_label(self, symbol: Tensor, target: Tensor) -> Tensor:
        """The principal's name of a symbol, int64: "nothing" (A) and "none yet" (-1) have one name each."""
        return self.label(symbol, target).where((symbol >= 0) & (symbol < self.num_arms), symbol)

    def action(self, intervention: Tensor, target: Tensor) -> Tensor:
        """The principal's name of an intervention (inverse of `intervention`)."""
        if not (self._names_arms and self.relative):
            return intervention
        return ((intervention - 1 - target) % self.num_arms + 1).where(intervention > 0, intervention)

    def intervention(self, action: Tensor, target: Tensor) -> Tensor:
        """The intervention that the principal means by `action`, both int64 in [0, I)."""
        if not (self._names_arms and self.relative):
            return action
        return ((action - 1 + target) % self.num_arms + 1).where(action > 0, action)

    def by_intervention(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """Probabilities of interventions, float [N, I], from those of actions as the principal names them."""
        every = torch.arange(self.num_interventions, device=target.device).expand_as(probabilities)
        return probabilities.gather(1, self.action(every, target.unsqueeze(1)))

    def known_target(self, target: Tensor, first: Tensor) -> Tensor:
        """The target as the principal knows it, from which it names arms: the one that holds, or the first."""
        return target if self._announced else first.expand_as(target)

    def news(self, target: Tensor, before: Tensor, last_arm: Tensor) -> Tensor | None:
        """What the principal is told of a moving target, float [..., X], from int64 tensors of one shape [...].

        Nothing, None, of one that never moves.

        Args:
            target: Target at this pull.
            before: Target at the last pull; before the first, the same.
            last_arm: The last pull's arm, -1 before the first.
        """
        if not self._target_moves:
            return None
        if not self._announced:
            return (last_arm == before).float().unsqueeze(-1)
        return _one_hot(self.label(before, target).where(target != before, -1), self.num_news)

    def observation(
        self, last_symbol: Tensor, last_intervention: Tensor, target: Tensor, step: Tensor, news: Tensor | None = None
    ) -> Tensor:
        """Observation vectors, float [..., D], from int64 tensors of one shape [...].

        Args:
            last_symbol: The last symbol seen, as a label, or -1 before the first.
            last_intervention: Previous action, as the principal names it, or -1 before the first.
            target: Target arm, as far as the principal knows.
            step: t, pulls so far in the episode.
            news: float [..., X], where the target moves.
        """
        parts = [_one_hot(last_symbol, self.num_symbols), _one_hot(last_intervention, self.num_interventions)]
        if not self.relative:
            parts.append(_one_hot(target, self.num_arms))
        if news is not None:
            parts.append(news)
        parts.append((step.float() / self.horizon).unsqueeze(-1))
        return torch.cat(parts, dim=-1)

    def labels(self, trajectories: Trajectories) -> Tensor:
        """The arms pulled, as the principal names them, int64 [B, T, E]: whatever it saw of them."""
        return self.label(_time_first(trajectories.arms), self._frame(trajectories))

    def history(self, trajectories: Trajectories) -> History:
        """What the principal saw and did, step by step."""
        arms, interventions = _time_first(trajectories.arms), _time_first(trajectories.interventions)
        symbols = arms if trajectories.shown is None else _time_first(trajectories.shown)
        # At each pull the past is named from the target known then: first shifted, then named.
        frame = self._frame(trajectories)
        last_symbol = self.symbol_label(_shifted(symbols, self.sight.delay + 1), frame)
        last_action = self.action(_shifted(interventions), frame)
        targets = trajectories.targets.transpose(1, 2).expand_as(arms)
        news = self.news(targets, torch.cat([targets[:, :1], targets[:, :-1]], dim=1), _shifted(arms))
        steps = torch.arange(arms.shape[1], device=arms.device)[:, None].expand_as(arms)
        observations = self.observation(last_symbol, last_action, frame.expand_as(arms), steps, news)
        labels, actions = self.symbol_label(symbols, frame), self.action(interventions, frame)
        if trajectories.shown is None:
            return History(observations, labels, actions)
        seen = labels < self.num_arms
        return History(observations, labels.where(seen, 0), actions, seen)

    def _frame(self, trajectories: Trajectories) -> Tensor:
        """The target from which the principal names arms, int64 [B, T, 1], or [B, 1, 1] where it is one throughout."""
        targets = trajectories.targets.transpose(1, 2)
        return targets if self._announced else trajectories.target[:, None, None]


class PointView(View):
    """The principal's view of the continuous game. An arm is named by its place on the lattice.

    Observation, float [D] in [0, 1]: last point [d], its nearness to the target, last intervention one-hot [I], target
    [d], t / T. Where there is no last point (before the first pull, or not seen), it and its nearness are zero. Noisy
    sight shows a uniform point in its place.
    """

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._points = Space(environment.dimensions)
        self._falloff = 0.5 / environment.target_width**2

    @property
    def observation_size(self) -> int:
        """D."""
        return 2 * self._points.dimensions + 1 + self.num_interventions + 1

    def label(self, arm: Tensor, target: Tensor) -> Tensor:
        """See base: no other name, whatever the target."""
        return arm

    def observation(
        self, last_symbol: Tensor, last_intervention: Tensor, target: Tensor, step: Tensor, news: Tensor | None = None
    ) -> Tensor:
        """See base; there is never news."""
        last, wanted = self._points.point(last_symbol.clamp(min=0)), self._points.point(target)
        nearness = (-self._falloff * squared_distance(last, wanted)).exp().unsqueeze(-1)
        pulled = ((last_symbol >= 0) & (last_symbol < self.num_arms)).unsqueeze(-1)
        intervention = _one_hot(last_intervention, self.num_interventions)
        time = (step.float() / self.horizon).unsqueeze(-1)
        return torch.cat([last * pulled, nearness * pulled, intervention, wanted, time], dim=-1)

    def history(self, trajectories: Trajectories) -> History:
        """See base; labels are coordinates."""
        history = super().history(trajectories)
        return replace(history, labels=self._points.point(history.labels))


def view_of(environment: Environment) -> View:
    """The principal's view of the environment's game."""
    return View(environment) if environment.space is None else PointView(environment)


def _time_first(values: Tensor) -> Tensor:
    """Small integers [B, E, T] as int64 [B, T, E]."""
    return values.transpose(1, 2).long().contiguous()


def _shifted(values: Tensor, by: int = 1) -> Tensor:
    """The value `by` steps before along time (axis 1), -1 before the first."""
    return torch.cat([torch.full_like(values[:, :by], -1), values[:, :-by]], dim=1)


def _one_hot(index: Tensor, size: int) -> Tensor:
    """One-hot float [..., size]; a negative index gives zeros."""
    return (index.unsqueeze(-1) == torch.arange(size, device=index.device)).float()
