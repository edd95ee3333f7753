"""The Stackelberg game: its truth against closed forms and brute force, its dice, and its two paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ray.rllib.env.env_context import EnvContext
from ray.rllib.utils.pre_checks.env import check_multiagent_environments

from mermaide_ray.envs import ENVS, env_named
from mermaide_ray.envs.stackelberg import StackelbergEnv
from mermaide_ray.errors import InputError
from mermaide_ray.noise import Key
from mermaide_ray.stackelberg.equilibrium import strong_stackelberg
from mermaide_ray.stackelberg.games import GameDistribution, best_response, commitment_value, deal, play_round
from mermaide_ray.stackelberg.planner import lattice
from mermaide_ray.stackelberg.settings import Game

GAME = Game(rows=3, columns=4, rounds=4, response_noise=0.4)


def random_games(count: int, rows: int, columns: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [(rng.normal(size=(rows, columns)), rng.normal(size=(rows, columns))) for _ in range(count)]


@pytest.mark.parametrize(
    ("leader", "follower", "value", "commitment"),
    [
        # Conitzer and Sandholm 2006, section 1: simultaneous play gives 2, committing to the lower row 3, and mixing
        # half and half 3.5.
        ([[2, 4], [1, 3]], [[1, 0], [0, 1]], 3.5, [0.5, 0.5]),
        # Matching pennies: zero-sum, so commitment is worth its maximin.
        ([[1, -1], [-1, 1]], [[-1, 1], [1, -1]], 0.0, [0.5, 0.5]),
        # Common interest: the best cell.
        ([[2, 0], [0, 5]], [[2, 0], [0, 5]], 5.0, [0, 1]),
        # An indifferent follower does what the leader likes.
        ([[1, 4, 2]], [[0, 0, 0]], 4.0, [1]),
        # Inspection: inspecting with probability 1/4 is just enough, for 5 - 1/4 * 1 in place of 4.
        ([[4, -2], [5, -9]], [[0, -3], [0, 1]], 4.75, [0.25, 0.75]),
    ],
    ids=["conitzer-sandholm", "matching-pennies", "common-interest", "indifferent", "inspection"],
)
def test_equilibrium_of_textbook_games(
    leader: list[list[float]], follower: list[list[float]], value: float, commitment: list[float]
) -> None:
    found = strong_stackelberg(np.array(leader, dtype=float), np.array(follower, dtype=float))
    assert found.value == pytest.approx(value)
    assert found.commitment == pytest.approx(commitment)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 5), (3, 3), (3, 4)])
def test_equilibrium_of_random_games_against_brute_force(rows: int, columns: int) -> None:
    resolution = 400 if rows == 2 else 120
    grid = lattice(rows, resolution).double()
    for leader, follower in random_games(12, rows, columns):
        found = strong_stackelberg(leader, follower)
        best = commitment_value(grid, torch.from_numpy(leader), torch.from_numpy(follower)).max().item()
        # No commitment does better; and the grid comes near, since payoffs change by at most their range per unit.
        assert best <= found.value + 1e-6
        assert best >= found.value - 4 * np.ptp(leader) / resolution


def test_equilibrium_is_worth_no_less_than_any_pure_commitment_and_no_more_than_the_best_cell() -> None:
    for leader, follower in random_games(20, 4, 5):
        value = strong_stackelberg(leader, follower).value
        pure = commitment_value(torch.eye(4).double(), torch.from_numpy(leader), torch.from_numpy(follower))
        assert pure.max().item() - 1e-9 <= value <= leader.max() + 1e-9


def test_equilibrium_knows_no_names_and_no_scale_of_the_followers_payoffs() -> None:
    rng = np.random.default_rng(0)
    for leader, follower in random_games(10, 3, 4):
        found = strong_stackelberg(leader, follower)
        rows, columns = rng.permutation(3), rng.permutation(4)
        renamed = strong_stackelberg(leader[rows][:, columns], follower[rows][:, columns])
        assert renamed.value == pytest.approx(found.value)
        assert renamed.commitment == pytest.approx(found.commitment[rows], abs=1e-6)
        assert columns[renamed.response] == found.response
        # What is added to a row concerns all columns alike.
        scaled = strong_stackelberg(leader, 7 * follower + rng.normal(size=(3, 1)))
        assert scaled.value == pytest.approx(found.value)
        assert strong_stackelberg(2 * leader - 1, follower).value == pytest.approx(2 * found.value - 1)


def test_follower_breaks_ties_for_the_leader() -> None:
    leader, follower = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[2.0, 2.0, 1.0]])
    assert best_response(torch.ones(1), leader, follower) == 1
    assert best_response(torch.ones(1), -leader, follower) == 0


def test_a_follower_of_small_payoffs_is_no_less_sure_of_its_best_response() -> None:
    leader, follower = torch.tensor([[0.0, 3.0, 1.0]]), 1e-7 * torch.tensor([[3.0, 2.0, 1.0]])
    assert best_response(torch.ones(1), leader, follower) == 0


def test_lattice_holds_each_mixed_strategy_once() -> None:
    points = lattice(3, 4)
    assert len(points) == 15
    assert len(points.unique(dim=0)) == 15
    assert points.min() >= 0
    torch.testing.assert_close(points.sum(1), torch.ones(15))
    assert (points * 4 == (points * 4).round()).all()


def test_tasks_follow_from_their_ids_alone() -> None:
    distribution = GameDistribution(GAME)
    together, alone = distribution.tasks("test", [4, 2, 9]), distribution.tasks("test", [2])
    for name in ("leader", "follower", "alignment"):
        assert torch.equal(getattr(together, name)[1:2], getattr(alone, name))
    other = GameDistribution(GAME).tasks("validation", [2])
    assert not torch.equal(other.follower, alone.follower)
    # Held-out followers are the same whatever the training seed; training followers are not.
    assert torch.equal(GameDistribution(GAME, 7).tasks("test", [2]).follower, alone.follower)
    assert not torch.equal(
        GameDistribution(GAME, 7).tasks("train", [2]).follower, distribution.tasks("train", [2]).follower
    )


def test_follower_payoffs_are_structured_as_said() -> None:
    game = GAME.model_copy(update={"idiosyncrasy": 0.0})
    tasks = GameDistribution(game).tasks("test", range(40))
    less = tasks.follower - tasks.alignment[:, None, None] * tasks.leader
    assert torch.linalg.matrix_rank(less.flatten(1), rtol=1e-4) == game.tastes
    own = GameDistribution(game.model_copy(update={"idiosyncrasy": 1.0})).tasks("test", range(40))
    less = own.follower - own.alignment[:, None, None] * own.leader
    assert torch.linalg.matrix_rank(less.flatten(1), rtol=1e-4) == 12


def test_dice_of_an_episode_depend_on_neither_company_nor_later_episodes() -> None:
    key = Key(0, "test", "dice", 0)
    one, other = deal(key, [3], 2, 2, 5), deal(key, [1, 3], 2, 6, 5)
    for name in ("commit", "garble", "garbled", "payoff_noise"):
        assert torch.equal(getattr(one, name), getattr(other, name)[1:, :, :2]), name


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_channel_garbles_as_often_as_it_should(noise: float) -> None:
    game = GAME.model_copy(update={"response_noise": noise, "payoff_noise": 2.0})
    tasks = GameDistribution(game).tasks("test", [0])
    dice = deal(Key(0, "test", "channel", 0), [0], 500, 4, 5)
    commitment = torch.full((1, 500, 4, 5, 3), 1 / 3)
    leader, follower = (payoffs[:, None, None, None] for payoffs in (tasks.leader, tasks.follower))
    outcome = play_round(game, leader, follower, commitment, dice.garble, dice.garbled, dice.payoff_noise)
    right = (outcome.seen_response == outcome.response).float().mean().item()
    assert right == pytest.approx(1 - noise * 3 / 4, abs=0.02)
    assert outcome.response.unique().numel() == 1
    assert (outcome.seen_payoff - outcome.payoff).std().item() == pytest.approx(2.0, rel=0.05)


def test_registered_and_passes_rllibs_checks() -> None:
    assert "stackelberg" in ENVS
    env = env_named("stackelberg")({"game": GAME.model_dump()})
    check_multiagent_environments(env)
    observations, _ = env.reset()
    for turn in range(GAME.rounds):
        assert observations["principal"] in env.observation_spaces["principal"]
        assert observations["principal"][-1] == pytest.approx(turn / GAME.rounds)
        observations, rewards, terminateds, _, infos = env.step({"principal": np.array([2.0, 0, 2], dtype=np.float32)})
        assert infos["principal"]["commitment"] == [0.5, 0.0, 0.5]
        assert terminateds["__all__"] == (turn == GAME.rounds - 1)
        assert set(rewards) == {"principal"}


def test_observation_holds_nothing_hidden() -> None:
    """Two followers that respond alike look alike."""
    env = StackelbergEnv({"game": GAME.model_dump(), "tasks": [0]})
    seen = []
    for scale in (1.0, 5.0):
        env = StackelbergEnv({"game": GAME.model_dump(), "tasks": [0]})
        first, _ = env.reset()
        hidden = env._games.follower
        hidden.mul_(scale)
        seen.append([first["principal"], env.step({"principal": np.ones(3) / 3})[0]["principal"]])
    np.testing.assert_array_equal(seen[0], seen[1])


def test_env_runners_share_the_schedule_out() -> None:
    config = {"game": GAME.model_dump(), "tasks": [5, 6], "episodes": 2}
    met = []
    for worker in (1, 2):
        env = StackelbergEnv(EnvContext(config, worker_index=worker, num_workers=2))
        for _ in range(2):
            _, infos = env.reset()
            met.append((infos["principal"]["task"], infos["principal"]["episode"]))
    assert sorted(met) == [(5, 0), (5, 1), (6, 0), (6, 1)]


def test_wrong_env_config_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match=r"no key 'taks' \(did you mean 'tasks'\?\).*env_config"):
        StackelbergEnv({"taks": [1]})
    with pytest.raises(InputError, match=r"game\.rows"):
        StackelbergEnv({"game": {"rows": 1}})
