"""Two paths, one truth: RLlib's own MultiAgentEnvRunner and the lockstep game play the same episodes, pull by pull."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import of_mermaide, stock_families
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from torch import Tensor

from mermaide_ray.agents import POINT_FAMILIES
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.agents.rl_module import agent_modules
from mermaide_ray.baselines.stock_ppo import stock_ppo
from mermaide_ray.changes import course_of
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.experiment import Experiment
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.models.method import Method
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.player import NetworkPrincipal
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.view import View, view_of

EPISODES = 2
KEY = ("two-paths", 3)


def scripted(observation: Tensor, num_interventions: int) -> Tensor:
    """An action [N] from observations [N, D + 1], dice last, that depends on every entry of them."""
    weight = torch.arange(1, observation.shape[-1]) ** 2 % 7
    code = (observation[:, :-1] * 100).round().long() @ weight
    return (code + (observation[:, -1] * 11).long()) % num_interventions


class ScriptedPrincipal:
    """The script as a player of the lockstep game."""

    def __init__(self, view: View) -> None:
        self.view = view

    def begin(self, num_episodes: int) -> None: ...

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        return scripted(
            torch.cat([seen.observation(self.view), seen.uniform.unsqueeze(1)], dim=1), self.view.num_interventions
        )


class ScriptedModule(RLModule):
    """The same script as an RLlib policy."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: scripted(batch[Columns.OBS], self.model_config["num_interventions"])}


class SharpPrincipalModule(PrincipalModule):
    """The network with weights so large that its actions depend on what it saw, not on the dice alone."""

    def setup(self) -> None:
        super().setup()
        for parameter in self.parameters():
            parameter.data *= 4


class Player(NamedTuple):
    """One principal in its two shapes."""

    module: Callable[[Experiment], RLModuleSpec]
    lockstep: Callable[[Experiment], Principal]


def scripted_module(experiment: Experiment) -> RLModuleSpec:
    config = {"num_interventions": experiment.environment.num_interventions}
    return RLModuleSpec(module_class=ScriptedModule, model_config=config)


def network_module(experiment: Experiment) -> RLModuleSpec:
    config = {"experiment": experiment.to_dict(), "max_seq_len": experiment.environment.horizon}
    return RLModuleSpec(module_class=SharpPrincipalModule, model_config=config)


def network_lockstep(experiment: Experiment) -> Principal:
    module = SharpPrincipalModule(model_config={"experiment": experiment.to_dict()})
    weights = {name: value.detach().unsqueeze(0) for name, value in module.weights().items()}
    return NetworkPrincipal(Method.of(experiment), view_of(experiment.environment), weights)


PLAYERS = {
    "scripted": Player(scripted_module, lambda experiment: ScriptedPrincipal(view_of(experiment.environment))),
    "network": Player(network_module, network_lockstep),
}


class Episode(NamedTuple):
    """What happened in one episode; all [T]."""

    arms: list[int]
    interventions: list[int]
    principal_rewards: list[float]
    agent_rewards: list[float]


Episodes = dict[tuple[int, int], Episode]


def met_tasks(experiment: Experiment) -> list[int]:
    """Ids of the first two agents of every family."""
    names = AgentDistribution(experiment).tasks("train", range(100)).family_names()
    return [task for task, name in enumerate(names) if names[:task].count(name) < 2]


def on_the_stock_path(experiment: Experiment, player: Player) -> tuple[Episodes, set[str]]:
    """(task, episode) -> what RLlib's runner sampled, and the agents met."""
    purpose, iteration = KEY
    config = stock_ppo(
        experiment,
        "mlp",
        env_config={
            "tasks": met_tasks(experiment),
            "episodes": EPISODES,
            "purpose": purpose,
            "iteration": iteration,
            "deal_principal_dice": True,
        },
        envs_per_runner=10,
    )
    specs = {PRINCIPAL: player.module(experiment), **agent_modules(experiment)}
    config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))
    runner = MultiAgentEnvRunner(config=config, worker_index=0)
    played, met = {}, set()
    for episode in runner.sample(num_episodes=len(met_tasks(experiment)) * EPISODES, explore=True):
        principal = episode.agent_episodes[PRINCIPAL]
        (agent_id,) = set(episode.agent_episodes) - {PRINCIPAL}
        agent = episode.agent_episodes[agent_id]
        infos = principal.get_infos()
        played[infos[0]["task"], infos[0]["episode"]] = Episode(
            arms=agent.get_actions().tolist(),
            interventions=[info["intervention"] for info in infos[1:]],
            principal_rewards=principal.get_rewards().tolist(),
            agent_rewards=agent.get_rewards().tolist(),
        )
        met.add(agent_id)
    runner.stop()
    return played, met


