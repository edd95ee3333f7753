"""The principal's networks: a recurrent model of the agent, and the policy and the value that read it.

Pure functions of a dict of weights, each with a leading task axis, so that one code serves unadapted weights (shared by
all tasks: expanded) and adapted ones (one set per task). Shapes: B tasks, E episodes, T pulls, A arms, I interventions,
D observation, H hidden, P policy's hidden layer, Z encoding of an arm.

Two kinds of networks. Flat ones read arms by name (one-hot) and have an output for each. Equivariant ones read what
`per_arm.py` remembers of each arm, through one encoder; their core reads pools over the encodings, and what they say of
an arm is the product of its encoding with a vector that the core sets. Flat networks may also predict through
`learner_model.py`: the core then says how its latents are to be corrected, and the policy reads what the model makes of
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mermaide_ray.models.categorical import ArmHead
from mermaide_ray.models.gru import gru_cell, gru_scan
from mermaide_ray.models.learner_model import NUM_FEATURES, LearnerModel
from mermaide_ray.models.mixture import MixtureHead
from mermaide_ray.models.per_arm import NUM_POOLS, PerArm

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
        learner: The parametric model through which the world model predicts; None: it predicts the arm outright.
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
    learner: LearnerModel | None = None

    @property
    def memory(self) -> PerArm | LearnerModel | None:
        """What keeps running numbers of each arm beside the core."""
        return self.per_arm or self.learner

    @property
    def prediction_size(self) -> int:
        """What flat networks predict: what the head reads, or corrections of latents."""
        return self.learner.size if self.learner else self.head.size

    @property
    def feature_size(self) -> int:
        """Inputs of the value, and (without a learner model) of the policy: the core's state and the predicted arm.

        Equivariant: the core's state, the target's encoding and its predicted probability.
        """
        if self.learner:
            return NUM_FEATURES + self.hidden_size
        if self.per_arm:
            return self.hidden_size + self.per_arm.encoder_size + int(self.world_model)
        return self.hidden_size + (self.prediction_size if self.world_model else 0)

    @property
    def policy_inputs(self) -> int:
        """Inputs of the policy, the first of `feature_size`.

        With a learner model it reads nothing else: what it learns then holds for agents whom the core never met.
        """
        return NUM_FEATURES if self.learner else self.feature_size

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
        if self.learner:
            shapes[LATENTS] = (self.learner.size,)
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
            if name == "policy_output_weight" or (name == "world_model_weight" and self.learner):
                bound *= 0.1
            weights[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
        if self.world_model and self.memory is None:
            weights["world_model_bias"] = self.head.initial_bias()
        if self.learner:
            weights[LATENTS] = self.learner.prior()
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


@dataclass(frozen=True)
class Outputs:
    """What the networks say at each step.

    Attributes:
        prediction: float [B, T, E, size], what the agent does next, as raw outputs that `Architecture.head` reads; None
            without a world model.
        policy_logits: float [B, T, E, I].
        values: float [B, T, E], predicted return to come, in units of the principal's reward.
        state: float [B, E, H], the core's state after the last step.
    """

    prediction: Tensor | None
    policy_logits: Tensor
    values: Tensor
    state: Tensor


def shared(weights: Weights, num_tasks: int) -> Weights:
    """Weights without task axis, given one by expansion (no copy)."""
    return {name: value.expand(num_tasks, *value.shape) for name, value in weights.items()}


def conditioned(weights: Weights) -> Weights:
    """The same networks with the context (if there is one) put into the biases that it shifts.

    Source: CAVIA (Zintgraf et al., arXiv 1810.03642), section 3; a context as further input is a shift of the bias.
    """
    if "context" not in weights:
        return weights
    context = weights["context"].unsqueeze(1)

    def shifted(bias: str, by: str) -> Tensor:
        return torch.baddbmm(weights[bias].unsqueeze(1), context, weights[by]).squeeze(1)

    return weights | {
        "core_bias": shifted("core_bias", "context_to_core"),
        "policy_hidden_bias": shifted("policy_hidden_bias", "context_to_policy"),
    }


def project(weights: Weights, inputs: Tensor) -> Tensor:
    """The core's input projection, [B, …, inputs] -> [B, …, 3H]."""
    return linear(inputs, weights["core_input"], weights["core_bias"])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [B, …, n] times weight [B, n, m] plus bias [B, m]."""
    return torch.baddbmm(bias.unsqueeze(1), x.flatten(1, -2), weight).view(*x.shape[:-1], weight.shape[-1])


@dataclass(frozen=True)
class Arms:
    """The arms at some steps, to equivariant networks.

    Attributes:
        encoded: float [B, …, A, Z].
        is_target: float [B, …, A], one-hot.
        target: float [B, …, Z], the target's encoding.
    """

    encoded: Tensor
    is_target: Tensor
    target: Tensor

    def scores(self, query: Tensor) -> Tensor:
        """The product of each arm's encoding with a vector [B, …, Z] -> [B, …, A]."""
        return torch.matmul(self.encoded, query.unsqueeze(-1)).squeeze(-1)

    def detach(self) -> Arms:
        """The same, without the graph."""
        return Arms(self.encoded.detach(), self.is_target, self.target.detach())


