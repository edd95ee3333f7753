"""The parametric model of the learner: exact for the agents it describes, inferred from what was seen of them alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from torch import Tensor

from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.errors import InputError
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.kshot import KShot
from mermaide_ray.lockstep import Hidden, Seen, deal_for, play
from mermaide_ray.models import learner_model
from mermaide_ray.models.architecture import LATENTS, WORLD_MODEL_HEAD
from mermaide_ray.models.learner_model import NUM_FEATURES, LearnerModel
from mermaide_ray.models.method import Method
from mermaide_ray.models.posterior import LogDensity, Luck
from mermaide_ray.models.principal import replay, shared
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.trajectory import History, Trajectories
from mermaide_ray.view import View

TASKS = 60
UCB, EPSILON = {"ucb_coefficient": [0.3, 1.5]}, {"epsilon": [0.05, 0.5]}


class Early:
    """Intervenes at random in the first 20 pulls, and never after."""

    def begin(self, num_episodes: int) -> None:
        pass

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        return ((seen.uniform < 0.7) & (seen.step < 20)).long()


def _experiment(**sections: Any) -> Experiment:
    return tiny(world_model={"kind": "learner"}, **sections)


def _game(**environment: Any) -> Experiment:
    families = {"ucb": {"train": UCB}, "epsilon_greedy": {"train": EPSILON}}
    return validate(
        {
            "environment": {"reward_noise": 0.0, **environment},
            "agents": {"families": families, "disjoint": []},
            "world_model": {"kind": "learner"},
        },
        where="tests",
    )


def _met(experiment: Experiment, episodes: int = 1) -> tuple[LearnerModel, Tasks, History]:
    tasks = AgentDistribution(experiment).tasks("train", range(TASKS))
    dice = deal_for(experiment.environment, Key(0, "train", "test", 0), tasks, episodes)
    played = play(experiment.environment, tasks, episodes, dice, Early())
    model = Method.of(experiment).architecture.learner_model
    assert model is not None
    return model, tasks, View(experiment.environment).history(played)


def _is_ucb(tasks: Tasks) -> Tensor:
    return torch.tensor([name == "ucb" for name in tasks.family_names()])


def _truth(tasks: Tasks) -> Tensor:
    """The latents that describe each agent exactly."""
    base = torch.stack([row.roll(-int(target)) for row, target in zip(tasks.base, tasks.target, strict=True)])
    is_ucb = _is_ucb(tasks)
    bonus = torch.where(is_ucb, tasks.params["ucb_coefficient"], 1e-6)
    lapse = torch.where(is_ucb, 1e-6, tasks.params["epsilon"])
    untried = torch.where(is_ucb, 10.0, 0.0)
    others = [bonus.log(), untried, torch.full_like(bonus, -20.0), lapse.logit()]
    return torch.cat([base, torch.stack(others, dim=1)], dim=1)


def _of_pulls(log_p: Tensor, history: History) -> Tensor:
    return log_p.gather(-1, history.labels.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("kind", ["signed", "bonus", "graded"])
def test_true_latents_explain_every_pull(kind: str) -> None:
    """UCB to the tie-break; epsilon-greedy up to its lapses, whose rate is the one that is known."""
    model, tasks, history = _met(_game(intervention=kind))
    log_p = model.log_p(_truth(tasks)[:, None, None], model.over(history.observations))
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(log_p.shape[:-1]), rtol=1e-4, atol=1e-4)
    chosen, is_ucb = _of_pulls(log_p, history).squeeze(2), _is_ucb(tasks)
    assert (log_p.squeeze(2).argmax(-1) == history.labels.squeeze(2))[is_ucb, 10:].float().mean() > 0.99
    # Untried arms are all alike to UCB: 1/10, 1/9, ... 1.
    torch.testing.assert_close(
        chosen[is_ucb, :10].exp(), 1 / torch.arange(10.0, 0, -1).expand(int(is_ucb.sum()), 10), rtol=1e-3, atol=1e-4
    )
    epsilon = tasks.params["epsilon"][~is_ucb]
    greedy = (chosen[~is_ucb, 20:].exp() > 0.5 * (1 - epsilon).unsqueeze(1)).float().mean(1)
    assert (greedy - (1 - 0.9 * epsilon)).abs().mean() < 0.05


def test_latents_are_found_from_one_episode_whatever_the_range() -> None:
    """How often an agent lapses, which of the two ways it explores, and as good an explanation as the truth."""
    model, tasks, history = _met(_game(reward_noise=0.05))
    found, is_ucb = model.infer(history.observations, history.labels), _is_ucb(tasks)
    account = model.over(history.observations)
    lapse = found[:, -1].sigmoid()
    assert lapse[is_ucb].median() < 0.03
    assert torch.corrcoef(torch.stack([lapse, tasks.params["epsilon"]])[:, ~is_ucb])[0, 1] > 0.7
    assert (
        (found[:, 11] > 1) == is_ucb
    ).float().mean() > 0.95  # only to UCB is an untried arm worth more than a good one
    bonus = found[:, 10].exp()
    assert torch.corrcoef(torch.stack([bonus, tasks.params["ucb_coefficient"]])[:, is_ucb])[0, 1] > 0.7

    def explained(latents: Tensor) -> Tensor:
        return _of_pulls(model.log_p(latents[:, None, None], account), history).mean((1, 2))

    truth = _truth(tasks)
    truth[:, 12] = -3.5  # reward noise blurs what the principal can know of the values
    assert explained(found).mean() > explained(truth).mean() - 0.02
    assert explained(found).mean() > explained(model.prior().expand(TASKS, -1)).mean() + 0.3


def test_more_episodes_leave_no_less_explained() -> None:
    """The search goes on until the latents are found: five episodes are explained as well as each one by itself."""
    model, _, history = _met(_game(reward_noise=0.05), episodes=5)
    account = model.over(history.observations)

    def explained(latents: Tensor, episodes: slice) -> Tensor:
        log_p = model.log_p(latents[:, None, None], account[:, :, episodes])
        return _of_pulls(log_p, History(history.observations, history.labels[:, :, episodes], history.actions)).mean()

    found = model.infer(history.observations, history.labels)
    for episode in range(5):
        one = slice(episode, episode + 1)
        alone = model.infer(history.observations[:, :, one], history.labels[:, :, one])
        others = slice(episode + 1, episode + 2) if episode < 4 else slice(0, 1)
        assert explained(found, others) > explained(alone, others)


def test_each_agent_is_inferred_by_itself() -> None:
    model, _, history = _met(_game(num_arms=4, horizon=30), episodes=2)
    together = model.infer(history.observations, history.labels)
    some = history.tasks(slice(5, 8))
    torch.testing.assert_close(model.infer(some.observations, some.labels), together[5:8], rtol=1e-3, atol=1e-3)


def test_agents_are_inferred_in_parts_where_memory_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, history = _met(_game(num_arms=4, horizon=30), episodes=2)
    together = model.infer(history.observations, history.labels)
    sizes: list[int] = []
    infer = LearnerModel._infer
    monkeypatch.setattr(LearnerModel, "_infer", lambda *given: (sizes.append(len(given[1])), infer(*given))[1])
    monkeypatch.setattr(learner_model, "_MOST_HELD", 3 * 2 * 30 * 2 * 4)  # three tasks
    torch.testing.assert_close(model.infer(history.observations, history.labels), together, rtol=1e-3, atol=1e-3)
    assert max(sizes) == 3
    assert sum(sizes) == len(together)


def test_sampling_holds_so_many_tasks_at_once_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tasks of five long episodes with 200 arms, all at once, would take some 20 GB."""
    held = []

    def wander(log_density: LogDensity, start: Tensor, deviation: Tensor, luck: Luck) -> Tensor:
        held.append(start.shape[:2].numel() * 500 * 5 * 200)
        return start

    monkeypatch.setattr(learner_model, "wander", wander)
    model = LearnerModel(200, 500, ((0.0, 0.0), (1.0, -1.0)))
    observations, labels = torch.zeros(1, 500, 5, 203), torch.zeros(1, 500, 5, dtype=torch.int64)
    luck = Luck.dealt([np.random.default_rng(task) for task in range(5)], 16, model.size)
    latents = model.prior() + torch.arange(5.0).unsqueeze(1) / 100
    found = model.sample(observations.expand(5, -1, -1, -1), labels.expand(5, -1, -1), latents, luck)
    assert max(held) <= 2**24
    each = [luck.tasks(slice(task, task + 1)) for task in range(5)]
    alone = torch.cat(
        [model.sample(observations, labels, one.unsqueeze(0), own) for one, own in zip(latents, each, strict=True)]
    )
    torch.testing.assert_close(found, alone)


