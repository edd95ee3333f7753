"""The principal's networks: a recurrent model of the agent, and the policy and the value that read it.

Pure functions of a dict of weights, each with a leading task axis, so that one code serves unadapted weights (shared by
all tasks: expanded) and adapted ones (one set per task). Shapes: B tasks, E episodes, T pulls, A arms, I interventions,
D observation, H hidden, Z encoding of an arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mermaide_ray.models.architecture import LATENTS, Architecture, Weights
from mermaide_ray.models.gru import gru_cell, gru_scan
from mermaide_ray.models.per_arm import NUM_POOLS


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


def core_inputs(
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
        arms: See `core_inputs`.
        marks: What `Architecture.memory` keeps of each arm, float [B, …, M, A].
    """
    inputs = hidden if arms is None else torch.cat([hidden, arms.target], dim=-1)
    if not architecture.world_model:
        return None, inputs
    logits = linear(hidden, weights["world_model_weight"], weights["world_model_bias"])
    if architecture.learner_model is not None:
        assert marks is not None
        latents = logits + weights[LATENTS].view(-1, *[1] * (hidden.dim() - 2), logits.shape[-1])
        logits, described = architecture.learner_model.predict(latents, marks)
        return logits, torch.cat([described, inputs], dim=-1)
    if arms is not None:
        logits = arms.scores(logits)
    predicted = architecture.head.readable(logits)
    if arms is not None:
        predicted = (predicted * arms.is_target).sum(-1, keepdim=True)
    return logits, torch.cat([inputs, predicted], dim=-1)


def policy(architecture: Architecture, weights: Weights, inputs: Tensor, arms: Arms | None) -> Tensor:
    """The policy's logits, [B, …, F] -> [B, …, I]."""
    outputs = two_layers("policy", weights, inputs[..., : architecture.policy_inputs])
    if arms is None or not (architecture.per_arm and architecture.per_arm.names_arms):
        return outputs
    return torch.cat([outputs[..., :1], arms.scores(outputs[..., 1:])], dim=-1)


def two_layers(name: Literal["policy", "value"], weights: Weights, x: Tensor) -> Tensor:
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
    inputs, arms = core_inputs(architecture, weights, observations, marks)
    hidden = gru_scan(project(weights, inputs), initial, weights["core_recurrent"])
    prediction, inputs = features(architecture, weights, hidden, arms, marks)
    if not architecture.policy_gradient:
        inputs, arms = inputs.detach(), None if arms is None else arms.detach()
    return Reading(prediction, inputs, arms, hidden)


def policy_and_value(architecture: Architecture, weights: Weights, reading: Reading) -> Outputs:
    """What policy and value make of what was read."""
    weights = conditioned(weights)
    return Outputs(
        prediction=reading.prediction,
        policy_logits=policy(architecture, weights, reading.inputs, reading.arms),
        values=two_layers("value", weights, reading.inputs).squeeze(-1) * architecture.value_scale,
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
    return policy_and_value(architecture, weights, read(architecture, weights, observations, marks, initial))


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
        projected: `project(…)` of what `core_inputs` gives, float [B, E, 3H].
        state: float [B, E, H].
        arms: Likewise, of equivariant networks.
        marks: What `Architecture.memory` keeps of each arm by now, float [B, E, M, A].

    Returns:
        Policy logits [B, E, I] and the next state [B, E, H].
    """
    state = gru_cell(projected, state, weights["core_recurrent"])
    _, inputs = features(architecture, weights, state, arms, marks)
    return policy(architecture, weights, inputs, arms), state
