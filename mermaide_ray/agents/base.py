"""What an agent family is: three pure functions on a batch of agents, and the hyperparameters that a task draws.

Two more are for agents that know more than their own past: `hear` for those that know the principal's policy,
`perceive` for those that care what the principal gets.

A family file uses tensor *methods* only, so it needs no import of Torch: it runs on whatever device its state is on,
and `mermaide config` can check hyperparameter ranges without loading Torch.
Shapes: N agents (tasks times episodes, flattened), A arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from mermaide_ray.points import Space

State: TypeAlias = "dict[str, Tensor]"
Params: TypeAlias = "Mapping[str, Tensor]"

# Estimates start at PRIORITY_SCALE * priority: a random order that breaks every tie between untried arms, yet far below
# any difference of rewards. Stored, not added to anything large, so float32 keeps it exactly.
PRIORITY_SCALE = 1e-30


@dataclass(frozen=True)
class Hyperparameter:
    """One number that differs from agent to agent.

    Attributes:
        meaning: What it does, with its unit.
        low, high: The values for which the family is defined (a config's range must lie within).
    """

    meaning: str
    low: float
    high: float


class Draws(NamedTuple):
    """The random numbers of one pull, dealt before the episode.

    Attributes:
        uniform: float [N, 2] on [0, 1): by convention [:, 0] decides whether to explore, [:, 1] which arm.
        normal: float [N, A] standard normal, for families with `normals=True`; else [N, 0].
    """

    uniform: Tensor
    normal: Tensor


@dataclass(frozen=True)
class Family:
    """An agent family.

    Attributes:
        name: Registered name.
        description: One line for `mermaide agents`.
        reference: Where the algorithm comes from.
        hyperparameters: Name to meaning and bounds; each is a float [N, 1] entry of `params`.
        init: `(params, priority) -> state`; `priority` float [N, A] is a random permutation of 1..A per agent, to break
            ties between untried arms. The state holds float tensors [N, ·], such as [N, A] or [N, 1].
        act: `(state, params, step, draws) -> arm` int64 [N]; `step` float, 0-dim or [N, 1], counts pulls so far.
        learn: `(state, params, step, arm, reward) -> state` after pull `step`; `reward` float [N] is all that the agent
            perceives: base reward, noise and incentive together (but see `perceive`).
        normals: Whether `act` needs one standard normal per arm.
        hear: For a family that is informed of the principal's policy: `(state, params, offer) -> state` before each
            `act`; `offer` float [N, A] is the expected incentive of each arm at this pull, over the principal's
            probabilities. None: the agents know nothing of the policy.
        perceive: For a family that cares what the principal gets: `(params, agent_reward, principal_reward) -> reward`,
            each float [N]; `learn` then gets what it returns. None: the agent reward as it is.
        least_arms: The fewest arms for which the family is defined.
        goals: For a family whose arms are places in a world of its own: `num_arms -> arms` that pay and may be the
            target; all others have base reward 0. None: every arm, and arms are alike but for what they pay.
    """

    name: str
    description: str
    reference: str
    init: Callable[[Params, Tensor], State]
    act: Callable[[State, Params, Tensor, Draws], Tensor]
    learn: Callable[[State, Params, Tensor, Tensor, Tensor], State]
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)
    normals: bool = False
    hear: Callable[[State, Params, Tensor], State] | None = None
    perceive: Callable[[Params, Tensor, Tensor], Tensor] | None = None
    least_arms: int = 2
    goals: Callable[[int], Sequence[int]] | None = None

    def goals_among(self, num_arms: int) -> Sequence[int]:
        """The arms that pay and may be the target."""
        return range(num_arms) if self.goals is None else self.goals(num_arms)


@dataclass(frozen=True)
class PointFamily:
    """A family that chooses points of a cube: the same three functions, with the `Space` as first argument.

    On its space it is a `Family` like any other. Its arms are places on the space's lattice (`Space.point`,
    `Space.arm`), and `priority` ranks the space's candidates, [N, G].

    Attributes:
        name, description, reference, hyperparameters: As in `Family`.
        init: `(space, params, priority) -> state`; entries of the state are float tensors [N, ...].
        act: `(space, state, params, step, draws) -> arm`.
        learn: `(space, state, params, step, arm, reward) -> state`.
    """

    name: str
    description: str
    reference: str
    init: Callable[[Space, Params, Tensor], State]
    act: Callable[[Space, State, Params, Tensor, Draws], Tensor]
    learn: Callable[[Space, State, Params, Tensor, Tensor, Tensor], State]
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)

    def on(self, space: Space) -> Family:
        """The family on one space."""
        return Family(
            name=self.name,
            description=self.description,
            reference=self.reference,
            init=partial(self.init, space),
            act=partial(self.act, space),
            learn=partial(self.learn, space),
            hyperparameters=self.hyperparameters,
        )


def best_candidate(bound: Tensor, priority: Tensor) -> Tensor:
    """Index of the candidate with the largest bound, int64 [N], from [N, G]; exact ties go by priority (all > 0)."""
    return priority.where(bound == bound.amax(-1, keepdim=True), 0).argmax(-1)


def normal_step(draws: Draws, dimensions: int) -> Tensor:
    """Standard normal coordinates, float [N, d] for d <= 2, from the two uniform draws of a pull (Box, Muller 1958)."""
    radius = (-2 * (1 - draws.uniform[:, :1]).log()).sqrt()
    angle = 2 * math.pi * draws.uniform[:, 1:]
    step = radius * angle.cos()
    if dimensions == 1:
        return step
    both = step.expand(-1, 2).clone()
    both[:, 1:] = radius * angle.sin()
    return both


def sample_mean_init(params: Params, priority: Tensor) -> State:
    """State of the families that learn by sample means: `mean` and `count`, both [N, A]."""
    return {"mean": priority * PRIORITY_SCALE, "count": priority.new_zeros(priority.shape)}


def sample_mean_learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Moves the pulled arm's mean to the average of the rewards perceived from it."""
    index = arm.unsqueeze(-1)
    count = state["count"].gather(-1, index) + 1
    mean = state["mean"].gather(-1, index)
    return {
        "mean": state["mean"].scatter(-1, index, mean + (reward.unsqueeze(-1) - mean) / count),
        "count": state["count"].scatter(-1, index, count),
    }


