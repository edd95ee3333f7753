"""The game as an RLlib environment: the reference path, on which any stock RLlib algorithm can train a principal.

Given the same dice it plays exactly the game of `lockstep.play`, one pull at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from pydantic import Field
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.utils.typing import MultiAgentDict

from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.agents.rl_module import AgentObservation, agent_id
from mermaide_ray.changes import course_of
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.envs.turns import Schedule, Turns
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.lockstep import Perception, deal_for
from mermaide_ray.noise import Key
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.settings import Switch, Whole
from mermaide_ray.view import view_of


class EnvSettings(Schedule):
    """What `env_config` may hold: an experiment, and which of its episodes to play."""

    experiment: Experiment = Field(description="the settings (`Experiment.to_dict()`)")
    seed: Whole | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="of the dice; none = the training seed in split train, else the held-out agents'",
    )
    deal_principal_dice: Switch = Field(
        False,
        description="whether the principal's observation ends with its own uniform draw for the step, for principals "
        "that act by dealt dice; stock algorithms draw their own",
    )

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """See base; agents and game are checked against each other, too."""
        given = dict(config)
        if isinstance(given.get("experiment"), Mapping):
            given["experiment"] = validate(given["experiment"], where="env_config")
        return super().read(given)

    def key(self) -> Key:
        """The dice's key."""
        seed = self.experiment.seed_of(self.split) if self.seed is None else self.seed
        return Key(seed, self.split, self.purpose, self.iteration)


class IncentivizedBanditEnv(MultiAgentEnv):
    """A principal steers a bandit learner that it has never met.

    Agents: "principal", and "agent/<family>" for the family of the episode's task; the others sit the episode out. Both
    move at once, so the principal's intervention is unseen by the agent and the agent's pull by the principal.
    Principal: observation `View.observation` [D] (+ 1 with `deal_principal_dice`), action Discrete(I) by the
    principal's names, reward 1[arm = target] - alpha * cost. Agent: observation `AgentObservation`, action Discrete(A),
    reward base + noise + incentive. Terminates for both after `horizon` pulls. Infos, never shown to a policy, say what
    happened.
    With `environment.game` = continuous the agent's action is a place on the lattice of `points.Space`, and nearness
    stands for 1[arm = target] (`envs/continuous.py`).
    Source: MERMAIDE (arXiv 2304.04668); settings and their defaults are in `environment.Environment`.

    Args:
        config: See `EnvSettings`. In RLlib's EnvContext, env runners and their sub-environments share the schedule out
            between them: no two of them play the same episode before the schedule is through.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._settings = EnvSettings.read(config)
        experiment = self._settings.experiment
        self._environment = environment = experiment.environment
        self._distribution = AgentDistribution(experiment)
        self._view = view_of(environment)
        self._incentives = incentives_of(environment)
        self._names = list(experiment.agents.families)
        self._layouts = [AgentObservation(family, environment.num_candidates) for family in self._distribution.families]
        self._turns = Turns(config, self._settings.tasks, self._settings.episodes)

        size = self._view.observation_size + int(self._settings.deal_principal_dice)
        self.observation_spaces = {
            PRINCIPAL: gym.spaces.Box(0.0, 1.0, (size,), np.float32),
            **{agent_id(name): layout.space() for name, layout in zip(self._names, self._layouts, strict=True)},
        }
        self.action_spaces: dict[str, gym.Space[Any]] = {
            PRINCIPAL: gym.spaces.Discrete(environment.num_interventions),
            **{agent_id(name): gym.spaces.Discrete(environment.num_actions) for name in self._names},
        }
        self.possible_agents = list(self.observation_spaces)
        self.agents = list(self.possible_agents)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[MultiAgentDict, MultiAgentDict]:
        """Deals the next episode of the schedule.

        Args:
            seed: Without effect: luck is keyed by the schedule. RLlib hands out `seed + worker index +
                sub-environment`, by which neighbouring seeds would share episodes.
            options: Without effect.
        """
        super().reset(seed=seed, options=options)
        settings = self._settings
        task_id, episode = self._turns.next()
        task = self._distribution.tasks(settings.split, [task_id])
        family = int(task.family)
        dice = deal_for(self._environment, settings.key(), task, 1, episode)
        self._layout, self._agent_id = self._layouts[family], agent_id(self._names[family])
        self._course = course_of(self._environment, task, 1, dice)
        self._perception = Perception(self._view, self._course, dice)
        self._noise = dice.reward_noise * self._environment.reward_noise
        self._uniform, self._normal = dice.uniform[:, 0].numpy(), dice.normal[:, 0].numpy()
        self._params = {name: value.unsqueeze(1) for name, value in task.params.items()}
        params = {name: float(value) for name, value in task.params.items()}
        self._row = self._layout.begin(params, dice.priority[0].numpy())
        self._step = 0
        self.agents = [PRINCIPAL, self._agent_id]
        return self._observations(), {PRINCIPAL: {"task": task_id, "episode": episode}}

    def step(
        self, action_dict: MultiAgentDict
    ) -> tuple[MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict]:
        """One pull. See the class docstring."""
        # Tensors of one element: the very operations of the lockstep game, so that not a bit differs.
        arm = torch.tensor([int(action_dict[self._agent_id])])
        action = torch.tensor([int(action_dict[PRINCIPAL])])
        incentives, family = self._incentives, self._layout.family
        base, target = self._course.base[self._step], self._course.target[self._step]
        intervention = self._view.intervention(action, self._seen.target)
        incentive = incentives.incentive(intervention, arm, target)
        agent_reward = incentives.base_reward(base, arm) + self._noise[self._step] + incentive
        principal_reward = incentives.principal_reward(intervention, arm, target)
        self._perception.after(self._step, arm, intervention)
        self._step += 1
        perceived = agent_reward
        if family.perceive is not None:
            perceived = family.perceive(self._params, agent_reward, principal_reward)
        self._layout.show_pull(self._row, self._step, int(arm), float(perceived))
        info = {
            "arm": int(arm),
            "intervention": int(intervention),
            "cost": float(incentives.cost(intervention, arm, target)),
            "success": bool(incentives.success(arm, target)),
        }
        over = self._step == self._environment.horizon
        return (
            self._observations(),
            {PRINCIPAL: float(principal_reward), self._agent_id: float(agent_reward)},
            {PRINCIPAL: over, self._agent_id: over, "__all__": over},
            {"__all__": False},
            {PRINCIPAL: info},
        )

    def _observations(self) -> MultiAgentDict:
        step, over = self._step, self._step == self._environment.horizon
        self._seen = self._perception.before(step)
        observation = self._seen.observation(self._view)[0].numpy()
        if self._settings.deal_principal_dice:
            # No dice are dealt for after the last pull; nobody acts there.
            observation = np.append(observation, np.float32(0) if over else self._seen.uniform.numpy())
        if not over:
            self._layout.show_dice(self._row, self._uniform[step], self._normal[step])
        return {PRINCIPAL: observation, self._agent_id: self._row.copy()}