def in_lockstep(experiment: Experiment, player: Player) -> Episodes:
    """(task, episode) -> what the lockstep game played, rewards rebuilt."""
    environment = experiment.environment
    tasks = AgentDistribution(experiment).tasks("train", met_tasks(experiment))
    dice = deal_for(environment, Key(experiment.seed, "train", *KEY), tasks, EPISODES)
    trajectories = play(environment, tasks, EPISODES, dice, player.lockstep(experiment))
    incentives = incentives_of(environment)
    arms, interventions = trajectories.arms.long(), trajectories.interventions.long()
    target = trajectories.targets
    noise = (dice.reward_noise * environment.reward_noise).T.view(arms.shape)
    means = course_of(environment, tasks, EPISODES, dice).base
    pulls = [incentives.base_reward(means[t], arms.flatten(0, 1)[:, t]) for t in range(environment.horizon)]
    base = torch.stack(pulls, dim=1).view(arms.shape)
    agent_rewards = base + noise + incentives.incentive(interventions, arms, target)
    principal_rewards = incentives.rewards_of(trajectories)
    return {
        (task, episode): Episode(
            *(part[row, episode].tolist() for part in (arms, interventions, principal_rewards, agent_rewards))
        )
        for row, task in enumerate(tasks.ids)
        for episode in range(EPISODES)
    }


@pytest.mark.parametrize("labels", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["signed", "bonus", "arm", "graded"])
@pytest.mark.parametrize("name", list(PLAYERS))
def test_stock_runner_and_lockstep_play_the_same_episodes(name: str, kind: str, labels: str) -> None:
    experiment = stock_families(environment={"intervention": kind, "arm_labels": labels})
    stock, met = on_the_stock_path(experiment, PLAYERS[name])
    lockstep = in_lockstep(experiment, PLAYERS[name])
    # Every family is among the tasks, and the principal neither sleeps nor always does the same.
    assert len(met) == len(experiment.agents.families)
    assert len(set(np.concatenate([episode.interventions for episode in lockstep.values()]))) > 1
    assert stock.keys() == lockstep.keys()
    for which in lockstep:
        # Arms and interventions exactly, and rewards to the last bit: both paths do the same float32 operations.
        assert stock[which] == lockstep[which], which


@pytest.mark.parametrize("kind", ["signed", "arm"])
def test_equivariant_principal_plays_the_same_episodes_on_both_paths(kind: str) -> None:
    experiment = stock_families(environment={"intervention": kind}, world_model={"arms": "equivariant"})
    stock, _ = on_the_stock_path(experiment, PLAYERS["network"])
    lockstep = in_lockstep(experiment, PLAYERS["network"])
    assert len(set(np.concatenate([episode.interventions for episode in lockstep.values()]))) > 1
    assert stock == lockstep


def test_principal_with_a_learner_model_plays_the_same_episodes_on_both_paths() -> None:
    experiment = stock_families(world_model={"kind": "learner"})
    stock, _ = on_the_stock_path(experiment, PLAYERS["network"])
    lockstep = in_lockstep(experiment, PLAYERS["network"])
    assert len(set(np.concatenate([episode.interventions for episode in lockstep.values()]))) > 1
    assert stock == lockstep


def test_paid_cost_is_the_same_on_both_paths() -> None:
    experiment = stock_families(environment={"intervention": "graded", "cost": "paid"})
    stock, _ = on_the_stock_path(experiment, PLAYERS["scripted"])
    assert stock == in_lockstep(experiment, PLAYERS["scripted"])


@pytest.mark.parametrize(
    ("name", "sight", "labels"),
    [
        ("scripted", {"noise": 0.3, "delay": 3, "share": 0.6}, "relative"),
        ("scripted", {"delay": 2}, "relative"),
        ("scripted", {"noise": 0.3}, "absolute"),
        ("network", {"delay": 1, "share": 0.6}, "relative"),
    ],
)
def test_the_same_is_seen_on_both_paths(name: str, sight: dict[str, Any], labels: str) -> None:
    experiment = stock_families(environment={"sight": sight, "arm_labels": labels, "intervention": "arm"})
    stock, _ = on_the_stock_path(experiment, PLAYERS[name])
    assert stock == in_lockstep(experiment, PLAYERS[name])


@pytest.mark.parametrize(
    ("name", "changes", "labels"),
    [
        ("scripted", {"base_drift": 0.1, "base_switches": 2}, "relative"),
        ("scripted", {"target_moves": 3}, "relative"),
        ("scripted", {"target_moves_at": [4, 9], "announced": False}, "absolute"),
        ("network", {"base_switches_at": [5], "target_moves": 2, "announced": False}, "relative"),
    ],
)
def test_the_same_changes_on_both_paths(name: str, changes: dict[str, Any], labels: str) -> None:
    experiment = stock_families(environment={"changes": changes, "arm_labels": labels, "intervention": "arm"})
    stock, _ = on_the_stock_path(experiment, PLAYERS[name])
    assert stock == in_lockstep(experiment, PLAYERS[name])


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("name", list(PLAYERS))
def test_both_paths_play_the_continuous_game_alike(name: str, dimensions: int) -> None:
    experiment = of_mermaide({"environment": {"game": "continuous", "dimensions": dimensions, "horizon": 15}})
    stock, met = on_the_stock_path(experiment, PLAYERS[name])
    lockstep = in_lockstep(experiment, PLAYERS[name])
    assert len(met) == len(POINT_FAMILIES)
    assert stock == lockstep


def test_other_dice_give_other_episodes() -> None:
    """A control: the equality above is not for want of luck in the game."""
    experiment = stock_families()
    one = in_lockstep(experiment, PLAYERS["scripted"])
    other = in_lockstep(experiment.model_copy(update={"seed": 1}), PLAYERS["scripted"])
    pairs = zip(one.values(), other.values(), strict=True)
    assert sum(mine.arms == theirs.arms for mine, theirs in pairs) < len(one) / 4