def uniform_arm(draw: Tensor, num_arms: int) -> Tensor:
    """A uniform arm, int64 [N], from a uniform draw on [0, 1), float [N]."""
    # Never num_arms: even the largest draw, 1 - 2^-24, takes over half a unit in the last place off the product.
    return (draw * num_arms).long()


def explore_or_best(mean: Tensor, epsilon: Tensor, draws: Draws) -> Tensor:
    """With probability epsilon, float [N, 1], a uniform arm, else the arm with the best mean, [N, A]; int64 [N]."""
    explore = draws.uniform[:, 0] < epsilon.squeeze(-1)
    return uniform_arm(draws.uniform[:, 1], mean.shape[-1]).where(explore, mean.argmax(-1))


def any_best(value: Tensor, draw: Tensor) -> Tensor:
    """One of the arms with the largest value, [N, A], exact equals at random by a uniform draw, [N]; int64 [N].

    Takes several times as long as `argmax`: for families whose rewards may be equal to the last bit, noise and all.
    """
    return sampled_arm((value == value.amax(-1, keepdim=True)).float(), draw)


def softmax_arm(value: Tensor, temperature: Tensor, draw: Tensor) -> Tensor:
    """An arm, int64 [N], with probability in proportion to exp(value / temperature), [N, A] and [N, 1]; `draw` [N]."""
    # The best arm's weight is 1: nothing overflows, however low the temperature.
    return sampled_arm(((value - value.amax(-1, keepdim=True)) / temperature).exp(), draw)


def sampled_arm(probabilities: Tensor, draw: Tensor) -> Tensor:
    """An arm, int64 [N], from probabilities [N, A] by inversion of their running sum at `draw` [N]."""
    cumulative = probabilities.cumsum(-1)
    # Scaled by the last entry, since rounding can leave the sum below the draw. The product stays below that entry (see
    # `uniform_arm`), so an arm is always found, and never one of probability 0.
    passed = cumulative <= draw.unsqueeze(-1) * cumulative[..., -1:]
    return passed.sum(-1)
