"""Meeting agents: what the runner plays and adapts is what the learner replays, whoever else is in the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import all_families, tiny
from ray.rllib.core.columns import Columns
from torch import Tensor

from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment
from mermaide_ray.kshot import KShot, Meeting
from mermaide_ray.learners.adaptation import Adaptation, adapt, unroll, unroll_support
from mermaide_ray.lockstep import deal_for, play
from mermaide_ray.models.architecture import LATENTS
from mermaide_ray.models.categorical import choose
from mermaide_ray.models.principal import shared
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.player import NetworkPrincipal
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import View

KEY = Key(0, "train", "meta", 3)
TASKS, EPISODES = 7, 3


class SharpModule(PrincipalModule):
    """Weights so large that actions depend on what was seen, and that adaptation shows."""

    def setup(self) -> None:
        super().setup()
        with torch.no_grad():
            for name, parameter in self.weights().items():
                parameter.mul_(30 if name == "policy_output_weight" else 3)
                if name == "context":
                    parameter.fill_(0.1)


def _module(experiment: Experiment) -> PrincipalModule:
    return SharpModule(model_config={"experiment": experiment.to_dict()})


def _tasks(experiment: Experiment, count: int = TASKS) -> Tasks:
    return AgentDistribution(experiment).tasks("train", range(count))


def _meet(experiment: Experiment, k: int, tasks: Tasks | None = None) -> Meeting:
    module = _module(experiment)
    kshot = KShot(experiment.environment, module.method)
    tasks = _tasks(experiment) if tasks is None else tasks
    return kshot.meet(tasks, module.weights(), module.inner_rates(), k, EPISODES, KEY)


def _support(meeting: Meeting) -> Trajectories:
    assert meeting.support is not None
    return meeting.support


def _adaptation(meeting: Meeting) -> Adaptation:
    assert meeting.adaptation is not None
    return meeting.adaptation


def _same(one: Trajectories, other: Trajectories) -> bool:
    return torch.equal(one.arms, other.arms) and torch.equal(one.interventions, other.interventions)


EQUIVARIANT: dict[str, Any] = {"arms": "equivariant", "encoder_size": 4}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "mermaide": {},
    "two steps on two episodes": {"meta_learning": {"inner_steps": 2, "adaptation_episodes": 2}},
    "dice, heads": {"meta_learning": {"estimator": "dice", "adapt": "heads"}},
    "leave one out": {"meta_learning": {"adaptation_episodes": 2}, "training": {"baseline": "leave_one_out"}},
    "carried state": {"meta_learning": {"carry_state": True, "adaptation_episodes": 2}},
    "rl2": {"meta_learning": {"carry_state": True, "inner_steps": 0}, "world_model": {"enabled": False}},
    "context": {"meta_learning": {"adapt": "context", "context_size": 4, "inner_lr": 0.3}},
    "learned rates": {"meta_learning": {"learn_inner_lr": True}},
    "absolute labels, choosing arms": {"environment": {"arm_labels": "absolute", "intervention": "arm"}},
    "gridworld": {
        "environment": {"num_arms": 9, "arm_labels": "absolute"},
        "agents": {
            "families": {
                name: {
                    "train": {
                        "epsilon": [0.1, 0.1],
                        "learning_rate": [0.5, 0.5],
                        "discount": [0.9, 0.9],
                        "optimism": [0.3, 0.3],
                    }
                }
                for name in ("grid_q_learning", "grid_dyna_q")
            },
            "disjoint": [],
        },
    },
    "relative labels, choosing arms": {"environment": {"intervention": "arm"}},
    "partial sight": {"environment": {"sight": {"noise": 0.2, "delay": 2, "share": 0.6}}},
    "announced moves, choosing arms": {"environment": {"intervention": "arm", "changes": {"target_moves": 2}}},
    "moves unannounced": {"environment": {"changes": {"target_moves_at": [3, 7], "announced": False}}},
    "moves, carried state": {
        "environment": {"intervention": "arm", "changes": {"target_moves": 2, "announced": False}},
        "meta_learning": {"carry_state": True, "adaptation_episodes": 2},
    },
    "base means that change": {"environment": {"changes": {"base_drift": 0.1, "base_switches": 1}}},
    "partial sight, carried state": {
        "environment": {"sight": {"share": 0.5}, "arm_labels": "absolute"},
        "meta_learning": {"carry_state": True, "adaptation_episodes": 2},
    },
    "equivariant, partial sight": {
        "environment": {"sight": {"noise": 0.2, "delay": 2, "share": 0.6}},
        "world_model": EQUIVARIANT,
    },
    "learner model": {"world_model": {"kind": "learner"}},
    "learner model, no inner step": {"world_model": {"kind": "learner"}, "meta_learning": {"inner_steps": 0}},
    "equivariant": {"world_model": EQUIVARIANT},
    "equivariant, choosing arms by absolute labels": {
        "environment": {"arm_labels": "absolute", "intervention": "arm"},
        "world_model": EQUIVARIANT,
    },
    "equivariant, carried state": {
        "meta_learning": {"carry_state": True, "adaptation_episodes": 2},
        "world_model": EQUIVARIANT,
    },
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_runners_inner_step_is_the_learners_replay(variant: str) -> None:
    """From nothing but small integers, and as part of an autograd graph."""
    experiment = tiny(**VARIANTS[variant])
    module = _module(experiment)
    kshot = KShot(experiment.environment, module.method)
    meeting = _meet(experiment, experiment.meta_learning.adaptation_episodes)
    support = _support(meeting)
    columns = (support.arms, support.interventions, support.target, support.shown, support.moving)
    shipped = Trajectories(*(None if x is None else torch.from_numpy(x.numpy().copy()) for x in columns))
    weights = module.weights()
    experience = experience_of(kshot.environment, shipped)
    if (learner := module.method.architecture.learner_model) is not None:
        history = experience.history
        experience = replace(experience, latents=learner.infer(history.observations, history.labels))
    replayed = adapt(module.method, shared(weights, TASKS), module.inner_rates(), experience, create_graph=True)
    assert support.arms.dtype == torch.uint8
    for name, value in _adaptation(meeting).weights.items():
        torch.testing.assert_close(value, replayed.weights[name].detach(), atol=1e-6, rtol=0, msg=name)
    moved = [name for name in weights if not torch.equal(replayed.weights[name][0], weights[name])]
    inferred = [LATENTS] if module.method.architecture.learner_model else []
    assert sorted(moved) == sorted([*module.method.adaptable(), *inferred])
    if replayed.state is not None:
        state = _adaptation(meeting).state
        assert state is not None
        torch.testing.assert_close(state, replayed.state.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_learners_probabilities_are_those_that_the_episodes_were_played_with(variant: str) -> None:
    """Choosing by the replayed policy and the same dice gives every intervention: support unadapted, query adapted."""
    experiment = tiny(**VARIANTS[variant])
    module, environment, k = _module(experiment), experiment.environment, experiment.meta_learning.adaptation_episodes
    kshot, tasks = KShot(environment, module.method), _tasks(experiment)
    meeting = _meet(experiment, k)

    def replayed(played: Trajectories, which: str, weights: dict[str, Tensor], state: Tensor | None = None) -> Tensor:
        episodes = played.arms.shape[1]
        dice = deal_for(environment, KEY.within(which), tasks, episodes)
        with torch.no_grad():
            history = experience_of(kshot.environment, played).history
            if which == "support":
                logits = unroll_support(module.method, weights, history).policy_logits
            else:
                logits = unroll(module.method, weights, history, state).policy_logits
        uniform = dice.principal.view(environment.horizon, TASKS, episodes).transpose(0, 1)
        actions = choose(logits, uniform).transpose(1, 2)
        told = played.targets if environment.changes.announced else played.target[:, None, None]
        return View(environment).intervention(actions, told)

    adaptation = _adaptation(meeting)
    support = replayed(_support(meeting), "support", shared(module.weights(), TASKS))
    query = replayed(meeting.query, "query", adaptation.weights, adaptation.state)
    assert torch.equal(support, _support(meeting).interventions.long())
    assert torch.equal(query, meeting.query.interventions.long())
    if experiment.meta_learning.inner_steps:
        # Control: the unadapted policy would have done something else.
        unadapted = replayed(meeting.query, "query", shared(module.weights(), TASKS), adaptation.state)
        assert not torch.equal(unadapted, query)


def test_inner_rate_of_zero_changes_nothing() -> None:
    experiment = tiny(meta_learning={"inner_lr": 0})
    module = _module(experiment)
    meeting, unadapted = _meet(experiment, 1), _meet(experiment, 0)
    assert unadapted.support is None
    assert unadapted.adaptation is None
    for name, value in _adaptation(meeting).weights.items():
        assert torch.equal(value, module.weights()[name].detach().expand_as(value)), name
    assert _same(meeting.query, unadapted.query)
    # Control: with a rate, the query is played otherwise, by the same luck.
    assert not _same(_meet(tiny(), 1).query, unadapted.query)


@pytest.mark.parametrize("carry", [False, True])
def test_a_task_does_not_notice_the_others(carry: bool) -> None:
    """Neither who else is met, nor in which order, nor how families are interleaved."""
    experiment = all_families(
        environment={"horizon": 10},
        world_model={"hidden_size": 8, "policy_hidden": 8},
        meta_learning={"carry_state": carry, "inner_lr": 0.5},
    )
    tasks = _tasks(experiment, 12)
    together = _meet(experiment, 2, tasks)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(12))
    for chosen in (shuffled, torch.tensor([4]), torch.tensor([9, 1, 6])):
        some = _meet(experiment, 2, tasks.select(chosen))
        for mine, theirs in ((some.support, together.support), (some.query, together.query)):
            assert mine is not None
            assert theirs is not None
            assert torch.equal(mine.arms, theirs.arms[chosen])
            assert torch.equal(mine.interventions, theirs.interventions[chosen])
        for name, value in _adaptation(some).weights.items():
            torch.testing.assert_close(value, _adaptation(together).weights[name][chosen], atol=1e-6, rtol=0)


def test_first_support_episode_is_the_same_however_many_follow() -> None:
    one, two = (_support(_meet(tiny(), k)) for k in (1, 2))
    assert _same(two.episodes(slice(0, 1)), one)
    assert not _same(two.episodes(slice(1, 2)), one)


def test_query_meets_the_same_luck_whatever_k() -> None:
    """Where nothing adapts, the query is the same after any number of support episodes."""
    experiment = tiny(meta_learning={"inner_lr": 0})
    zero, one, two = (_meet(experiment, k).query for k in (0, 1, 2))
    assert _same(zero, one)
    assert _same(zero, two)


def test_carried_state_plays_support_episodes_one_after_the_other() -> None:
    """The first is as without; the second goes on from the state in which the first ended."""
    sections = {"meta_learning": {"adaptation_episodes": 2, "inner_steps": 0}}
    plain = tiny(**sections)
    carrying = tiny(meta_learning={**sections["meta_learning"], "carry_state": True})
    afresh, carried = _meet(plain, 2), _meet(carrying, 2)
    assert _same(_support(carried).episodes(slice(0, 1)), _support(afresh).episodes(slice(0, 1)))
    assert not torch.equal(_support(carried).interventions[:, 1], _support(afresh).interventions[:, 1])
    # The query goes on from there, too.
    state = _adaptation(carried).state
    assert state is not None
    assert _adaptation(afresh).state is None
    assert state.shape == (TASKS, 1, 8)
    assert not torch.equal(carried.query.interventions, afresh.query.interventions)


# 4 arms: arm and intervention share one table of inputs; 100 (or 40 to choose from) are too many for that.
@pytest.mark.parametrize("labels", ["relative", "absolute"])
@pytest.mark.parametrize(
    ("kind", "num_arms"),
    [("signed", 4), ("bonus", 4), ("arm", 4), ("graded", 4), ("signed", 100), ("arm", 40), ("graded", 100)],
)
def test_lookups_are_the_module_on_observation_vectors(kind: str, num_arms: int, labels: str) -> None:
    environment = {"intervention": kind, "arm_labels": labels, "num_arms": num_arms}
    _assert_lookups_are_the_module(tiny(environment=environment))


def test_lookups_are_the_module_where_a_context_shifts_the_biases() -> None:
    _assert_lookups_are_the_module(tiny(meta_learning={"adapt": "context", "context_size": 4}))


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("labels", ["relative", "absolute"])
def test_lookups_are_the_module_where_the_target_moves(labels: str, announced: bool) -> None:
    changes = {"target_moves": 2, "announced": announced}
    _assert_lookups_are_the_module(tiny(environment={"changes": changes, "arm_labels": labels, "intervention": "arm"}))


@pytest.mark.parametrize("labels", ["relative", "absolute"])
def test_lookups_are_the_module_with_partial_sight(labels: str) -> None:
    sight = {"noise": 0.2, "delay": 1, "share": 0.5}
    _assert_lookups_are_the_module(tiny(environment={"sight": sight, "arm_labels": labels}))


@pytest.mark.parametrize("labels", ["relative", "absolute"])
@pytest.mark.parametrize("kind", ["signed", "arm", "graded"])
def test_equivariant_networks_play_as_the_module_does(kind: str, labels: str) -> None:
    environment = {"intervention": kind, "arm_labels": labels}
    _assert_lookups_are_the_module(tiny(environment=environment, world_model=EQUIVARIANT))


@pytest.mark.parametrize("kind", ["signed", "bonus", "graded"])
def test_principal_with_a_learner_model_plays_as_the_module_does(kind: str) -> None:
    _assert_lookups_are_the_module(tiny(environment={"intervention": kind}, world_model={"kind": "learner"}))


def _assert_lookups_are_the_module(experiment: Experiment) -> None:
    module, tasks, view = _module(experiment), _tasks(experiment), View(experiment.environment)
    weights = {name: value.detach().unsqueeze(0) for name, value in module.weights().items()}
    principal = NetworkPrincipal(module.method, view, weights)
    dice = deal_for(experiment.environment, KEY, tasks, EPISODES)
    played = play(experiment.environment, tasks, EPISODES, dice, principal)
    history = view.history(played)
    assert len(history.actions.unique()) > 1
    state = {
        name: torch.from_numpy(value).expand(TASKS * EPISODES, *value.shape)
        for name, value in module.get_initial_state().items()
    }
    for t in range(experiment.environment.horizon):
        seen = torch.cat([history.observations[:, t].flatten(0, 1), dice.principal[t].unsqueeze(1)], dim=1)
        out = module._forward({Columns.OBS: seen.unsqueeze(1), Columns.STATE_IN: state})
        state = out[Columns.STATE_OUT]
        assert torch.equal(out[Columns.ACTIONS].view(TASKS, EPISODES), history.actions[:, t]), t
    torch.testing.assert_close(principal.state.reshape(-1, 8), state["core"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_arms", [4, 100])
def test_weights_of_a_task_play_its_episodes_alone(num_arms: int) -> None:
    """One set of weights per task gives what each set gives to its task alone, from a state of its own."""
    experiment = tiny(environment={"num_arms": num_arms})
    tasks, view = _tasks(experiment, 3), View(experiment.environment)
    modules = [_module(experiment.model_copy(update={"seed": seed})) for seed in range(3)]
    each = [{name: value.detach().unsqueeze(0) for name, value in module.weights().items()} for module in modules]
    stacked = {name: torch.cat([weights[name] for weights in each]) for name in each[0]}
    state = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))

    def played(weights: dict[str, Tensor], some: Tasks, initial: Tensor) -> Trajectories:
        dice = deal_for(experiment.environment, KEY, some, EPISODES)
        principal = NetworkPrincipal(modules[0].method, view, weights, initial)
        return play(experiment.environment, some, EPISODES, dice, principal)

    together = played(stacked, tasks, state)
    for task in range(3):
        rows = slice(task, task + 1)
        alone = played(each[task], tasks.select(torch.tensor([task])), state[rows])
        assert _same(alone, together.tasks(rows))
        other = played(each[(task + 1) % 3], tasks.select(torch.tensor([task])), state[rows])
        assert not _same(other, together.tasks(rows))