def test_account_is_what_was_pulled_and_paid_at_each_arm() -> None:
    """By hand: pulls of labels 1, 0, 0 with interventions none, full, half; the first observation has seen nothing."""
    experiment = _experiment(
        environment={"intervention": "graded", "graded_sizes": [0.5, 1], "delta": 2, "num_arms": 3}
    )
    model = Method.of(experiment).architecture.learner_model
    assert model is not None
    played = Trajectories(torch.tensor([[[0, 2, 2, 1]]]), torch.tensor([[[0, 2, 1, 0]]]), torch.tensor([2]))
    observations = View(experiment.environment).history(played).observations
    account = model.over(observations)
    assert account.shape == (1, 4, 1, 2, 3)
    assert not account[0, 0].any()
    assert account[0, 3, 0].tolist() == [[2, 1, 0], [3, 0, 0]]
    step_by_step = model.before(observations, 1, 1)
    for t in range(4):
        step_by_step = model.advance(step_by_step, observations[:, t])
        torch.testing.assert_close(step_by_step, account[:, t])
    missed = Trajectories(torch.tensor([[[0, 1]]]), torch.tensor([[[2, 0]]]), torch.tensor([2]))
    assert model.over(View(experiment.environment).history(missed).observations)[0, 1, 0].tolist() == [
        [0, 1, 0],
        [0, -2, 0],
    ]


