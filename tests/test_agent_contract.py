"""What every agent family promises. A family in the registry is tested here without a line about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import moderate, of_mermaide
from torch import Tensor

from mermaide_ray.agents import ALL_FAMILIES, FAMILIES, contract, family_named, softmax
from mermaide_ray.agents.base import Draws, Family, Hyperparameter, Params, State
from mermaide_ray.agents.contract import check_named, check_own_families
from mermaide_ray.cli import main
from mermaide_ray.errors import InputError

PULLS = 40
NUM_ARMS = 5

Rewards = Callable[[int, Tensor], Tensor]


def given(family: Family, num: int, spread: bool = True) -> dict[str, Tensor]:
    """Hyperparameters [num, 1] from moderate to half of it, so that agents of a batch differ."""
    factor = torch.linspace(1.0, 0.5 if spread else 1.0, num).unsqueeze(1)
    return {
        name: (factor * value).clamp(family.hyperparameters[name].low, family.hyperparameters[name].high)
        for name, value in moderate(family.name).items()
    }


def dice(family: Family, num: int, num_arms: int, pulls: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Priority [N, A], uniform [T, N, 2], normal [T, N, A or 0]."""
    rng = np.random.default_rng(seed)
    priority = rng.permuted(np.tile(np.arange(1.0, num_arms + 1, dtype=np.float32), (num, 1)), axis=1)
    uniform = rng.random((pulls, num, 2), dtype=np.float32)
    normal = rng.standard_normal((pulls, num, num_arms if family.normals else 0), dtype=np.float32)
    return torch.from_numpy(priority), torch.from_numpy(uniform), torch.from_numpy(normal)


