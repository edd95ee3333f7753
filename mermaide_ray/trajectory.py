"""What a batch of episodes is, and what the principal sees of it.

Shape legend, everywhere: B tasks, E episodes, T pulls, A arms, I interventions, D observation, H hidden; axes in that
order; N = B * E. Of episodes only arms and interventions are stored and shipped (2-4 bytes a pull), and what the
principal saw of a pull if that is a matter of luck: observations, rewards and costs follow from them and are rebuilt
where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mermaide_ray.environment import Environment
from mermaide_ray.points import Space, squared_distance


@dataclass(frozen=True)
class Trajectories:
    """Episodes of several tasks.

    Attributes:
        arms: uint8, int16 or int32 [B, E, T], the agent's pulls.
        interventions: uint8 or int16 [B, E, T], those that the principal made, however it names them.
        target: int64 [B], the target arm of each task, where it moves the first.
        shown: As arms, what the principal saw of each pull, however late (`View.symbol`); None: the arm itself.
        moving: uint8 or int16 [B, T], the target at each pull; None: it never moves.
    """

    arms: Tensor
    interventions: Tensor
    target: Tensor
    shown: Tensor | None = None
    moving: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The target at each pull, int64 [B, 1, T], or [B, 1, 1] where it never moves."""
        return self.target[:, None, None] if self.moving is None else self.moving.long().unsqueeze(1)

    def episodes(self, wanted: slice) -> Trajectories:
        """The same tasks, some of their episodes."""
        shown = None if self.shown is None else self.shown[:, wanted]
        return Trajectories(self.arms[:, wanted], self.interventions[:, wanted], self.target, shown, self.moving)

    def tasks(self, wanted: slice) -> Trajectories:
        """Some of the tasks."""
        shown = None if self.shown is None else self.shown[wanted]
        moving = None if self.moving is None else self.moving[wanted]
        return Trajectories(self.arms[wanted], self.interventions[wanted], self.target[wanted], shown, moving)

    def columns(self, name: str) -> dict[str, Tensor]:
        """How they are shipped: `NAME_arms`, `NAME_interventions`, `NAME_shown`; of the tasks `target` and `moving`."""
        columns = {
            f"{name}_arms": self.arms,
            f"{name}_interventions": self.interventions,
            f"{name}_shown": self.shown,
            "target": self.target,
            "moving": self.moving,
        }
        return {key: column for key, column in columns.items() if column is not None}

    @classmethod
    def of_columns(cls, columns: Mapping[str, Tensor], name: str) -> Trajectories:
        """Those that were shipped by this name (inverse of `columns`)."""
        return cls(
            arms=columns[f"{name}_arms"],
            interventions=columns[f"{name}_interventions"],
            target=columns["target"],
            shown=columns.get(f"{name}_shown"),
            moving=columns.get("moving"),
        )


def compact_dtype(count: int) -> torch.dtype:
    """The smallest integer type that holds 0 … count - 1."""
    return torch.uint8 if count <= 256 else torch.int16 if count <= 2**15 else torch.int32


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
        self.num_arms = environment.num_arms
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

    def told(self, target: Tensor, first: Tensor) -> Tensor:
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
        self, last_arm: Tensor, last_intervention: Tensor, target: Tensor, step: Tensor, news: Tensor | None = None
    ) -> Tensor:
        """Observation vectors, float [..., D], from int64 tensors of one shape [...].

        Args:
            last_arm: Last symbol seen, as a label, or -1 before the first.
            last_intervention: Previous action, as the principal names it, or -1 before the first.
            target: Target arm, as far as the principal knows.
            step: t, pulls so far in the episode.
            news: float [..., X], where the target moves.
        """
        parts = [_one_hot(last_arm, self.num_symbols), _one_hot(last_intervention, self.num_interventions)]
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
        last_arm = self.symbol_label(_shifted(symbols, self.sight.delay + 1), frame)
        last_action = self.action(_shifted(interventions), frame)
        targets = trajectories.targets.transpose(1, 2).expand_as(arms)
        news = self.news(targets, torch.cat([targets[:, :1], targets[:, :-1]], dim=1), _shifted(arms))
        steps = torch.arange(arms.shape[1], device=arms.device)[:, None].expand_as(arms)
        observations = self.observation(last_arm, last_action, frame.expand_as(arms), steps, news)
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
        self.num_arms = self._points.size
        self._falloff = 0.5 / environment.target_width**2

    @property
    def observation_size(self) -> int:
        """D."""
        return 2 * self._points.dimensions + 1 + self.num_interventions + 1

    def label(self, arm: Tensor, target: Tensor) -> Tensor:
        """See base: no other name, whatever the target."""
        return arm

    def observation(
        self, last_arm: Tensor, last_intervention: Tensor, target: Tensor, step: Tensor, news: Tensor | None = None
    ) -> Tensor:
        """See base; there is never news."""
        last, wanted = self._points.point(last_arm.clamp(min=0)), self._points.point(target)
        nearness = (-self._falloff * squared_distance(last, wanted)).exp().unsqueeze(-1)
        pulled = ((last_arm >= 0) & (last_arm < self.num_arms)).unsqueeze(-1)
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


@dataclass(frozen=True)
class History:
    """A batch of episodes through the principal's eyes, with time before episodes, as recurrent networks read them.

    Attributes:
        observations: float [B, T, E, D], seen before each action.
        labels: int64 [B, T, E], the arm then pulled, as the principal sees and names it (by the end of the episode); in
            the continuous game float [B, T, E, d], the point then chosen.
        actions: int64 [B, T, E], the intervention chosen, as the principal names it.
        seen: bool [B, T, E], where there is a label; None: everywhere.
        marks: float [B, T, E, M, A], what networks with a memory of each arm keep of them. It depends on no weight: who
            replays the episodes again and again makes it once.
    """

    observations: Tensor
    labels: Tensor
    actions: Tensor
    seen: Tensor | None = None
    marks: Tensor | None = None

    def to(self, device: torch.device | str) -> History:
        """The same on another device."""
        return self._mapped(lambda x: x.to(device))

    def tasks(self, wanted: slice | Tensor) -> History:
        """Of some of the tasks."""
        return self._mapped(lambda x: x[wanted])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> History:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Experience:
    """Episodes as the learner needs them.

    Attributes:
        history: What the principal saw and did, [B, T, E].
        rewards: Principal's rewards, float [B, T, E].
        latents: Of support episodes, what the learner model infers of each agent, float [B, L]; None without one.
    """

    history: History
    rewards: Tensor
    latents: Tensor | None = None

    def to(self, device: torch.device | str) -> Experience:
        """The same on another device."""
        latents = None if self.latents is None else self.latents.to(device)
        return Experience(self.history.to(device), self.rewards.to(device), latents)

    def tasks(self, wanted: slice | Tensor) -> Experience:
        """Of some of the tasks."""
        latents = None if self.latents is None else self.latents[wanted]
        return Experience(self.history.tasks(wanted), self.rewards[wanted], latents)


def _time_first(values: Tensor) -> Tensor:
    """Small integers [B, E, T] as int64 [B, T, E]."""
    return values.transpose(1, 2).long().contiguous()


def _shifted(values: Tensor, by: int = 1) -> Tensor:
    """The value `by` steps before along time (axis 1), -1 before the first."""
    return torch.cat([torch.full_like(values[:, :by], -1), values[:, :-by]], dim=1)


def _one_hot(index: Tensor, size: int) -> Tensor:
    """One-hot float [..., size]; a negative index gives zeros."""
    return (index.unsqueeze(-1) == torch.arange(size, device=index.device)).float()
