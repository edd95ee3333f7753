"""The RLlib environment: RLlib's own checks, what is seen and what is hidden, and who plays which episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import stock_families, tiny
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.env_context import EnvContext
from ray.rllib.utils.pre_checks.env import check_multiagent_environments

from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.agents.rl_module import agent_id, as_principal
from mermaide_ray.envs import ENVS, env_named
from mermaide_ray.envs.bandit import IncentivizedBanditEnv
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment

KINDS = ("signed", "bonus", "arm", "graded")
COSTS = ("per_intervention", "paid")


def make(experiment: Experiment, **config: Any) -> IncentivizedBanditEnv:
    return IncentivizedBanditEnv({"experiment": experiment.to_dict(), **config})


def played(env: IncentivizedBanditEnv) -> tuple[int, int]:
    """(task, episode) of the next reset."""
    _, infos = env.reset()
    return infos["principal"]["task"], infos["principal"]["episode"]


@pytest.mark.parametrize("labels", ["relative", "absolute"])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_rllibs_checks_and_stays_in_its_spaces(kind: str, labels: str) -> None:
    experiment = stock_families(environment={"intervention": kind, "arm_labels": labels})
    env = make(experiment, deal_principal_dice=True)
    check_multiagent_environments(env)
    met = set()
    for _ in range(60):
        observations, _ = env.reset()
        met.update(observations)
        over = False
        while not over:
            for agent, observation in observations.items():
                assert observation in env.observation_spaces[agent]
            actions = {agent: env.action_spaces[agent].sample() for agent in observations}
            observations, rewards, terminateds, truncateds, _ = env.step(actions)
            assert set(observations) == set(rewards) == set(env.agents)
            assert not truncateds["__all__"]
            over = terminateds["__all__"]
    # reset() returned each family's own agent, and only that one, beside the principal.
    assert met == set(env.possible_agents) == {"principal", *map(agent_id, experiment.agents.families)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_arms", [2, 1000])
def test_any_number_of_arms(num_arms: int, kind: str) -> None:
    env = make(stock_families(environment={"num_arms": num_arms, "intervention": kind, "horizon": 3}))
    check_multiagent_environments(env)
    assert env.action_spaces["principal"].n == {"signed": 2, "bonus": 2, "arm": num_arms + 1, "graded": 4}[kind]


@pytest.mark.parametrize("horizon", [1, 7])
def test_ends_after_horizon_pulls(horizon: int) -> None:
    env = make(stock_families(environment={"horizon": horizon}))
    observations, _ = env.reset()
    for t in range(horizon):
        assert observations["principal"][-1] == pytest.approx(t / horizon)
        observations, _, terminateds, _, _ = env.step(dict.fromkeys(observations, 0))
        assert set(terminateds.values()) == {t == horizon - 1}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(
    ("kind", "action", "on_target", "off_target"),
    # (incentive, cost) for delta = 2 where the agent pulls the target, and where it pulls another arm.
    [
        ("signed", 0, (0, 0), (0, 0)),
        ("signed", 1, (2, 1), (-2, 1)),
        ("bonus", 1, (2, 1), (0, 1)),
        # Relative names: action 1 chooses the target, action 2 the arm after it.
        ("arm", 1, (2, 1), (0, 1)),
        ("arm", 2, (0, 1), (2, 1)),
        ("graded", 1, (0.5, 0.25), (-0.5, 0.25)),
        ("graded", 3, (2, 1), (-2, 1)),
    ],
)
def test_rewards_by_hand(
    kind: str, cost: str, action: int, on_target: tuple[float, float], off_target: tuple[float, float]
) -> None:
    experiment = stock_families(
        environment={"intervention": kind, "cost": cost, "delta": 2.0, "cost_weight": 0.5, "reward_noise": 0.0}
    )
    env = make(experiment, tasks=[3])
    task = AgentDistribution(experiment).tasks("train", [3])
    target = int(task.target)
    for offset, (incentive, full_cost) in ((0, on_target), (1, off_target)):
        arm = (target + offset) % 4
        observations, _ = env.reset()
        (agent,) = set(observations) - {"principal"}
        _, rewards, _, _, infos = env.step({"principal": action, agent: arm})
        # `paid` charges only where the agent gains.
        charged = full_cost if cost == "per_intervention" or incentive > 0 else 0.0
        assert rewards[agent] == pytest.approx(float(task.base[0, arm]) + incentive)
        assert rewards["principal"] == pytest.approx((offset == 0) - 0.5 * charged)
        assert infos["principal"]["cost"] == charged
        assert infos["principal"]["success"] == (offset == 0)


@pytest.mark.parametrize("labels", ["relative", "absolute"])
def test_principal_observation_follows_from_the_history_alone(labels: str) -> None:
    """Other hyperparameters, base rewards, dice and family: the same arms and interventions look the same."""

    def seen(seed: int, base: tuple[float, float], noise: float, task: int) -> np.ndarray:
        experiment = stock_families(
            environment={"arm_labels": labels, "reward_noise": noise}, agents={"base_reward": base}
        )
        env = make(experiment, tasks=[task], seed=seed)
        observations, _ = env.reset()
        target = int(AgentDistribution(experiment).tasks("train", [task]).target)
        rows = [observations["principal"]]
        for t in range(15):
            # One history, in the principal's names: the same distances from the target for relative labels.
            arm = (target + t * t) % 4
            (agent,) = set(observations) - {"principal"}
            observations, *_ = env.step({"principal": t % 3 == 0, agent: arm})
            rows.append(observations["principal"])
        return np.stack(rows)

    experiment = stock_families()
    tasks = AgentDistribution(experiment).tasks("train", range(200))
    same_target = (tasks.target == tasks.target[0]).nonzero().flatten()
    other_family = int(same_target[tasks.family[same_target] != tasks.family[0]][0])
    reference = seen(0, (0.0, 1.0), 0.05, 0)
    assert np.array_equal(reference, seen(1, (0.0, 1.0), 0.05, 0)), "dice"
    assert np.array_equal(reference, seen(0, (5.0, 9.0), 0.05, 0)), "base rewards"
    assert np.array_equal(reference, seen(0, (0.0, 1.0), 3.0, 0)), "noise"
    assert np.array_equal(reference, seen(0, (0.0, 1.0), 0.05, other_family)), "family and hyperparameters"
    # The agent's observation does change: what is hidden from the principal exists.
    assert not np.array_equal(
        make(experiment, tasks=[0], seed=0).reset()[0][agent_id(tasks.families[int(tasks.family[0])].name)],
        make(experiment, tasks=[0], seed=1).reset()[0][agent_id(tasks.families[int(tasks.family[0])].name)],
    )


def test_principals_own_dice_are_appended_on_request() -> None:
    experiment = stock_families()
    plain, dealt = make(experiment, tasks=[0]), make(experiment, tasks=[0], deal_principal_dice=True)
    (one, _), (other, _) = plain.reset(), dealt.reset()
    assert other["principal"][:-1].tolist() == one["principal"].tolist()
    draws = [other["principal"][-1]]
    for _ in range(14):
        other, *_ = dealt.step(dict.fromkeys(other, 0))
        draws.append(other["principal"][-1])
    assert len(set(draws)) == 15


def test_listed_tasks_are_played_in_turn_and_over_again() -> None:
    env = make(stock_families(), tasks=[7, 2], episodes=2)
    assert [played(env) for _ in range(5)] == [(7, 0), (7, 1), (2, 0), (2, 1), (7, 0)]


def test_same_key_same_episode_other_key_other_luck() -> None:
    def first(**key: Any) -> bytes:
        observations, _ = make(stock_families(), tasks=[3], **key).reset()
        (agent,) = set(observations) - {"principal"}
        return observations[agent].tobytes()

    reference = first(purpose="query", iteration=4)
    assert first(purpose="query", iteration=4) == reference
    assert len({reference, first(purpose="support", iteration=4), first(purpose="query", iteration=5)}) == 3
    assert first(purpose="query", iteration=4, seed=9) != reference


def test_reset_seed_changes_nothing() -> None:
    experiment = stock_families()
    one, other = (make(experiment).reset(seed=seed)[0] for seed in (1, 2))
    assert all(np.array_equal(one[agent], other[agent]) for agent in one)


def contexts(num_workers: int, sub_envs: int, **config: Any) -> list[list[IncentivizedBanditEnv]]:
    """Environments as RLlib builds them: one context per env runner, shared by its sub-environments."""
    plain = {"experiment": stock_families().to_dict(), **config}
    workers = range(1, num_workers + 1) if num_workers else [0]
    shared = [EnvContext(plain, worker_index=index, num_workers=num_workers) for index in workers]
    return [[IncentivizedBanditEnv(context) for _ in range(sub_envs)] for context in shared]


@pytest.mark.parametrize(("num_workers", "sub_envs"), [(0, 1), (0, 4), (2, 2), (4, 1)])
def test_env_runners_and_sub_environments_share_the_schedule_out(num_workers: int, sub_envs: int) -> None:
    envs = contexts(num_workers, sub_envs)
    rounds = 8 // (max(num_workers, 1) * sub_envs)
    tasks = [played(env)[0] for _ in range(rounds) for worker in envs for env in worker]
    assert sorted(tasks) == list(range(8))
    listed = contexts(num_workers, sub_envs, tasks=[5, 6], episodes=4)
    episodes = [played(env) for _ in range(rounds) for worker in listed for env in worker]
    assert sorted(episodes) == [(task, episode) for task in (5, 6) for episode in range(4)]


def test_a_stream_meets_a_finite_population_in_turn_with_new_luck() -> None:
    experiment = stock_families(agents={"population": {"train": 3, "validation": 2, "test": 2}})
    env = make(experiment)
    agents, starts = [], set()
    for _ in range(6):
        observations, _ = env.reset()
        (agent,) = set(observations) - {"principal"}
        agents.append(agent)
        starts.add(observations[agent].tobytes())
    assert agents[:3] == agents[3:]
    assert len(starts) == 6


def test_held_out_agents_are_the_same_for_all_training_seeds() -> None:
    def start(seed: int, split: str) -> bytes:
        settings = {**stock_families().to_dict(), "seed": seed}
        observations, _ = IncentivizedBanditEnv({"experiment": settings, "split": split}).reset()
        return b"".join(observation.tobytes() for observation in observations.values())

    assert start(1, "test") == start(2, "test")
    assert start(1, "train") != start(2, "train")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "`experiment` must be given, got nothing"),
        ({"experiment": {}, "spilt": "train"}, "did you mean 'split'"),
        ({"experiment": {}, "split": "dev"}, "`split` must be 'train', 'validation' or 'test', got dev"),
        ({"experiment": {"sed": 1}}, "did you mean 'seed'"),
        ({"experiment": {}, "tasks": []}, "`tasks` must be at least 1 long"),
        ({"experiment": {}, "tasks": 5}, "`tasks` must be a list, got 5"),
        ({"experiment": {}, "episodes": "2"}, "`episodes` must be a whole number, got"),
        ({"experiment": {}, "episodes": 0}, "`episodes` must be greater than or equal to 1, got 0"),
    ],
)
def test_bad_env_config_is_one_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        IncentivizedBanditEnv(config)
    assert "\n" not in str(caught.value)


def test_registered_environments_exist_and_are_described() -> None:
    for name, game in ENVS.items():
        assert issubclass(env_named(name), gym.Env)
        assert game.description
        assert "\n" not in game.description
    with pytest.raises(InputError, match=r"`env` must be a game with agents \(incentivized_bandit, .* 'stackelberg'"):
        as_principal(PPOConfig(), tiny(), env="stackelberg")
    assert env_named("mermaide_ray.envs.bandit:IncentivizedBanditEnv") is IncentivizedBanditEnv
    with pytest.raises(InputError, match="did you mean 'incentivized_bandit'"):
        env_named("incentivised_bandit")


def test_no_global_randomness_is_used() -> None:
    env = make(stock_families(), tasks=[0])
    np_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    observations, _ = env.reset()
    env.step(dict.fromkeys(observations, 0))
    assert np.array_equal(np_state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())