def rewards(t: int, arm: Tensor) -> Tensor:
    """Base reward by arm, and an incentive of +-1 that flips every ten pulls."""
    incentive = torch.where(arm == 1, 1.0, -1.0) * (1 if t // 10 % 2 == 0 else -1)
    return 0.1 * arm % 1.0 + incentive


def offers(t: int, priority: Tensor) -> Tensor:
    """What agents that know the principal's policy are told in the middle fifth of an episode, else nothing; [N, A]."""
    return (torch.arange(priority.shape[1]) == 2).float().expand_as(priority) * (t // 8 == 2)


def play(
    family: Family,
    params: Params,
    luck: tuple[Tensor, Tensor, Tensor],
    reward: Rewards = rewards,
    between: Callable[[State], State] = lambda state: state,
) -> tuple[Tensor, State]:
    """Arms [T, N] and the last state."""
    priority, uniform, normal = luck
    state, arms = family.init(params, priority), []
    for t in range(len(uniform)):
        step = torch.tensor(float(t))
        if family.hear is not None:
            state = family.hear(state, params, offers(t, priority))
        arm = family.act(state, params, step, Draws(uniform[t], normal[t]))
        state = between(family.learn(state, params, step, arm, reward(t, arm)))
        arms.append(arm)
    return torch.stack(arms), state


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def test_registered_under_its_own_name_and_described(family: Family) -> None:
    assert FAMILIES[family.name] is family
    assert family.description
    assert "\n" not in family.description
    assert any(character.isdigit() for character in family.reference), "a reference gives its year"
    for bounds in family.hyperparameters.values():
        assert bounds.low < bounds.high
        assert bounds.meaning


def test_shapes_and_types(family: Family) -> None:
    params, (priority, uniform, normal) = given(family, 3), dice(family, 3, NUM_ARMS, 1)
    state = family.init(params, priority)
    arm = family.act(state, params, torch.tensor(0.0), Draws(uniform[0], normal[0]))
    assert arm.shape == (3,)
    assert arm.dtype == torch.int64
    after = family.learn(state, params, torch.tensor(0.0), arm, torch.zeros(3))
    assert list(state) == list(after)
    for name, value in state.items():
        assert value.dtype == torch.float32
        assert value.ndim == 2
        assert len(value) == 3
        assert after[name].shape == value.shape
        assert after[name].dtype == torch.float32


def test_deterministic_given_the_dice(family: Family) -> None:
    params, luck = given(family, 6), dice(family, 6, NUM_ARMS, PULLS)
    one, other = play(family, params, luck), play(family, params, luck)
    assert torch.equal(one[0], other[0])
    # And the dice matter: an agent that ignored them would be no test of them.
    assert not torch.equal(one[0], play(family, params, dice(family, 6, NUM_ARMS, PULLS, seed=1))[0])


def test_batched_equals_unbatched(family: Family) -> None:
    params, luck = given(family, 7), dice(family, 7, NUM_ARMS, PULLS)
    arms, state = play(family, params, luck)
    for row in range(7):
        alone = {name: value[row : row + 1] for name, value in params.items()}
        part = (luck[0][row : row + 1], luck[1][:, row : row + 1], luck[2][:, row : row + 1])
        arms_alone, state_alone = play(family, alone, part)
        assert torch.equal(arms[:, row], arms_alone[:, 0])
        for name, value in state.items():
            assert torch.equal(value[row], state_alone[name][0])


def test_step_may_differ_from_agent_to_agent(family: Family) -> None:
    params, (priority, uniform, normal) = given(family, 4), dice(family, 4, NUM_ARMS, PULLS)
    _, state = play(family, params, (priority, uniform, normal))
    draws, arm, reward = Draws(uniform[0], normal[0]), torch.tensor([0, 1, 2, 3]), torch.ones(4)
    step = torch.tensor(float(PULLS))
    column = step.expand(4, 1)
    assert torch.equal(family.act(state, params, step, draws), family.act(state, params, column, draws))
    one, other = family.learn(state, params, step, arm, reward), family.learn(state, params, column, arm, reward)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_state_survives_a_round_trip_through_numpy(family: Family) -> None:
    params, luck = given(family, 4), dice(family, 4, NUM_ARMS, PULLS)

    def through_numpy(state: State) -> State:
        return {name: torch.from_numpy(value.numpy().copy()) for name, value in state.items()}

    straight, detour = play(family, params, luck), play(family, params, luck, between=through_numpy)
    assert torch.equal(straight[0], detour[0])
    assert all(torch.equal(straight[1][name], detour[1][name]) for name in straight[1])


def test_functions_change_nothing_that_they_are_given(family: Family) -> None:
    params, (priority, uniform, normal) = given(family, 4), dice(family, 4, NUM_ARMS, PULLS)
    _, state = play(family, params, (priority, uniform, normal))
    draws, arm, reward = Draws(uniform[0], normal[0]), torch.tensor([0, 1, 2, 3]), torch.ones(4)
    step = torch.tensor(float(PULLS))
    handed = [*params.values(), *state.values(), priority, *draws, arm, reward, step]
    copies = [tensor.clone() for tensor in handed]
    family.init(params, priority)
    family.act(state, params, step, draws)
    family.learn(state, params, step, arm, reward)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(handed, copies, strict=True))


@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if family.hear], ids=lambda f: f.name)
def test_knowledge_of_the_policy_steers_at_once_and_leaves_no_trace(family: Family) -> None:
    """An offer on one arm: an informed agent takes it; with the offer gone, it is where it was."""
    assert family.hear is not None
    num, step = 200, torch.tensor(300.0)
    params, (priority, uniform, normal) = given(family, num), dice(family, num, NUM_ARMS, 300)
    _, state = play(family, params, (priority, uniform, normal), lambda t, arm: (arm == 1).float())
    draws, nothing = Draws(uniform[0], normal[0]), torch.zeros(num, NUM_ARMS)
    offer = nothing.clone()
    offer[:, 3] = 10.0
    before = {name: value.clone() for name, value in state.items()}
    told = family.hear(state, params, offer)
    assert {name: value.shape for name, value in told.items()} == {name: value.shape for name, value in state.items()}
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert (family.act(told, params, step, draws) == 3).float().mean() > 0.8
    silent = family.act(family.hear(state, params, nothing), params, step, draws)
    assert torch.equal(family.act(family.hear(told, params, nothing), params, step, draws), silent)
    assert (silent == 3).float().mean() < 0.2


