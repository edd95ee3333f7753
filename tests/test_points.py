"""Points, the smooth base reward, and the agents that choose points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mermaide_ray.agents import POINT_FAMILIES, family_named
from mermaide_ray.agents.base import Draws, Family, Params, State, best_candidate, normal_step
from mermaide_ray.agents.gp_ucb import DEVIATION, LENGTH, NOISE
from mermaide_ray.agents.kernel_ucb import BANDWIDTH, PRIOR
from mermaide_ray.errors import InputError
from mermaide_ray.points import RESOLUTION, SmoothReward, Space

PULLS = 100
LIKE = torch.empty(0)
# Explorers that settle within an episode.
PARAMS = {
    "kernel_ucb": {"ucb_coefficient": 0.1},
    "gp_ucb": {"confidence": 1.0},
    "two_point_gradient": {"probe": 0.08, "learning_rate": 0.02},
    "evolution": {"step_size": 0.2},
}

spaces = pytest.mark.parametrize("space", [Space(1), Space(2)], ids=lambda space: f"{space.dimensions}d")


@pytest.fixture(params=list(POINT_FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@spaces
def test_every_place_on_the_lattice_is_its_own_nearest(space: Space) -> None:
    arms = torch.from_numpy(np.random.default_rng(0).integers(space.size, size=999))
    points = space.point(arms)
    assert points.shape == (999, space.dimensions)
    assert points.dtype == torch.float32
    assert (space.arm(points) == arms).all()
    assert (space.arm(points + 0.4 / RESOLUTION) == arms).all()
    outside = torch.full((1, space.dimensions), -0.5)
    assert (space.point(space.arm(outside)) == 0.5 / RESOLUTION).all()
    assert (space.point(space.arm(1 - outside)) == 1 - 0.5 / RESOLUTION).all()


@spaces
def test_a_candidate_is_found_again_by_its_place(space: Space) -> None:
    assert (space.candidate(space.candidate_arms(LIKE)) == torch.arange(space.num_candidates)).all()
    assert space.candidates(LIKE).unique(dim=0).shape == (space.num_candidates, space.dimensions)


@spaces
def test_a_base_reward_spans_its_range_and_is_smooth(space: Space) -> None:
    smooth, rng = SmoothReward(space, 0.15), np.random.default_rng(1)
    for low, high in ((0.0, 1.0), (-2.0, 0.5)):
        base = torch.from_numpy(smooth.draw(rng, low, high))
        assert base.shape == (smooth.size,)
        arms = torch.arange(space.size)[:: 7 if space.dimensions == 1 else 331]
        values = smooth(base.expand(len(arms), -1), arms)
        # On a grid of 33 points per coordinate the range is exact; in between little is left to gain.
        assert low - 0.05 * (high - low) <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high + 0.05 * (high - low)
    line = smooth(base.expand(RESOLUTION, -1), torch.arange(RESOLUTION))
    assert line.diff().abs().max() < 0.1  # of 1,024 steps across a range of 2.5


@spaces
def test_bumps_between_the_points_of_a_coarse_grid_stay_in_the_range(space: Space) -> None:
    smooth, rng = SmoothReward(space, 0.03), np.random.default_rng(2)
    arms = torch.from_numpy(rng.integers(space.size, size=200_000))
    for _ in range(10):
        values = smooth(torch.from_numpy(smooth.draw(rng, 0.0, 1.0)).expand(len(arms), -1), arms)
        assert values.min() > -0.02
        assert values.max() < 1.02


def test_a_base_reward_is_the_sum_of_its_bumps() -> None:
    space = Space(2)
    smooth = SmoothReward(space, 0.2)
    base = np.zeros(smooth.size, dtype=np.float32)
    base[0], base[1], base[2] = 0.5, 2.0, -1.0
    centres = base[1 + smooth.NUM_BUMPS :].reshape(-1, 2)
    centres[0], centres[1] = (0.3, 0.6), (0.9, 0.1)
    arm = space.arm(torch.tensor([[0.4, 0.4]]))
    x, y = space.point(arm)[0].tolist()
    expected = 0.5 + 2 * np.exp(-((x - 0.3) ** 2 + (y - 0.6) ** 2) / 0.08)
    expected -= np.exp(-((x - 0.9) ** 2 + (y - 0.1) ** 2) / 0.08)
    assert smooth(torch.from_numpy(base).unsqueeze(0), arm).item() == pytest.approx(expected, abs=1e-6)


def dice(space: Space, num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Priority [N, G], uniform [T, N, 2]."""
    rng = np.random.default_rng(seed)
    ranks = np.tile(np.arange(1.0, space.num_candidates + 1, dtype=np.float32), (num, 1))
    return (
        torch.from_numpy(rng.permuted(ranks, axis=1)),
        torch.from_numpy(rng.random((PULLS, num, 2), dtype=np.float32)),
    )


