"""What is trained and how, as all that need it know it: runner, learner, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mermaide_ray.experiment import Experiment, MetaLearning, Training, WorldModel
from mermaide_ray.models.principal import Architecture, Weights
from mermaide_ray.trajectory import View


@dataclass(frozen=True)
class Method:
    """What is trained and how: all that inner and outer loop need to know."""

    architecture: Architecture
    meta: MetaLearning
    training: Training
    world_model: WorldModel

    @classmethod
    def of(cls, experiment: Experiment) -> Method:
        """The method that an experiment asks for."""
        view, training = View(experiment.environment), experiment.training
        # The length over which rewards add up: the horizon, or the discount's.
        scale = view.horizon if training.gamma == 1 else min(view.horizon, 1 / (1 - training.gamma))
        architecture = Architecture(
            observation_size=view.observation_size,
            num_arms=view.num_arms,
            num_interventions=view.num_interventions,
            hidden_size=experiment.world_model.hidden_size,
            policy_hidden=experiment.world_model.policy_hidden,
            world_model=experiment.world_model.enabled,
            policy_gradient=experiment.world_model.policy_gradient,
            value_scale=float(scale),
            context_size=experiment.meta_learning.context_size if experiment.meta_learning.adapt == "context" else 0,
        )
        return cls(architecture, experiment.meta_learning, training, experiment.world_model)

    def adaptable(self) -> tuple[str, ...]:
        """Names of the weights that the inner loop changes."""
        return self.architecture.adaptable(self.meta.adapt) if self.meta.inner_steps else ()


RATE = "log_inner_lr_"
"""Prefix of the parameters that hold the logarithm of a weight's inner learning rate."""


def split_parameters(method: Method, parameters: Mapping[str, Tensor]) -> tuple[Weights, dict[str, Tensor]]:
    """A principal's parameters as unadapted weights (without task axis) and inner learning rates, 0-dim, by name.

    Rates are kept as logarithms, so that learning can't make them negative; a rate of 0 that isn't learned stays
    exactly 0.
    """
    weights = {name: value for name, value in parameters.items() if not name.startswith(RATE)}
    fixed_at_zero = method.meta.inner_lr == 0 and not method.meta.learn_inner_lr
    rates = {name: torch.zeros(()) if fixed_at_zero else parameters[RATE + name].exp() for name in method.adaptable()}
    return weights, rates
