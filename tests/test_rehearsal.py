"""Rehearsal: the policy is trained on with imagined agents, task by task, and with nothing but them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.imagination import Imagination
from mermaide_ray.kshot import KShot
from mermaide_ray.learners.adaptation import Adaptation
from mermaide_ray.lockstep import Principal, deal_for, play
from mermaide_ray.models.architecture import LATENTS, POLICY, VALUE, Weights
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.player import NetworkPrincipal
from mermaide_ray.rehearsal import rehearse
from mermaide_ray.view import view_of

TASKS, KEY = 6, Key(0, "train", "test", 0)
# Adapted by gradients, by inference, through a context, carrying a state, reading each arm, and without any of these.
POLICIES: dict[str, dict[str, Any]] = {
    "learner": {"world_model": {"kind": "learner"}},
    "mermaide": {"world_model": {"kind": "recurrent"}},
    "context": {"world_model": {"kind": "recurrent"}, "meta_learning": {"adapt": "context"}},
    "rl2": {"world_model": {"kind": "recurrent"}, "meta_learning": {"carry_state": True, "inner_steps": 0}},
    "equivariant": {"world_model": {"kind": "recurrent", "arms": "equivariant"}},
    "reinforce": {
        "world_model": {"kind": "recurrent", "enabled": False},
        "meta_learning": {"adaptation_episodes": 0, "inner_steps": 0},
    },
}


class _Met:
    """Agents of a small game, an untrained principal that has met each of them once, and what it can imagine."""

    def __init__(self, policy: str, wanted: list[int] | None = None, horizon: int = 20) -> None:
        settings = {"environment": {"horizon": horizon, "num_arms": 4}, "evaluation": {"planning": True}}
        self.experiment: Experiment = validate(settings | POLICIES[policy], where="tests")
        module = PrincipalModule(model_config={"experiment": self.experiment.to_dict()})
        self.game, self.method = self.experiment.environment, module.method
        self.tasks: Tasks = AgentDistribution(self.experiment).tasks("train", wanted or range(TASKS))
        self.weights, self.rates = module.weights(), module.inner_rates()
        kshot = KShot(self.game, self.method)
        meeting = kshot.meet(self.tasks, self.weights, self.rates, 1, 1, KEY)
        assert meeting.support is not None
        assert meeting.adaptation is not None
        self.adaptation: Adaptation = meeting.adaptation
        history = experience_of(kshot.environment, meeting.support).history
        latents = self.adaptation.weights.get(LATENTS)
        self.imagination = Imagination.of(self.game, history, self.tasks.ids, latents)

    def rehearse(self, rounds: int) -> Weights:
        return rehearse(self.imagination, self.method, self.adaptation, rounds, KEY)

    def principal(self, weights: Weights) -> Principal:
        return NetworkPrincipal(self.method, view_of(self.game), weights, self.adaptation.state)


@pytest.mark.parametrize("policy", POLICIES)
def test_policy_and_value_alone_are_rehearsed_and_no_task_depends_on_another(policy: str) -> None:
    together = _Met(policy)
    alone = _Met(policy, [4, 1])
    before = {name: value.clone() for name, value in together.adaptation.weights.items()}
    rehearsed, by_itself = together.rehearse(3), alone.rehearse(3)
    for name, value in rehearsed.items():
        assert not value.requires_grad
        assert torch.equal(together.adaptation.weights[name], before[name]), name
        assert torch.equal(value, before[name]) == (name not in (*POLICY, *VALUE)), name
        torch.testing.assert_close(by_itself[name], value[[4, 1]], atol=1e-5, rtol=1e-4, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in together.rehearse(0).items())


@pytest.mark.parametrize("policy", ["learner", "reinforce"])
def test_a_rehearsed_policy_earns_more_with_the_agents_themselves(policy: str) -> None:
    """An untrained policy intervenes half of the time; with these agents that is worth less than what is learned."""
    met = _Met(policy, horizon=40)
    dice, incentives = deal_for(met.game, Key(0, "train", "query", 0), met.tasks, 16), incentives_of(met.game)
    before, after = (
        incentives.rewards_of(play(met.game, met.tasks, 16, dice, met.principal(weights))).sum(2).mean()
        for weights in (met.adaptation.weights, met.rehearse(40))
    )
    assert after > before + 1


@pytest.mark.parametrize("policy", ["learner", "rl2", "reinforce"])
def test_the_query_is_played_by_the_rehearsed_policy_where_there_is_planning(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mermaide_ray.planning._MARGIN", 1e9)  # no rule is ever good enough
    met = _Met(policy)

    def interventions(rehearsals: int | None) -> torch.Tensor:
        kshot = KShot(met.game, met.method, rehearsals)
        return kshot.meet(met.tasks, met.weights, met.rates, 1, 4, KEY).query.interventions

    plain, rehearsed = interventions(None), interventions(10)
    assert torch.equal(interventions(0), plain)
    assert (rehearsed != plain).float().mean() > 0.01