@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if family.perceive], ids=lambda f: f.name)
def test_what_an_agent_perceives_is_a_number_for_each(family: Family) -> None:
    assert family.perceive is not None
    params = given(family, 4)
    agent, principal = torch.tensor([0.0, 1.0, -1.0, 2.0]), torch.tensor([1.0, 0.7, -0.3, 0.0])
    copies = agent.clone(), principal.clone()
    together = family.perceive(params, agent, principal)
    assert together.shape == (4,)
    assert together.dtype == torch.float32
    assert torch.equal(agent, copies[0])
    assert torch.equal(principal, copies[1])
    for row in range(4):
        alone = {name: value[row : row + 1] for name, value in params.items()}
        part = family.perceive(alone, agent[row : row + 1], principal[row : row + 1])
        assert torch.equal(part, together[row : row + 1])


@pytest.mark.parametrize("num_arms", [2, 1000])
def test_arms_in_range_and_state_finite_after_2000_pulls(family: Family, num_arms: int) -> None:
    pulls, num_arms = 2000, max(num_arms, family.least_arms)
    # Moderate agents, and those at both ends of all ranges: three of each.
    params = {
        name: torch.cat([value, torch.full((3, 1), bounds.low), torch.full((3, 1), bounds.high)])
        for name, value in given(family, 3).items()
        for bounds in [family.hyperparameters[name]]
    }
    luck = dice(family, 9, num_arms, pulls)
    # Dice at the ends of their range, for one agent of each three.
    luck[1][:, 1::3] = 0.0
    luck[1][:, 2::3] = 1 - 2**-24

    def incentives(t: int, arm: Tensor) -> Tensor:
        return torch.where(arm == 1, 5.0, -5.0) * (1 if t < pulls // 2 else -1)

    arms, state = play(family, params, luck, incentives)
    assert int(arms.min()) >= 0
    assert int(arms.max()) < num_arms
    for value in state.values():
        assert bool(value.isfinite().all())


@pytest.mark.parametrize("num_arms", [2, 10])
def test_learns_to_prefer_the_arm_that_pays(family: Family, num_arms: int) -> None:
    num, pulls, least = 64, 600, {2: 0.7, 10: 0.4}[num_arms]
    num_arms = max(num_arms, family.least_arms)
    goals = torch.tensor(family.goals_among(num_arms))
    paying = goals[1]
    luck = dice(family, num, num_arms, pulls)
    arms, _ = play(family, given(family, num), luck, lambda t, arm: (arm == paying).float())
    # Of the pulls of arms that may pay, which are all but on the way through a world; chance is 0.5 and 0.1.
    late = arms[-100:]
    assert (late == paying).sum() / torch.isin(late, goals).sum() > least


def test_goals_are_some_of_the_arms(family: Family) -> None:
    for num_arms in (max(2, family.least_arms), 10, 97, 1000):
        goals = family.goals_among(num_arms)
        assert len(set(goals)) == len(goals) >= 2
        assert 0 <= min(goals) < max(goals) < num_arms


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'thompson'"):
        family_named("tompson")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "column": (
        {"act": lambda state, params, step, draws: state["mean"].argmax(-1, keepdim=True)},
        r"`act` of 'faulty:FAMILY' must return int64 \[N\], got int64 \[N, 1\]",
    ),
    "not whole": (
        {"act": lambda state, params, step, draws: state["mean"].argmax(-1).float()},
        r"`act` of 'faulty:FAMILY' must return int64 \[N\], got float32 \[N\]",
    ),
    "out of range": (
        {"act": lambda state, params, step, draws: state["mean"].argmax(-1) + 10},
        r"`act` of 'faulty:FAMILY' must return arms from 0 to 9, got 1\d",
    ),
    "not a number": (
        {"learn": lambda state, params, step, arm, reward: {**state, "mean": state["mean"] * float("nan")}},
        "the state of 'faulty:FAMILY' must hold numbers, got NaN in 'mean' from `learn`",
    ),
    "no state": (
        {"init": lambda params, priority: priority},
        r"`init` of 'faulty:FAMILY' must return a dict of tensors \[N, …\], got float32 \[N, 10\]",
    ),
    "single": (
        {"init": lambda params, priority: {"mean": priority[0]}},
        r"`init` of 'faulty:FAMILY' must return a dict of tensors \[N, …\], got float32 \[10\] in 'mean'",
    ),
    "raises": (
        {"learn": lambda state, params, step, arm, reward: {"mean": params["nowhere"]}},
        r"`learn` of 'faulty:FAMILY' must not fail, got KeyError: 'nowhere' \(.*test_agent_contract.py, line \d+\)",
    ),
    "luck of its own": (
        {"act": lambda state, params, step, draws: torch.randint(3, (len(state["mean"]),))},
        "must take its luck from `draws` alone",
    ),
    "goals that are no arms": (
        {"goals": lambda num_arms: (0, num_arms)},
        r"`goals` of 'faulty:FAMILY' must return 1 or more different arms from 0 to 9, got \[0, 10\]",
    ),
    "no goals": ({"goals": lambda num_arms: ()}, "`goals` of 'faulty:FAMILY' must return 1 or more different arms"),
    "one crowd": (
        {
            "act": lambda state, params, step, draws: (state["mean"] + state["mean"].sum(0).roll(len(draws[0]))).argmax(
                -1
            )
        },
        "must play alike whoever is played beside it",
    ),
}


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a family, softmax with some changes, at faulty:FAMILY."""

    def put(**changes: Any) -> None:
        module = ModuleType("faulty")
        vars(module)["FAMILY"] = replace(softmax.FAMILY, name="faulty", **changes)
        contract._check.cache_clear()  # which knows families by their names
        monkeypatch.setitem(sys.modules, "faulty", module)

    return put


@pytest.mark.parametrize("fault", FAULTS)
def test_a_family_of_the_users_own_that_breaks_the_contract_is_told_what_is_wrong(
    fault: str, faulty: Callable[..., None]
) -> None:
    changes, expected = FAULTS[fault]
    faulty(**changes)
    with pytest.raises(InputError, match=expected):
        check_named("faulty:FAMILY")


def test_a_target_that_moves_needs_goals_to_move_between(faulty: Callable[..., None]) -> None:
    faulty(goals=lambda num_arms: (0,))
    ranges = {"train": {"temperature": [0.1, 0.2]}}
    settings = {
        "agents": {"families": {"faulty:FAMILY": ranges}, "disjoint": []},
        "environment": {"arm_labels": "absolute", "changes": {"target_moves": 1}},
    }
    with pytest.raises(InputError, match="2 or more different arms from 0 to 9 where the target moves, got"):
        check_own_families(of_mermaide(settings))


@pytest.mark.parametrize("name", ALL_FAMILIES)
def test_the_check_of_families_finds_no_fault_with_the_registered_ones(name: str) -> None:
    assert check_named(name) == ""


def test_agents_that_all_begin_with_the_same_arm_are_remarked_upon_and_no_more(faulty: Callable[..., None]) -> None:
    """It may be meant: explore in a fixed order, then commit."""
    faulty(act=lambda state, params, step, draws: (state["mean"] + 1e8).argmax(-1))
    assert "64 agents that know nothing yet all pull arm 0 first" in check_named("faulty:FAMILY")
    # A hyperparameter may have no upper bound.
    steep = Hyperparameter("steepness", 0.0, float("inf"))
    faulty(hyperparameters={**softmax.FAMILY.hyperparameters, "steepness": steep})
    assert check_named("faulty:FAMILY") == ""


@pytest.mark.parametrize("command", ["train", "stock-ppo", "sweep", "agents"])
def test_nothing_starts_with_a_family_that_breaks_the_contract(
    command: str, faulty: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty(**FAULTS["column"][0])
    families = {"faulty:FAMILY": {"train": {"temperature": [0.1, 0.2]}, "test": {"temperature": [0.3, 0.4]}}}
    settings: dict[str, Any] = {"preset": "mermaide", "agents": {"families": families}}
    if command == "sweep":
        settings = {"question": "?", "preset": "mermaide", "settings": {"agents": settings["agents"]}}
    (tmp_path / "mine.yaml").write_text(json.dumps(settings), encoding="utf-8")
    config = {"sweep": [], "agents": ["--check", "faulty:FAMILY"]}.get(command, ["--config"])
    config += [] if command == "agents" else [str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
    assert main([command, *config]) == 2
    assert "`act` of 'faulty:FAMILY' must return int64 [N], got int64 [N, 1]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