def test_what_the_policy_reads_by_hand() -> None:
    """Two pulls of the target, paid 1 each; one of label 1, unpaid; no bonus."""
    model = LearnerModel(3, 10, ((0.0, 0.0), (1.0, -1.0)))
    latents = torch.tensor([0.2, 0.6, 0.1, -20.0, 0.3, 0.0, -20.0])
    account = torch.tensor([[2.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    log_p = model.log_p(latents, account)
    # Values 1.2, 0.6, and 0.3 for the arm not tried.
    torch.testing.assert_close(log_p, (torch.tensor([1.2, 0.6, 0.3]) / 1.02).log_softmax(-1))
    again, told = model.predict(latents, account)
    assert torch.equal(again, log_p)
    assert told.shape == (NUM_FEATURES,)
    torch.testing.assert_close(told, torch.tensor([log_p[0].exp(), 0.6, 0.6, -0.4, 2 / 3, 0.3]))


def _outputs(experiment: Experiment, change: tuple[str, ...] = ()) -> Tensor:
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    weights = {name: value.detach().clone() for name, value in module.weights().items()}
    for name in WORLD_MODEL_HEAD:
        weights[name].zero_()
    for name in change:
        weights[name].add_(0.7)
    played = Trajectories(torch.tensor([[[0, 2, 2, 1]]]), torch.tensor([[[0, 1, 1, 0]]]), torch.tensor([2]))
    observations = View(experiment.environment).history(played).observations
    return replay(module.method.architecture, shared(weights, 1), observations).policy_logits


def test_the_policy_sees_the_core_through_the_latents_alone() -> None:
    learner, recurrent = _experiment(), tiny()
    core = ("core_input", "core_bias")
    torch.testing.assert_close(_outputs(learner, core), _outputs(learner))
    assert not torch.allclose(_outputs(learner, ("world_model_bias",)), _outputs(learner))
    assert not torch.allclose(_outputs(recurrent, core), _outputs(recurrent))  # the control


@pytest.mark.parametrize("inner_steps", [0, 1])
def test_support_changes_what_is_assumed_of_the_agent_and_nothing_trains_it(inner_steps: int) -> None:
    experiment = _experiment(meta_learning={"inner_steps": inner_steps})
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    kshot = KShot(experiment.environment, module.method)
    tasks = AgentDistribution(experiment).tasks("train", range(5))
    with torch.no_grad():
        module.parameters_by_name["policy_output_weight"].mul_(100)  # so that actions depend on what it reads
    meeting = kshot.meet(tasks, module.weights(), module.inner_rates(), 1, 2, Key(0, "train", "meta", 0))
    assert meeting.adaptation is not None
    assert meeting.support is not None
    history = experience_of(kshot.environment, meeting.support).history
    learner = module.method.architecture.learner_model
    assert learner is not None
    inferred = learner.infer(history.observations, history.labels)
    assert torch.equal(meeting.adaptation.weights[LATENTS], inferred)
    assert (inferred - learner.prior()).abs().amax(1).min() > 0.1
    assert not module.parameters_by_name[LATENTS].requires_grad
    # The query is played with them.
    shrugging = kshot.meet(tasks, module.weights(), module.inner_rates(), 0, 2, Key(0, "train", "meta", 0))
    assert not torch.equal(meeting.query.interventions, shrugging.query.interventions)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"environment": {"intervention": "arm"}}, r"`environment.intervention` must be signed, bonus or graded"),
        ({"environment": {"arm_labels": "absolute"}}, r"`environment.arm_labels` must be relative where"),
        ({"environment": {"sight": {"delay": 2}}}, r"`environment.sight.delay` must be 0 .* got 2"),
        ({"environment": {"sight": {"noise": 0.2}}}, r"`environment.sight.noise` must be 0"),
        ({"environment": {"sight": {"share": 0.5}}}, r"`environment.sight.share` must be 1"),
        ({"environment": {"changes": {"target_moves": 1}}}, r"`environment.changes.target_moves` must be 0"),
        ({"environment": {"game": "continuous"}}, r"`environment.game` must be arms where"),
        ({"world_model": {"enabled": False}}, r"`world_model.enabled` must be true where"),
        ({"world_model": {"arms": "equivariant"}}, r"`world_model.arms` must be flat where"),
        ({"meta_learning": {"carry_state": True}}, r"`meta_learning.carry_state` must be false where"),
    ],
)
def test_games_that_the_model_does_not_describe_are_refused(settings: dict[str, Any], said: str) -> None:
    world_model = {"kind": "learner", **settings.get("world_model", {})}
    with pytest.raises(InputError, match=said):
        validate({**settings, "world_model": world_model}, where="tests")