def hyperparameters(name: str, num: int, spread: bool = True) -> dict[str, Tensor]:
    factor = torch.linspace(1.0, 0.5 if spread else 1.0, num).unsqueeze(1)
    return {key: factor * value for key, value in PARAMS[name].items()}


def play(
    family: Family, space: Space, luck: tuple[Tensor, Tensor], params: Params, wanted: Tensor, noise: float = 0.05
) -> tuple[Tensor, State]:
    """Points [T, N, d] and the last state: reward 1 at `wanted` [N, d], falling off to -1 with distance."""
    priority, uniform = luck
    state, points = family.init(params, priority), []
    for t in range(len(uniform)):
        step = torch.tensor(float(t))
        arm = family.act(state, params, step, Draws(uniform[t], uniform[t, :, :0]))
        assert arm.dtype == torch.int64
        assert ((arm >= 0) & (arm < space.size)).all()
        point = space.point(arm)
        distance = (point - wanted).square().sum(-1)
        reward = 2 * (-distance / (2 * 0.2**2)).exp() - 1 + noise * (uniform[t, :, 0] - 0.5)
        state = family.learn(state, params, step, arm, reward)
        points.append(point)
    return torch.stack(points), state


@spaces
def test_agents_find_the_best_point_of_a_hill(name: str, space: Space) -> None:
    num = 40
    wanted = torch.from_numpy(np.random.default_rng(5).random((num, space.dimensions), dtype=np.float32))
    wanted = 0.2 + 0.6 * wanted
    family = family_named(name, space)
    points, _ = play(family, space, dice(space, num), hyperparameters(name, num, spread=False), wanted)
    late = (points[-20:] - wanted).square().sum(-1).sqrt().mean(0)
    by_chance = (points[0] - wanted).square().sum(-1).sqrt().mean()
    # A hill is flat far from its top, where the two that climb may start: most get there, not all.
    assert late.median() < 0.12
    assert late.mean() < 0.5 * by_chance


@spaces
def test_agents_in_a_batch_are_agents_alone(name: str, space: Space) -> None:
    family, num = family_named(name, space), 5
    wanted = torch.linspace(0.1, 0.9, num * space.dimensions).view(num, -1)
    (priority, uniform), params = dice(space, num), hyperparameters(name, num)
    together, _ = play(family, space, (priority, uniform), params, wanted)
    for row in range(num):
        mine = slice(row, row + 1)
        own = {key: value[mine] for key, value in params.items()}
        alone, _ = play(family, space, (priority[mine], uniform[:, mine]), own, wanted[mine])
        assert (alone[:, 0] == together[:, row]).all()


@spaces
def test_learning_leaves_the_given_state_alone(name: str, space: Space) -> None:
    family = family_named(name, space)
    priority, uniform = dice(space, 3)
    params = hyperparameters(name, 3)
    state = family.init(params, priority)
    kept = {key: value.clone() for key, value in state.items()}
    arm = family.act(state, params, torch.tensor(0.0), Draws(uniform[0], uniform[0, :, :0]))
    family.learn(state, params, torch.tensor(0.0), arm, torch.tensor([1.0, -1.0, 0.5]))
    assert all((state[key] == value).all() for key, value in kept.items())
    assert all(len(value) == 3 for value in state.values())


def test_a_step_may_be_given_per_agent(name: str) -> None:
    # As on the reference path, where agents of a batch may stand at different pulls.
    space = Space(1)
    family, params = family_named(name, space), hyperparameters(name, 4)
    priority, uniform = dice(space, 4)
    state = family.init(params, priority)
    for t in range(6):
        step = torch.tensor(float(t))
        draws = Draws(uniform[t], uniform[t, :, :0])
        one, each = (family.act(state, params, s, draws) for s in (step, step.expand(4, 1)))
        assert (one == each).all()
        reward = torch.arange(4.0) - t
        one_state, each_state = (family.learn(state, params, s, one, reward) for s in (step, step.expand(4, 1)))
        assert all((one_state[key] == each_state[key]).all() for key in one_state)
        state = one_state


def test_the_gaussian_process_is_the_textbooks() -> None:
    space = Space(1)
    family, x = family_named("gp_ucb", space), space.candidates(LIKE).double()
    priority, _ = dice(space, 1)
    params = hyperparameters("gp_ucb", 1)
    state = family.init(params, priority)
    pulled, rewards = torch.tensor([3, 20, 3, 11]), torch.tensor([0.4, -1.0, 0.9, 0.1])
    for candidate, reward in zip(pulled, rewards, strict=True):
        arm = space.candidate_arms(LIKE)[candidate].unsqueeze(0)
        state = family.learn(state, params, torch.tensor(0.0), arm, reward.unsqueeze(0))
    prior = DEVIATION**2 * torch.exp(-((x - x.T) ** 2) / (2 * LENGTH**2))
    seen = prior[pulled][:, pulled] + NOISE**2 * torch.eye(4)
    cross = prior[:, pulled]
    assert torch.allclose(state["mean"][0].double(), cross @ seen.inverse() @ rewards.double(), atol=1e-5)
    assert torch.allclose(state["covariance"][0].double(), prior - cross @ seen.inverse() @ cross.T, atol=1e-5)


