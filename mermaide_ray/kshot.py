"""Meeting an agent: K support episodes, adaptation, query episodes. Used by the runner and by the evaluation alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mermaide_ray.agent_settings import Split
from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.environment import Environment
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment
from mermaide_ray.imagination import Imagination
from mermaide_ray.learners.adaptation import Adaptation, adapt
from mermaide_ray.lockstep import Principal, deal_for, play
from mermaide_ray.models.architecture import LATENTS, Weights
from mermaide_ray.models.method import Method
from mermaide_ray.models.principal import Outputs, shared
from mermaide_ray.noise import Dice, Key
from mermaide_ray.planning import Choice, plan
from mermaide_ray.player import NetworkPrincipal
from mermaide_ray.rehearsal import rehearse
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import view_of

# Whose draws are whose, within the key of a meeting.
SUPPORT, REHEARSAL, PLANNING, QUERY = "support", "rehearsal", "planning", "query"


def evaluation_key(experiment: Experiment, split: Split) -> Key:
    """Of the draws with which held-out agents are met: the same for every method and training seed."""
    return Key(experiment.agents.seed, split, "evaluation", 0)


@dataclass(frozen=True)
class Prepared:
    """What a principal goes into the query with.

    Attributes:
        weights: Of its networks, [1, …] for all tasks alike or [B, …].
        state: Core state at the start, [B, 1, H]; None: afresh.
        choice: Between policy and rules, if there was planning.
    """

    weights: Weights
    state: Tensor | None = None
    choice: Choice | None = None


@dataclass(frozen=True)
class Meeting:
    """What came of meeting some agents.

    Attributes:
        support: Trajectories [B, K, T], or None for K = 0.
        query: Trajectories [B, E, T].
        adaptation: The inner loop's outcome, or None for K = 0.
        prepared: What the query was played with.
    """

    support: Trajectories | None
    query: Trajectories
    adaptation: Adaptation | None
    prepared: Prepared


@dataclass(frozen=True)
class KShot:
    """The K-shot protocol of one method in one game: all that does not change from meeting to meeting.

    Attributes:
        environment: The game.
        method: The method.
        rehearsals: Planning between support and query, with so many rounds of rehearsal before rules are tried; None:
            there is none (`Evaluation.planned_rehearsals`).
    """

    environment: Environment
    method: Method
    rehearsals: int | None = None

    def meet(
        self,
        tasks: Tasks,
        weights: Weights,
        inner_rates: Mapping[str, Tensor],
        support_episodes: int,
        query_episodes: int,
        key: Key,
    ) -> Meeting:
        """Plays the support episodes, adapts (and plans), plays the query episodes with what came of it.

        Args:
            tasks: B tasks; fastest with those of a family side by side.
            weights: Unadapted, without task axis.
            inner_rates: Inner learning rate by weight name.
            support_episodes: K; 0 plays the query with the unadapted weights.
            query_episodes: E.
            key: Of all draws; support and query have their own within.
        """
        one = {name: value.detach().unsqueeze(0) for name, value in weights.items()}
        support = adaptation = None
        prepared = Prepared(one)
        if support_episodes:
            dice = deal_for(self.environment, key.within(SUPPORT), tasks, support_episodes)
            with torch.no_grad():
                support = self._play_support(tasks, support_episodes, dice, one)
            adaptation = self.adapt(support, weights, inner_rates)
            prepared = self.prepare(tasks.ids, support, one, adaptation, key)
        with torch.no_grad():
            dice = deal_for(self.environment, key.within(QUERY), tasks, query_episodes)
            principal = self.player(prepared, len(tasks), query_episodes)
            query = play(self.environment, tasks, query_episodes, dice, principal)
        return Meeting(support, query, adaptation, prepared)

    def prepare(
        self, ids: tuple[int, ...], support: Trajectories, weights: Weights, adaptation: Adaptation, key: Key
    ) -> Prepared:
        """What to play in the query with tasks of these ids, by what the support told: a policy, or a rule.

        Whatever the method, it may plan: agents are imagined by the parametric model of learners, though no network
        need know it.

        Args:
            ids: Of the tasks, by which agents are imagined.
            support: Episodes [B, K, T].
            weights: Unadapted, [1, …].
            adaptation: To the support.
            key: As for `meet`.
        """
        environment, adapted, state = self.environment, adaptation.weights, adaptation.state
        if self.rehearsals is None:
            return Prepared(adapted if self.method.adapts else weights, state)
        with torch.no_grad():
            history = experience_of(environment, support).history
            imagination = Imagination.of(environment, history, ids, adapted.get(LATENTS))
            if self.rehearsals:
                adapted = rehearse(imagination, self.method, adaptation, self.rehearsals, key.within(REHEARSAL))
            policy = NetworkPrincipal(self.method, view_of(environment), adapted, state)
            choice = plan(imagination, policy, key.within(PLANNING))
        return Prepared(adapted if self.rehearsals or self.method.adapts else weights, state, choice)

    def player(self, prepared: Prepared, tasks: int, episodes: int) -> Principal:
        """Who plays `episodes` query episodes with each of so many tasks, step by step."""
        state = prepared.state
        if state is not None and prepared.weights["core_bias"].shape[0] == 1:
            # One set of weights means one "task" of N episodes.
            state = state.expand(-1, episodes, -1).reshape(1, tasks * episodes, -1)
        policy = NetworkPrincipal(self.method, view_of(self.environment), prepared.weights, state)
        return policy if prepared.choice is None else prepared.choice.principal(self.environment, policy, episodes)

    def adapt(self, support: Trajectories, weights: Weights, inner_rates: Mapping[str, Tensor]) -> Adaptation:
        """The inner loop on given support episodes; the outcome carries no graph, and none of its memory."""
        experience, model = experience_of(self.environment, support), self.method.architecture.learner_model
        if model is not None:
            history = experience.history
            experience = replace(experience, latents=model.infer(history.observations, history.labels))
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

    def _play_support(self, tasks: Tasks, episodes: int, dice: Dice, weights: Weights) -> Trajectories:
        """Side by side; one after the other where the recurrent state is carried over."""
        if not self.method.meta.carry_state:
            return play(self.environment, tasks, episodes, dice, self.player(Prepared(weights), len(tasks), episodes))
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
