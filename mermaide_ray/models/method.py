"""What is trained and how, as all that need it know it: runner, learner, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mermaide_ray.environment import Environment
from mermaide_ray.experiment import Experiment
from mermaide_ray.method_settings import MetaLearning, Training, WorldModel
from mermaide_ray.models.architecture import Architecture, Weights
from mermaide_ray.models.categorical import ArmHead
from mermaide_ray.models.learner_model import LearnerModel
from mermaide_ray.models.mixture import MixtureHead
from mermaide_ray.models.per_arm import PerArm
from mermaide_ray.view import view_of


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
        environment, world_model, training = experiment.environment, experiment.world_model, experiment.training
        view = view_of(environment)
        # The length over which rewards add up: the horizon, or the discount's.
        scale = view.horizon if training.gamma == 1 else min(view.horizon, 1 / (1 - training.gamma))
        architecture = Architecture(
            observation_size=view.observation_size,
            num_interventions=view.num_interventions,
            hidden_size=world_model.hidden_size,
            policy_hidden=world_model.policy_hidden,
            world_model=world_model.enabled,
            policy_gradient=world_model.policy_gradient,
            value_scale=float(scale),
            head=_head(environment, world_model.components),
            context_size=experiment.meta_learning.context_size if experiment.meta_learning.adapt == "context" else 0,
            per_arm=_per_arm(environment, world_model.encoder_size) if world_model.arms == "equivariant" else None,
            learner_model=learner_model_of(environment) if world_model.kind == "learner" else None,
        )
        return cls(architecture, experiment.meta_learning, training, world_model)

    def at(self, environment: Environment) -> Method:
        """The same method in another game, which `experiment.check_game` must have let pass."""
        view, per_arm = view_of(environment), self.architecture.per_arm
        architecture = replace(
            self.architecture,
            observation_size=view.observation_size,
            num_interventions=view.num_interventions,
            head=_head(environment, self.world_model.components),
            per_arm=per_arm and _per_arm(environment, per_arm.encoder_size),
            learner_model=self.architecture.learner_model and learner_model_of(environment),
        )
        return replace(self, architecture=architecture)

    def adaptable(self) -> tuple[str, ...]:
        """Names of the weights that the inner loop changes."""
        return self.architecture.adaptable(self.meta.adapt) if self.meta.inner_steps else ()

    @property
    def adapts(self) -> bool:
        """Whether support episodes change any weight."""
        return bool(self.adaptable()) or self.architecture.learner_model is not None


def _per_arm(environment: Environment, encoder_size: int) -> PerArm:
    return PerArm(
        num_arms=environment.num_arms,
        num_symbols=environment.num_symbols,
        num_interventions=environment.num_interventions,
        relative=environment.arm_labels == "relative",
        names_arms=environment.intervention == "arm",
        encoder_size=encoder_size,
    )


def learner_model_of(environment: Environment) -> LearnerModel:
    """The parametric model of the agents of a game."""
    return LearnerModel(environment.num_arms, environment.horizon, environment.incentives)


def _head(environment: Environment, components: int) -> ArmHead | MixtureHead:
    if environment.space is None:
        return ArmHead(environment.num_arms)
    return MixtureHead(components, environment.dimensions, environment.target_width)


RATE = "log_inner_lr_"
"""Prefix of the parameters that hold the logarithm of a weight's inner learning rate."""


def split_parameters(method: Method, parameters: Mapping[str, Tensor]) -> tuple[Weights, dict[str, Tensor]]:
    """A principal's parameters as unadapted weights (without task axis) and inner learning rates, 0-dim, by name.

    Rates are kept as logarithms, so that learning can't make them negative. One that is not learned is that of the
    settings, which a population changes under way; 0 stays exactly 0.
    """
    weights = {name: value for name, value in parameters.items() if not name.startswith(RATE)}
    if method.meta.learn_inner_lr:
        return weights, {name: parameters[RATE + name].exp() for name in method.adaptable()}
    rate = log_rate(method.meta.inner_lr).exp() if method.meta.inner_lr else torch.zeros(())
    return weights, dict.fromkeys(method.adaptable(), rate)


def log_rate(inner_lr: float) -> Tensor:
    """An inner learning rate as it is kept, 0-dim."""
    return torch.tensor(max(inner_lr, 1e-12)).log()
