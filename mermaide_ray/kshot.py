"""Meeting an agent: K support episodes, adaptation, query episodes. Used by the runner and by the evaluation alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.environment import Environment
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.learners.maml import Adaptation, Experience, adapt
from mermaide_ray.lockstep import Hidden, Seen, deal_for, play
from mermaide_ray.models.categorical import choose, log_softmax
from mermaide_ray.models.method import Method, learner_model_of
from mermaide_ray.models.principal import (
    LATENTS,
    Arms,
    Outputs,
    Weights,
    conditioned,
    perceive,
    project,
    shared,
    step,
)
from mermaide_ray.noise import Dice, Key
from mermaide_ray.planning import Choice, plan
from mermaide_ray.trajectory import Trajectories, View, view_of


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
        inputs, arms = perceive(self._architecture, self._weights, observation, self._marks)
        return project(self._weights, inputs), arms

    def _looked_up(self, seen: Seen) -> Tensor:
        """The input projection of flat networks, from tables."""
        if self._architecture.memory:
            self._observed(seen)
        projected = self._rows(self._by_arm, seen.last_arm + 1)
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


@dataclass(frozen=True)
class Meeting:
    """What came of meeting some agents.

    Attributes:
        support: Trajectories [B, K, T], or None for K = 0.
        query: Trajectories [B, E, T].
        adaptation: The inner loop's outcome, or None for K = 0.
        choice: Between policy and rules for the query, if there was planning.
    """

    support: Trajectories | None
    query: Trajectories
    adaptation: Adaptation | None
    choice: Choice | None = None


def experience_of(environment: Environment, trajectories: Trajectories) -> Experience:
    """Observations and rewards, rebuilt from arms and interventions."""
    rewards = incentives_of(environment).rewards_of(trajectories).transpose(1, 2)
    return Experience(view_of(environment).history(trajectories), rewards)


@dataclass(frozen=True)
class KShot:
    """The K-shot protocol of one method in one game: all that does not change from meeting to meeting."""

    environment: Environment
    method: Method

    def experience(self, trajectories: Trajectories) -> Experience:
        """See `experience_of`."""
        return experience_of(self.environment, trajectories)

    def meet(
        self,
        tasks: Tasks,
        weights: Weights,
        inner_rates: Mapping[str, Tensor],
        support_episodes: int,
        query_episodes: int,
        key: Key,
        planning: bool = False,
    ) -> Meeting:
        """Plays the support episodes, adapts, plays the query episodes with what came of it.

        Args:
            tasks: B tasks; fastest with those of a family side by side.
            weights: Unadapted, without task axis.
            inner_rates: Inner learning rate by weight name.
            support_episodes: K; 0 plays the query with the unadapted weights.
            query_episodes: E.
            key: (seed, split, purpose, iteration); support and query have dice of their own.
            planning: Whether to plan between support and query.
        """
        seed, split, purpose, iteration = key
        query_dice = deal_for(self.environment, (seed, split, f"{purpose}/query", iteration), tasks, query_episodes)
        one = {name: value.detach().unsqueeze(0) for name, value in weights.items()}
        if not support_episodes:
            with torch.no_grad():
                return Meeting(None, self._play(tasks, query_episodes, query_dice, one), None)
        support_dice = deal_for(
            self.environment, (seed, split, f"{purpose}/support", iteration), tasks, support_episodes
        )
        with torch.no_grad():
            support = self._play_support(tasks, support_episodes, support_dice, one)
        adaptation = self.adapt(support, weights, inner_rates)
        with torch.no_grad():
            per_task = adaptation.weights if self.method.adapts else one
            choice = self.plan(tasks.ids, support, adaptation, key) if planning else None
            query = self._play(tasks, query_episodes, query_dice, per_task, adaptation.state, choice)
        return Meeting(support, query, adaptation, choice)

    def plan(self, ids: tuple[int, ...], support: Trajectories, adaptation: Adaptation, key: Key) -> Choice:
        """What to play in the query with tasks of these ids, by what the support told (`planning.py`).

        Whatever the method: agents are imagined by the parametric model of learners, though no network need know it.
        """
        learner, (seed, split, purpose, iteration) = learner_model_of(self.environment), key
        policy = NetworkPrincipal(self.method, view_of(self.environment), adaptation.weights, adaptation.state)
        history, latents = self.experience(support).history, adaptation.weights.get(LATENTS)
        luck = (seed, split, f"{purpose}/planning", iteration)
        return plan(self.environment, learner, history, latents, policy, ids, luck)

    def adapt(self, support: Trajectories, weights: Weights, inner_rates: Mapping[str, Tensor]) -> Adaptation:
        """The inner loop on given support episodes; the outcome carries no graph, and none of its memory."""
        experience, learner = self.experience(support), self.method.architecture.learner
        if learner is not None:
            history = experience.history
            experience = replace(experience, latents=learner.infer(history.observations, history.labels))
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
            with_axis = shared(leaves, len(support.target))
            adaptation = adapt(self.method, with_axis, inner_rates, experience, create_graph=False)
        said = adaptation.outputs
        return replace(
            adaptation,
            outputs=Outputs(
                prediction=None if said.prediction is None else said.prediction.detach(),
                policy_logits=said.policy_logits.detach(),
                values=said.values.detach(),
                state=said.state.detach(),
            ),
            weights={name: value.detach() for name, value in adaptation.weights.items()},
            state=None if adaptation.state is None else adaptation.state.detach(),
        )

    def _play(
        self,
        tasks: Tasks,
        episodes: int,
        dice: Dice,
        weights: Weights,
        state: Tensor | None = None,
        choice: Choice | None = None,
    ) -> Trajectories:
        if state is not None and weights["core_bias"].shape[0] == 1:
            # One set of weights means one "task" of N episodes.
            state = state.expand(-1, episodes, -1).reshape(1, len(tasks) * episodes, -1)
        policy = NetworkPrincipal(self.method, view_of(self.environment), weights, state)
        principal = policy if choice is None else choice.principal(self.environment, policy, episodes)
        return play(self.environment, tasks, episodes, dice, principal)

    def _play_support(self, tasks: Tasks, episodes: int, dice: Dice, weights: Weights) -> Trajectories:
        """Side by side; one after the other where the recurrent state is carried over."""
        if not self.method.meta.carry_state:
            return self._play(tasks, episodes, dice, weights)
        state, played = None, []
        for episode in range(episodes):
            rows = torch.arange(episode, len(tasks) * episodes, episodes)
            principal = NetworkPrincipal(self.method, view_of(self.environment), weights, state)
            played.append(play(self.environment, tasks, 1, dice.rows(rows), principal))
            state = principal.state
        shown = [part.shown for part in played if part.shown is not None]
        return Trajectories(
            arms=torch.cat([part.arms for part in played], dim=1),
            interventions=torch.cat([part.interventions for part in played], dim=1),
            target=tasks.target,
            shown=torch.cat(shown, dim=1) if shown else None,
            moving=tasks.moving,
        )