def perceive(
    architecture: Architecture, weights: Weights, observations: Tensor, marks: Tensor | None
) -> tuple[Tensor, Arms | None]:
    """What the core reads.

    Args:
        architecture: Sizes and wiring.
        weights: With task axis.
        observations: float [B, …, D].
        marks: Of equivariant networks, at these steps, float [B, …, M, A].

    Returns:
        The core's input, and the arms (None to flat networks, which read the observation as it is).
    """
    if architecture.per_arm is None or marks is None:
        return observations, None
    described = architecture.per_arm.describe(marks, observations)
    encoded = linear(described.features, weights["encoder_weight"], weights["encoder_bias"]).relu_()
    pooled = torch.matmul(described.pools, encoded)
    arms = Arms(encoded, described.pools[..., NUM_POOLS - 1, :], pooled[..., NUM_POOLS - 1, :])
    return torch.cat([pooled.flatten(-2), described.rest], dim=-1), arms


def features(
    architecture: Architecture, weights: Weights, hidden: Tensor, arms: Arms | None, marks: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """The predicted arm's logits [B, …, A] (or None), and what policy and value read [B, …, F].

    Args:
        architecture: Sizes and wiring.
        weights: With task axis.
        hidden: The core's state, float [B, …, H].
        arms: See `perceive`.
        marks: What `Architecture.memory` keeps of each arm, float [B, …, M, A].
    """
    read = hidden if arms is None else torch.cat([hidden, arms.target], dim=-1)
    if not architecture.world_model:
        return None, read
    logits = linear(hidden, weights["world_model_weight"], weights["world_model_bias"])
    if architecture.learner is not None:
        assert marks is not None
        latents = logits + weights[LATENTS].view(-1, *[1] * (hidden.dim() - 2), logits.shape[-1])
        logits, described = architecture.learner.describe(latents, marks)
        return logits, torch.cat([described, read], dim=-1)
    if arms is not None:
        logits = arms.scores(logits)
    predicted = architecture.head.readable(logits)
    if arms is not None:
        predicted = (predicted * arms.is_target).sum(-1, keepdim=True)
    return logits, torch.cat([read, predicted], dim=-1)


def policy(architecture: Architecture, weights: Weights, read: Tensor, arms: Arms | None) -> Tensor:
    """The policy's logits, [B, …, F] -> [B, …, I]."""
    outputs = head("policy", weights, read[..., : architecture.policy_inputs])
    if arms is None or not (architecture.per_arm and architecture.per_arm.names_arms):
        return outputs
    return torch.cat([outputs[..., :1], arms.scores(outputs[..., 1:])], dim=-1)


def head(name: Literal["policy", "value"], weights: Weights, x: Tensor) -> Tensor:
    """A head of one hidden layer, [B, …, F] -> [B, …, outputs]."""
    hidden = linear(x, weights[f"{name}_hidden_weight"], weights[f"{name}_hidden_bias"]).relu()
    return linear(hidden, weights[f"{name}_output_weight"], weights[f"{name}_output_bias"])


@dataclass(frozen=True)
class Reading:
    """What encoder, core and world model make of whole episodes: all that policy and value read.

    Attributes:
        prediction: See `Outputs`.
        inputs: float [B, T, E, F], the inputs of policy and value.
        arms: To equivariant networks.
        hidden: float [B, T, E, H], the core's state after each step.
    """

    prediction: Tensor | None
    inputs: Tensor
    arms: Arms | None
    hidden: Tensor


def read(
    architecture: Architecture,
    weights: Weights,
    observations: Tensor,
    marks: Tensor | None = None,
    initial: Tensor | None = None,
) -> Reading:
    """Runs all but policy and value over whole episodes.

    Args:
        architecture: Sizes and wiring.
        weights: With task axis.
        observations: float [B, T, E, D].
        marks: What `Architecture.memory` keeps of each arm at each step, float [B, T, E, M, A], where it is known.
        initial: Core state before the first step, float [B, E, H]; zeros if not given.
    """
    batch, _, episodes, _ = observations.shape
    weights = conditioned(weights)
    if initial is None:
        initial = observations.new_zeros(batch, episodes, architecture.hidden_size)
    if architecture.memory is not None and marks is None:
        marks = architecture.memory.over(observations)
    inputs, arms = perceive(architecture, weights, observations, marks)
    hidden = gru_scan(project(weights, inputs), initial, weights["core_recurrent"])
    prediction, inputs = features(architecture, weights, hidden, arms, marks)
    if not architecture.policy_gradient:
        inputs, arms = inputs.detach(), None if arms is None else arms.detach()
    return Reading(prediction, inputs, arms, hidden)


def act(architecture: Architecture, weights: Weights, reading: Reading) -> Outputs:
    """What policy and value make of what was read."""
    weights = conditioned(weights)
    return Outputs(
        prediction=reading.prediction,
        policy_logits=policy(architecture, weights, reading.inputs, reading.arms),
        values=head("value", weights, reading.inputs).squeeze(-1) * architecture.value_scale,
        state=reading.hidden[:, -1],
    )


def replay(
    architecture: Architecture,
    weights: Weights,
    observations: Tensor,
    marks: Tensor | None = None,
    initial: Tensor | None = None,
) -> Outputs:
    """Runs the networks over whole episodes; arguments as for `read`."""
    return act(architecture, weights, read(architecture, weights, observations, marks, initial))


def step(
    architecture: Architecture,
    weights: Weights,
    projected: Tensor,
    state: Tensor,
    arms: Arms | None = None,
    marks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step, for sampling.

    Args:
        architecture: Sizes and wiring.
        weights: With task axis.
        projected: `project(…)` of what `perceive` gives, float [B, E, 3H].
        state: float [B, E, H].
        arms: Likewise, of equivariant networks.
        marks: What `Architecture.memory` keeps of each arm by now, float [B, E, M, A].

    Returns:
        Policy logits [B, E, I] and the next state [B, E, H].
    """
    state = gru_cell(projected, state, weights["core_recurrent"])
    _, read = features(architecture, weights, state, arms, marks)
    return policy(architecture, weights, read, arms), state