def test_the_kernel_mean_is_a_weighted_mean() -> None:
    space = Space(2)
    family, params = family_named("kernel_ucb", space), hyperparameters("kernel_ucb", 1)
    state = family.init(params, dice(space, 1)[0])
    arms, rewards = space.candidate_arms(LIKE)[[0, 40, 41]], torch.tensor([1.0, -0.5, 0.25])
    for arm, reward in zip(arms, rewards, strict=True):
        state = family.learn(state, params, torch.tensor(0.0), arm.unsqueeze(0), reward.unsqueeze(0))
    square = (space.candidates(LIKE).unsqueeze(1) - space.point(arms)).square().sum(-1)
    kernel = (-square / (2 * BANDWIDTH**2)).exp()
    assert torch.allclose(state["weight"][0], PRIOR + kernel.sum(1))
    assert torch.allclose(state["mean"][0], (kernel @ rewards) / (PRIOR + kernel.sum(1)), atol=1e-6)


def test_untried_candidates_come_in_random_order() -> None:
    space = Space(2)
    priority, _ = dice(space, 500)
    first = best_candidate(torch.zeros_like(priority), priority)
    assert (first == priority.argmax(-1)).all()
    # At the size of the largest bounds (a coefficient of 100), rounding must not undo it.
    for bound in (3.0, 2500.0):
        assert (best_candidate(torch.full_like(priority, bound), priority) == first).all()


def test_priority_decides_between_exact_equals_only() -> None:
    bound = torch.tensor([[0.5, 0.5 + 1e-6, 0.5, 0.2]])
    assert best_candidate(bound, torch.tensor([[4.0, 1.0, 3.0, 2.0]])).tolist() == [1]


def test_the_gradient_agent_probes_in_pairs_and_moves_uphill() -> None:
    space = Space(2)
    family = family_named("two_point_gradient", space)
    params = {"probe": torch.tensor([[0.1]]), "learning_rate": torch.tensor([[0.05]])}
    priority, uniform = dice(space, 1)
    state = family.init(params, priority) | {"centre": torch.tensor([[0.5, 0.4]])}
    points = []
    for t, reward in ((0, 1.0), (1, 0.6)):
        arm = family.act(state, params, torch.tensor(float(t)), Draws(uniform[0], uniform[0, :, :0]))
        state = family.learn(state, params, torch.tensor(float(t)), arm, torch.tensor([reward]))
        points.append(space.point(arm)[0])
    first, second = points
    assert torch.allclose((first + second) / 2, torch.tensor([0.5, 0.4]), atol=1 / RESOLUTION)
    assert (first - second).norm().item() == pytest.approx(0.2, abs=2 / RESOLUTION)
    slope = 0.4 / (first - second).norm()
    expected = torch.tensor([0.5, 0.4]) + 0.05 * slope * (first - second) / (first - second).norm()
    assert torch.allclose(state["centre"][0], expected, atol=1e-4)


def test_the_evolution_strategy_keeps_the_better_and_adapts_its_step() -> None:
    space = Space(1)
    family, params = family_named("evolution", space), {"step_size": torch.full((2, 1), 0.1)}
    priority, uniform = dice(space, 2)
    state = family.init(params, priority)
    start = family.act(state, params, torch.tensor(0.0), Draws(uniform[0], uniform[0, :, :0]))
    assert (space.point(start) == state["parent"]).all()
    state = family.learn(state, params, torch.tensor(0.0), start, torch.tensor([0.5, 0.5]))
    tried = family.act(state, params, torch.tensor(1.0), Draws(uniform[1], uniform[1, :, :0]))
    after = family.learn(state, params, torch.tensor(1.0), tried, torch.tensor([0.6, 0.4]))
    assert after["parent"][:, 0].tolist() == [space.point(tried)[0].item(), state["parent"][1].item()]
    assert after["value"][:, 0].tolist() == pytest.approx([0.6, 0.5])
    assert after["scale"][:, 0].tolist() == pytest.approx([0.15, 0.1 * 1.5**-0.25])


def test_mutations_are_standard_normal() -> None:
    uniform = torch.from_numpy(np.random.default_rng(0).random((40_000, 2), dtype=np.float32))
    steps = normal_step(Draws(uniform, uniform[:, :0]), 2)
    assert steps.isfinite().all()
    assert torch.allclose(steps.T.cov(), torch.eye(2), atol=0.03)
    assert steps.mean(0).abs().max() < 0.02
    assert (normal_step(Draws(uniform, uniform[:, :0]), 1) == steps[:, :1]).all()


def test_families_of_one_game_are_unknown_in_the_other() -> None:
    with pytest.raises(InputError, match="agent family of the continuous game must be one of kernel_ucb"):
        family_named("ucb", Space(1))
    with pytest.raises(InputError, match="agent family must be one of ucb"):
        family_named("gp_ucb")
