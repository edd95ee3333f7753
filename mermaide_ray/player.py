"""The trained networks as a player of the lockstep game."""

from __future__ import annotations

import torch
from torch import Tensor

from mermaide_ray.lockstep import Hidden, Seen
from mermaide_ray.models.architecture import Weights
from mermaide_ray.models.categorical import choose, log_softmax
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import Arms, conditioned, core_inputs, project, step
from mermaide_ray.view import View


class NetworkPrincipal:
    """The trained principal as a player of the lockstep game.

    Args:
        method: The method.
        view: How it sees the game.
        weights: With task axis: [1, …] for all episodes alike, or [B, …] for one set per task.
        initial: Core state at the start of the episodes, [B, 1, H]; zeros if not given.
    """

    def __init__(self, method: Method, view: View, weights: Weights, initial: Tensor | None = None) -> None:
        weights = conditioned(weights)
        self._architecture, self._view, self._weights = method.architecture, view, weights
        self._initial = initial
        self.state = self._logits = self._marks = torch.empty(0)
        # Points, and arms that networks encode, are read from the observation vector itself.
        self._looks_up = view.space is None and self._architecture.per_arm is None
        if not self._looks_up:
            return
        symbols, interventions = view.num_symbols, view.num_interventions
        rows, bias = weights["core_input"], weights["core_bias"].unsqueeze(1)
        # Row 0 stands for "none yet": one-hot inputs are then lookups, symbol (+ 1) and intervention (+ 1).
        nothing = torch.zeros_like(rows[:, :1])
        self._by_arm = torch.cat([nothing, rows[:, :symbols]], dim=1) + bias
        self._by_action = torch.cat([nothing, rows[:, symbols : symbols + interventions]], dim=1)
        news = rows.shape[1] - 1 - view.num_news
        self._by_target = None if view.relative else rows[:, symbols + interventions : news]
        self._by_news = rows[:, news:-1] if view.num_news else None
        self._by_time = rows[:, -1:]

    def begin(self, num_episodes: int) -> None:
        """See `lockstep.Principal`."""
        batch, hidden = self._weights["core_bias"].shape[0], self._architecture.hidden_size
        self._shape = (batch, num_episodes // batch)
        self.state = self._weights["core_bias"].new_zeros(*self._shape, hidden)
        if self._initial is not None:
            self.state = self._initial.expand(*self._shape, hidden).clone()
        if self._architecture.memory:
            self._marks = self._architecture.memory.before(self.state, *self._shape)

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        """See `lockstep.Principal`; never looks at `hidden`."""
        projected, arms = (self._looked_up(seen), None) if self._looks_up else self._perceived(seen)
        logits, self.state = step(self._architecture, self._weights, projected, self.state, arms, self._marks)
        self._logits = logits.flatten(0, 1)
        return choose(self._logits, seen.uniform)

    def _observed(self, seen: Seen) -> Tensor:
        """The observation vector, float [B, E, D]; what is remembered of the arms goes one step on."""
        observation = seen.observation(self._view).view(*self._shape, -1)
        if self._architecture.memory:
            self._marks = self._architecture.memory.advance(self._marks, observation)
        return observation

    def _perceived(self, seen: Seen) -> tuple[Tensor, Arms | None]:
        """What networks read of the observation vector."""
        observation = self._observed(seen)
        inputs, arms = core_inputs(self._architecture, self._weights, observation, self._marks)
        return project(self._weights, inputs), arms

    def _looked_up(self, seen: Seen) -> Tensor:
        """The input projection of flat networks, from tables."""
        if self._architecture.memory:
            self._observed(seen)
        projected = self._rows(self._by_arm, seen.last_symbol + 1)
        projected += self._rows(self._by_action, seen.last_action + 1)
        if self._by_target is not None:
            projected += self._rows(self._by_target, seen.target)
        if self._by_news is not None:
            assert seen.news is not None
            projected += seen.news.view(*self._shape, -1) @ self._by_news
        projected += self._by_time * (seen.step / self._view.horizon)
        return projected

    def probabilities(self) -> Tensor:
        """See `lockstep.Announcing`."""
        return log_softmax(self._logits).exp()

    def _rows(self, table: Tensor, index: Tensor) -> Tensor:
        """Rows of a table [B, R, 3H] by index [N] -> [B, E, 3H]."""
        batch, rows, width = table.shape
        if batch > 1:
            index = index.view(self._shape) + torch.arange(0, batch * rows, rows).unsqueeze(1)
        return table.reshape(-1, width).index_select(0, index.flatten()).view(*self._shape, width)
