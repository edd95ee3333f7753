"""The agent families as RLlib policies: non-trainable, stateful, and told by their observation all that they need.

An RLModule sees an observation and a state, nothing else. So the environment shows an agent the pull that it made last,
the reward that it perceived for it, its hyperparameters and its dice (`AgentObservation`), and the agent learns from
that pull at the start of its next forward pass. `BanditModule` is a plain RLModule: RLlib builds an optimizer for every
TorchRLModule, trained or not, and fails on one without parameters (Ray 2.60).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from torch import Tensor

from mermaide_ray.agents import family_named
from mermaide_ray.agents.base import Draws, Family, Params
from mermaide_ray.envs import ENVS, env_named
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment
from mermaide_ray.points import Space
from mermaide_ray.roles import PRINCIPAL

AnyConfig = TypeVar("AnyConfig", bound=AlgorithmConfig)

_AGENT = "agent/"


def agent_id(family: str) -> str:
    """The agent id of the family registered as `family` (or at that dotted path)."""
    return f"{_AGENT}{family}"


def policy_mapping(agent: Hashable, episode: object = None, **kwargs: Any) -> str:
    """RLlib's `policy_mapping_fn`: agent id to module id. Module ids name files, so ":" and "/" are replaced."""
    return str(agent).removeprefix(_AGENT).replace(":", "-").replace("/", "-")


@dataclass(frozen=True)
class Shown:
    """An agent's observation, taken apart. N agents; every entry is float [N, ·] unless it says otherwise.

    Attributes:
        valid: bool [N, 1], False at the first pull of an episode, when there is nothing to learn from yet.
        last_arm: int64 [N], the previous pull.
        last_reward: float [N], the agent reward perceived for it.
        step: float [N, 1], pulls so far.
        params: Hyperparameters, float [N, 1] each.
        priority: float [N, A], see `Dice`.
        draws: The dice of this pull.
    """

    valid: Tensor
    last_arm: Tensor
    last_reward: Tensor
    step: Tensor
    params: Params
    priority: Tensor
    draws: Draws


class AgentObservation:
    """Layout of an agent's observation, float32 [size]: the one place that knows it.

    valid, last arm, last perceived reward, step, hyperparameters (in the family's order), priority [G], uniform [2],
    normal [G] (only for families that draw normals), for G candidates (`Environment.num_candidates`). An arm and a step
    are exact in float32 up to 2^24.

    Raises:
        InputError: The family is informed of the principal's policy, which RLlib's environments never see: principal
            and agent move at once, by their actions.
    """

    def __init__(self, family: Family, num_candidates: int) -> None:
        if family.hear is not None:
            raise InputError(
                "`agents.families` must hold no agents that know the principal's policy where RLlib's own runner "
                f"samples, whose environments see actions but no probabilities, got {family.name!r} (`mermaide train` "
                "plays them)"
            )
        self.family = family
        self.num_candidates = num_candidates
        self._params = 4
        self._priority = self._params + len(family.hyperparameters)
        self._uniform = self._priority + num_candidates
        self._normal = self._uniform + 2
        self.size = self._normal + (num_candidates if family.normals else 0)

    def space(self) -> gym.spaces.Box:
        """The observation space."""
        return gym.spaces.Box(-np.inf, np.inf, (self.size,), np.float32)

    def begin(self, params: dict[str, float], priority: NDArray[np.float32]) -> NDArray[np.float32]:
        """The observation of a new episode, before its dice are shown."""
        row = np.zeros(self.size, dtype=np.float32)
        row[self._params : self._priority] = [params[name] for name in self.family.hyperparameters]
        row[self._priority : self._uniform] = priority
        return row

    def show_dice(self, row: NDArray[np.float32], uniform: NDArray[np.float32], normal: NDArray[np.float32]) -> None:
        """Writes the dice of the coming pull: uniform [2], normal [G or 0]."""
        row[self._uniform : self._normal] = uniform
        row[self._normal :] = normal

    def show_pull(self, row: NDArray[np.float32], step: int, arm: int, reward: float) -> None:
        """Writes the pull just made; `step` counts it."""
        row[:4] = (1.0, arm, reward, step)

    def read(self, observation: Tensor) -> Shown:
        """Takes observations [N, size] apart."""
        return Shown(
            valid=observation[:, :1] > 0,
            last_arm=observation[:, 1].long(),
            last_reward=observation[:, 2],
            step=observation[:, 3:4],
            params={
                name: observation[:, self._params + i : self._params + i + 1]
                for i, name in enumerate(self.family.hyperparameters)
            },
            priority=observation[:, self._priority : self._uniform],
            draws=Draws(observation[:, self._uniform : self._normal], observation[:, self._normal :]),
        )


