"""Meeting an agent: K support episodes, adaptation, query episodes. Used by the runner and by the evaluation alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.environment import Environment
from mermaide_ray.experience import experience_of
from mermaide_ray.imagination import Imagination
from mermaide_ray.learners.maml import Adaptation, adapt
from mermaide_ray.lockstep import deal_for, play
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import LATENTS, Outputs, Weights, shared
from mermaide_ray.noise import Dice, Key
from mermaide_ray.planning import Choice, plan
from mermaide_ray.player import NetworkPrincipal
from mermaide_ray.rehearsal import rehearse
from mermaide_ray.trajectory import Experience, Trajectories, view_of


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


@dataclass(frozen=True)
class KShot:
    """The K-shot protocol of one method in one game: all that does not change from meeting to meeting.

    Attributes:
        environment: The game.
        method: The method.
        rehearsals: Rounds of rehearsal where there is planning.
    """

    environment: Environment
    method: Method
    rehearsals: int = 0

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
            adapted, choice = adaptation.weights if self.method.adapts else one, None
            if planning:
                rehearsed, choice = self.plan(tasks.ids, support, adaptation, key)
                adapted = rehearsed if self.rehearsals else adapted
            query = self._play(tasks, query_episodes, query_dice, adapted, adaptation.state, choice)
        return Meeting(support, query, adaptation, choice)

    def plan(
        self, ids: tuple[int, ...], support: Trajectories, adaptation: Adaptation, key: Key
    ) -> tuple[Weights, Choice]:
        """What to play in the query with tasks of these ids, by what the support told: a rehearsed policy, or a rule.

        Whatever the method: agents are imagined by the parametric model of learners, though no network need know it.
        """
        environment, (seed, split, purpose, iteration) = self.environment, key
        history, weights = self.experience(support).history, adaptation.weights
        imagination = Imagination.of(environment, history, ids, weights.get(LATENTS))
        if self.rehearsals:
            luck = (seed, split, f"{purpose}/rehearsal", iteration)
            weights = rehearse(imagination, self.method, adaptation, self.rehearsals, luck)
        policy = NetworkPrincipal(self.method, view_of(environment), weights, adaptation.state)
        return weights, plan(imagination, policy, (seed, split, f"{purpose}/planning", iteration))

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
