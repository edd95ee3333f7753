"""The families as RLlib policies: fed one observation at a time, a module pulls the arms that its family would."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import STOCK_FAMILIES, moderate, stock_families
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModule, validate_module_id
from torch import Tensor

from mermaide_ray.agents import FAMILIES, rl_module
from mermaide_ray.agents.base import Draws, Family, Hyperparameter
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.agents.rl_module import AgentObservation, BanditModule, agent_id, agent_modules, policy_mapping
from mermaide_ray.baselines.stock_run import StockPrincipal
from mermaide_ray.lockstep import deal_for, play
from mermaide_ray.noise import Key, deal
from mermaide_ray.view import view_of

PULLS, NUM, NUM_ARMS = 30, 5, 4


def module_for(name: str) -> BanditModule:
    size = AgentObservation(FAMILIES[name], NUM_ARMS)
    return BanditModule(
        observation_space=size.space(), model_config={"family": name, "num_candidates": NUM_ARMS, "max_seq_len": PULLS}
    )


def reward(t: int, arm: Tensor) -> Tensor:
    return torch.where(arm == t // 10, 1.0, -0.5)


@pytest.mark.parametrize("name", STOCK_FAMILIES)
def test_module_pulls_the_arms_that_its_family_pulls(name: str) -> None:
    family = FAMILIES[name]
    dice = deal(Key(0, "train", "test", 0), range(NUM), 1, PULLS, NUM_ARMS, [family.normals] * NUM)
    params = {key: torch.full((NUM, 1), value) for key, value in moderate(name).items()}

    state, expected = family.init(params, dice.priority), []
    for t in range(PULLS):
        step = torch.tensor(float(t))
        arm = family.act(state, params, step, Draws(dice.uniform[t], dice.normal[t]))
        state = family.learn(state, params, step, arm, reward(t, arm))
        expected.append(arm)

    layout, module = AgentObservation(family, NUM_ARMS), module_for(name)
    rows = [layout.begin(moderate(name), dice.priority[n].numpy()) for n in range(NUM)]
    # What the connectors feed in at the start of an episode: the unbatched initial state, stacked.
    fed = {key: torch.stack([value] * NUM) for key, value in module.get_initial_state().items()}
    for t in range(PULLS):
        for n, row in enumerate(rows):
            layout.show_dice(row, dice.uniform[t, n].numpy(), dice.normal[t, n].numpy())
        # [B, 1, size]: RLlib adds the time rank.
        batch = {Columns.OBS: torch.from_numpy(np.stack(rows)).unsqueeze(1), Columns.STATE_IN: fed}
        out = module.forward_exploration(batch)
        assert torch.equal(out[Columns.ACTIONS], expected[t])
        fed = out[Columns.STATE_OUT]
        for n, row in enumerate(rows):
            arm = out[Columns.ACTIONS][n]
            layout.show_pull(row, t + 1, int(arm), float(reward(t, arm)))


def test_a_new_episode_forgets_whatever_state_is_handed_in() -> None:
    layout, module = AgentObservation(FAMILIES["ucb"], NUM_ARMS), module_for("ucb")
    row = torch.from_numpy(layout.begin(moderate("ucb"), np.array([2.0, 4.0, 1.0, 3.0], dtype=np.float32)))
    stale = {"mean": torch.full((1, NUM_ARMS), 7.0), "count": torch.full((1, NUM_ARMS), 9.0)}
    out = module.forward_inference({Columns.OBS: row[None, None], Columns.STATE_IN: stale})
    assert out[Columns.ACTIONS].tolist() == [1]
    assert out[Columns.STATE_OUT]["count"].tolist() == [[0.0] * NUM_ARMS]


@pytest.mark.parametrize("name", STOCK_FAMILIES)
def test_observation_reads_back_what_was_written(name: str) -> None:
    family = FAMILIES[name]
    layout = AgentObservation(family, NUM_ARMS)
    priority = np.array([2, 4, 1, 3], dtype=np.float32)
    normal = np.array([0.1, -0.2, 0.3, -0.4], dtype=np.float32)[: NUM_ARMS if family.normals else 0]
    row = layout.begin(moderate(name), priority)
    assert not layout.read(torch.from_numpy(row)[None]).valid.item()
    layout.show_dice(row, np.array([0.25, 0.75], dtype=np.float32), normal)
    layout.show_pull(row, 8, 3, -1.5)
    assert row in layout.space()
    shown = layout.read(torch.from_numpy(row)[None])
    assert shown.valid.item()
    assert (shown.last_arm.item(), shown.last_reward.item(), shown.step.item()) == (3, -1.5, 8)
    assert {key: value.item() for key, value in shown.params.items()} == pytest.approx(moderate(name))
    assert shown.priority[0].tolist() == priority.tolist()
    assert shown.draws.uniform.tolist() == [[0.25, 0.75]]
    assert shown.draws.normal[0].tolist() == normal.tolist()


def test_a_family_without_state_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Family(
        name="first",
        description="always arm 0",
        reference="none",
        init=lambda params, priority: {},
        act=lambda state, params, step, draws: (draws.uniform[:, 0] * 0).long(),
        learn=lambda state, params, step, arm, reward: {},
        hyperparameters={"unused": Hyperparameter("nothing", 0.0, 1.0)},
    )
    monkeypatch.setattr(rl_module, "family_named", lambda name, space: first)
    module = BanditModule(model_config={"family": "first", "num_candidates": 2, "max_seq_len": 1})
    assert not module.is_stateful()
    # Without state there is no time rank either.
    out = module.forward_inference({Columns.OBS: torch.zeros(3, AgentObservation(first, 2).size)})
    assert out[Columns.ACTIONS].tolist() == [0, 0, 0]


def test_agents_are_not_trained() -> None:
    with pytest.raises(NotImplementedError, match="policies_to_train"):
        module_for("ucb").forward_train({})


def test_every_family_maps_to_a_module_with_a_valid_id() -> None:
    modules = agent_modules(stock_families(environment={"arm_labels": "absolute"}))
    for name in STOCK_FAMILIES:
        assert policy_mapping(agent_id(name), episode=None) in modules
    assert policy_mapping("principal") == "principal"
    validate_module_id(policy_mapping(agent_id("my_lab.agents:Softmax")), error=True)


class Greedy:
    """A module that chooses itself, as DQN's does."""

    def is_stateful(self) -> bool:
        return False

    def forward_inference(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {Columns.ACTIONS: batch[Columns.OBS][:, -1].gt(0).long()}


def test_a_stock_module_without_probabilities_plays_what_it_chooses() -> None:
    experiment = stock_families()
    tasks = AgentDistribution(experiment).tasks("test", range(3))
    dice = deal_for(experiment.environment, Key(0, "test", "x", 0), tasks, 1)
    player = StockPrincipal(cast(RLModule, Greedy()), view_of(experiment.environment))
    interventions = play(experiment.environment, tasks, 1, dice, player).interventions
    # The last of the observation is the time.
    assert interventions[..., 0].eq(0).all()
    assert interventions[..., 1:].eq(1).all()