class BanditModule(RLModule):
    """One agent family as an RLlib policy.

    `model_config`: `family` (registered name or dotted path), `num_candidates`, `dimensions` of the points (0 or absent
    for families that pull arms), and `max_seq_len`, which RLlib's connectors look up in every stateful module.
    """

    # A label only: it has RLlib's connectors hand over tensors, even where no module beside is a Torch one.
    framework = "torch"

    def setup(self) -> None:
        """See `RLModule.setup`."""
        config = cast(dict[str, Any], self.model_config)
        space = Space(config["dimensions"]) if config.get("dimensions") else None
        self._layout = AgentObservation(family_named(config["family"], space), config["num_candidates"])

    def get_initial_state(self) -> dict[str, Tensor]:
        """A place for the learning state, unbatched. Its values are not used: the episode's priorities give them."""
        row = torch.ones(1, self._layout.size)
        shown = self._layout.read(row)
        fresh = self._layout.family.init(shown.params, shown.priority)
        return {name: torch.zeros_like(value[0]) for name, value in fresh.items()}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        family = self._layout.family
        # RLlib adds a time rank of 1 to the observations of stateful modules: [B, 1, size].
        shown = self._layout.read(batch[Columns.OBS].flatten(0, -2))
        state = family.init(shown.params, shown.priority)
        if state:
            before = batch[Columns.STATE_IN]
            learned = family.learn(before, shown.params, shown.step - 1, shown.last_arm, shown.last_reward)
            # From axis 1 on a state may have any shape.
            valid = shown.valid.flatten()
            state = {
                name: learned[name].where(valid.view(-1, *[1] * (fresh.dim() - 1)), fresh)
                for name, fresh in state.items()
            }
        arm = family.act(state, shown.params, shown.step, shown.draws)
        return {Columns.ACTIONS: arm, **({Columns.STATE_OUT: state} if state else {})}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> NoReturn:
        raise NotImplementedError("agents learn within an episode only: leave them out of `policies_to_train`")


def agent_modules(experiment: Experiment) -> dict[str, RLModuleSpec]:
    """Module id to spec, for every family of the mixture."""
    environment = experiment.environment
    space, candidates = environment.space, environment.num_candidates
    return {
        policy_mapping(agent_id(name)): RLModuleSpec(
            module_class=BanditModule,
            observation_space=AgentObservation(family_named(name, space), candidates).space(),
            action_space=gym.spaces.Discrete(environment.num_actions),
            model_config={
                "family": name,
                "num_candidates": candidates,
                "dimensions": 0 if space is None else space.dimensions,
                "max_seq_len": environment.horizon,
            },
        )
        for name in experiment.agents.families
    }


def as_principal(
    config: AnyConfig,
    experiment: Experiment,
    principal: RLModuleSpec | None = None,
    env: str = "incentivized_bandit",
    env_config: Mapping[str, Any] | None = None,
) -> AnyConfig:
    """Has an RLlib algorithm train a principal: the environment, the agents' policies beside its own, and who learns.

    Args:
        config: Any algorithm's; changed in place, as by its own methods.
        experiment: The game and the agents.
        principal: The principal's module; the algorithm's default if not given.
        env: Registered name or dotted path of the environment.
        env_config: Further settings of the environment (see `EnvSettings`).

    Returns:
        The config.

    Raises:
        InputError: The environment has no agents.
    """
    if env in ENVS and not ENVS[env].has_agents:
        games = ", ".join(name for name, game in ENVS.items() if game.has_agents)
        raise InputError(f"`env` must be a game with agents ({games}, or a dotted path), got {env!r}")
    modules = {PRINCIPAL: principal or RLModuleSpec(), **agent_modules(experiment)}
    config.environment(env_named(env), env_config={"experiment": experiment.to_dict(), **(env_config or {})})
    config.multi_agent(policies=set(modules), policy_mapping_fn=policy_mapping, policies_to_train=[PRINCIPAL])
    config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=modules))
    return config
