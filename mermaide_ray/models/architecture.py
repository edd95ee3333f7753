"""Sizes and wiring of the principal's networks, and the weights that follow from them.

Two kinds of networks. Flat ones read arms by name (one-hot) and have an output for each. Equivariant ones read what
`per_arm.py` remembers of each arm, through one encoder; their core reads pools over the encodings, and what they say of
an arm is the product of its encoding with a vector that the core sets. Flat networks may also predict through
`learner_model.py`: the core then says how its latents are to be corrected, and the policy reads what the model makes of
them.

Shapes: A arms, I interventions, D observation, H hidden, P policy's hidden layer, Z encoding of an arm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mermaide_ray.models.categorical import ArmHead
from mermaide_ray.models.learner_model import NUM_FEATURES, LearnerModel
from mermaide_ray.models.mixture import MixtureHead
from mermaide_ray.models.per_arm import PerArm

Weights = dict[str, Tensor]

ENCODER = ("encoder_weight", "encoder_bias")
CORE = ("core_input", "core_bias", "core_recurrent")
WORLD_MODEL_HEAD = ("world_model_weight", "world_model_bias")
CONTEXT = ("context",)
LATENTS = "latents"
POLICY = ("policy_hidden_weight", "policy_hidden_bias", "policy_output_weight", "policy_output_bias")
VALUE = ("value_hidden_weight", "value_hidden_bias", "value_output_weight", "value_output_bias")


@dataclass(frozen=True)
class Architecture:
    """Sizes and wiring of the networks.

    Attributes:
        observation_size: D.
        num_interventions: I.
        hidden_size: H.
        policy_hidden: P.
        world_model: Whether there is a world model: a head that predicts the agent's next arm from the core's state,
            and whose prediction the policy reads.
        policy_gradient: Whether gradients of policy and value flow into the core.
        value_scale: Size of a typical return; the value head predicts in units of it.
        head: How the world model's outputs are read: as an arm, or as a point.
        context_size: C, entries of the context vector, which shifts the biases of core and policy; 0: none.
        per_arm: How equivariant networks read the arms; None: flat ones.
        learner_model: The parametric model through which the world model predicts; None: it predicts the arm outright.
    """

    observation_size: int
    num_interventions: int
    hidden_size: int
    policy_hidden: int
    world_model: bool
    policy_gradient: bool
    value_scale: float
    head: ArmHead | MixtureHead
    context_size: int = 0
    per_arm: PerArm | None = None
    learner_model: LearnerModel | None = None

    @property
    def memory(self) -> PerArm | LearnerModel | None:
        """What keeps running numbers of each arm beside the core."""
        return self.per_arm or self.learner_model

    @property
    def prediction_size(self) -> int:
        """What flat networks predict: what the head reads, or corrections of latents."""
        return self.learner_model.size if self.learner_model else self.head.size

    @property
    def feature_size(self) -> int:
        """Inputs of the value, and (without a learner model) of the policy: the core's state and the predicted arm.

        Equivariant: the core's state, the target's encoding and its predicted probability.
        """
        if self.learner_model:
            return NUM_FEATURES + self.hidden_size
        if self.per_arm:
            return self.hidden_size + self.per_arm.encoder_size + int(self.world_model)
        return self.hidden_size + (self.prediction_size if self.world_model else 0)

    @property
    def policy_inputs(self) -> int:
        """Inputs of the policy, the first of `feature_size`.

        With a learner model it reads nothing else: what it learns then holds for agents whom the core never met.
        """
        return NUM_FEATURES if self.learner_model else self.feature_size

    @property
    def policy_outputs(self) -> int:
        """Outputs of the policy's network: a logit per intervention; equivariant, of all arms: none, and a vector."""
        if self.per_arm and self.per_arm.names_arms:
            return 1 + self.per_arm.encoder_size
        return self.num_interventions

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight, without the task axis."""
        hidden, wide = self.hidden_size, self.policy_hidden
        shapes: dict[str, tuple[int, ...]] = {}
        inputs, of_an_arm = self.observation_size, self.prediction_size
        if self.per_arm:
            inputs, of_an_arm = self.per_arm.core_size(self.observation_size), self.per_arm.encoder_size
            shapes |= {"encoder_weight": (self.per_arm.feature_size, of_an_arm), "encoder_bias": (of_an_arm,)}
        shapes |= {
            "core_input": (inputs, 3 * hidden),
            "core_bias": (3 * hidden,),
            "core_recurrent": (hidden, 3 * hidden),
        }
        if self.world_model:
            shapes |= {"world_model_weight": (hidden, of_an_arm), "world_model_bias": (of_an_arm,)}
        if self.learner_model:
            shapes[LATENTS] = (self.learner_model.size,)
        if self.context_size:
            shapes |= {
                "context": (self.context_size,),
                "context_to_core": (self.context_size, 3 * hidden),
                "context_to_policy": (self.context_size, wide),
            }
        for head, inputs, outputs in (
            ("policy", self.policy_inputs, self.policy_outputs),
            ("value", self.feature_size, 1),
        ):
            shapes |= {
                f"{head}_hidden_weight": (inputs, wide),
                f"{head}_hidden_bias": (wide,),
                f"{head}_output_weight": (wide, outputs),
                f"{head}_output_bias": (outputs,),
            }
        return shapes

    def initial_weights(self, generator: torch.Generator) -> Weights:
        """Fresh weights, float32, without the task axis: uniform by fan-in, the policy's last layer near zero."""
        weights = {}
        for name, shape in self.shapes().items():
            if name.endswith("bias") or name in CONTEXT:
                weights[name] = torch.zeros(shape)
                continue
            bound = math.sqrt((1.0 if name.startswith("core") else 3.0) / shape[0])
            if name == "core_input" and not self.per_arm:  # one-hot: three entries are active, whatever the width
                bound = math.sqrt(1.0 / self.hidden_size)
            if name == "policy_output_weight" or (name == "world_model_weight" and self.learner_model):
                bound *= 0.1
            weights[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
        if self.world_model and self.memory is None:
            weights["world_model_bias"] = self.head.initial_bias()
        if self.learner_model:
            weights[LATENTS] = self.learner_model.prior()
        return weights

    def adaptable(self, which: Literal["all", "heads", "policy", "world_model", "context"]) -> tuple[str, ...]:
        """Names of the weights that the inner loop changes. The value is a training aid and never adapts."""
        names = {
            "all": (*ENCODER, *CORE, *WORLD_MODEL_HEAD, *POLICY),
            "heads": (*WORLD_MODEL_HEAD, *POLICY),
            "policy": POLICY,
            "world_model": (*ENCODER, *CORE, *WORLD_MODEL_HEAD),
            "context": CONTEXT,
        }[which]
        absent = (*(() if self.per_arm else ENCODER), *(() if self.world_model else WORLD_MODEL_HEAD))
        return tuple(name for name in names if name not in absent)
