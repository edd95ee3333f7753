"""Imagination: agents that may be the one that was met, in the game as a model of learners has it.

From the support a learner model knows roughly who the agent is (`models/learner_model.py`). Agents drawn from what it
then holds probable can be played with as often as wanted: to rehearse the policy (`rehearsal.py`), and to choose
between it and simple rules (`planning.py`). Nothing hidden is looked at.

Shapes: B tasks, S imagined agents of each, L latents.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, int64, zeros

from mermaide_ray.agents import generic_learner
from mermaide_ray.agents.distribution import Tasks
from mermaide_ray.environment import Changes, Environment
from mermaide_ray.models.learner_model import LearnerModel
from mermaide_ray.models.method import learner_model_of
from mermaide_ray.models.posterior import Luck
from mermaide_ray.noise import Key, generator
from mermaide_ray.trajectory import History

NUM_IMAGINED = 16
"""S."""


@dataclass(frozen=True)
class Imagination:
    """What can be imagined of B tasks.

    Attributes:
        game: The game as a learner model has it: no noise of rewards, which it takes for that of choices; nothing
            changes. Label 0 is the target.
        learner_model: The model of its agents.
        support: Support episodes with each task, [B, T, K].
        latents: The most probable ones, float [B, L].
        ids: Of the tasks, by which luck is dealt.
    """

    game: Environment
    learner_model: LearnerModel
    support: History
    latents: Tensor
    ids: tuple[int, ...]

    @classmethod
    def of(
        cls, environment: Environment, support: History, ids: tuple[int, ...], latents: Tensor | None = None
    ) -> Imagination:
        """From support episodes in a game; infers the latents if they are not known."""
        learner_model = learner_model_of(environment)
        game = environment.model_copy(update={"reward_noise": 0.0, "changes": Changes()})
        if latents is None:
            latents = learner_model.infer(support.observations, support.labels)
        return cls(game, learner_model, support, latents, ids)

    @property
    def base(self) -> Tensor:
        """The most probable base means, by label, float [B, A]."""
        return self.latents[:, : self.learner_model.num_arms]

    def agents(self, key: Key) -> Tasks:
        """S agents that each task may be, [B * S], task by task; the target is arm 0, so that labels are arms.

        Args:
            key: Of the draws.
        """
        # Each task has its own: luck that all share would move the scores of all tasks at once, unseen by any interval.
        rngs = [generator(*key.within("posterior"), task) for task in self.ids]
        luck = Luck.dealt(rngs, NUM_IMAGINED, self.learner_model.size)
        support = self.support
        sampled = self.learner_model.sample(support.observations, support.labels, self.latents, luck)
        base, hyperparameters = self.learner_model.agents(sampled)
        count = len(self.ids) * NUM_IMAGINED
        return Tasks(
            ids=tuple(task * NUM_IMAGINED + sample for task in self.ids for sample in range(NUM_IMAGINED)),
            families=(generic_learner.FAMILY,),
            family=zeros(count, dtype=int64),
            params={name: value.flatten() for name, value in hyperparameters.items()},
            base=base.flatten(0, 1),
            target=zeros(count, dtype=int64),
            base_range=(0.0, 1.0),
            moving=None,
        )
