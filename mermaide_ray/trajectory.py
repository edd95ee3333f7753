"""What a batch of episodes is, and what the principal sees of it.

Shape legend, everywhere: B tasks, E episodes, T pulls, A arms, I interventions, D observation, H hidden; axes in that
order; N = B * E. Of episodes only arms and interventions are stored and shipped (2-4 bytes a pull), and what the
principal saw of a pull if that is a matter of luck: observations, rewards and costs follow from them and are rebuilt
where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


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

    @staticmethod
    def together(parts: Sequence[Trajectories]) -> Trajectories:
        """The episodes of all their tasks."""
        columns = [part.columns("all") for part in parts]
        joined = {name: torch.cat([part[name] for part in columns]) for name in columns[0]}
        return Trajectories.of_columns(joined, "all")

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
