"""Equivariant networks: names of arms mean nothing to them, and their weights fit any number of arms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import of_mermaide, tiny
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from torch import Tensor

from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.algorithm import MermaideConfig, concatenated
from mermaide_ray.cli import main
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment
from mermaide_ray.kshot import KShot
from mermaide_ray.learners.adaptation import adapt, unroll_support
from mermaide_ray.models.architecture import Weights
from mermaide_ray.models.learner_model import LearnerModel
from mermaide_ray.models.method import Method
from mermaide_ray.models.per_arm import FAST, SLOW, PerArm
from mermaide_ray.models.principal import Outputs, replay, shared
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.storage import save_principal
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import View

ARMS, PULLS, TASKS, EPISODES = 5, 12, 3, 2


def _experiment(arms: str = "equivariant", **environment: Any) -> Experiment:
    return tiny(
        environment={"num_arms": ARMS, "horizon": PULLS, **environment},
        world_model={"arms": arms, "encoder_size": 4},
    )


def _weights(method: Method) -> Weights:
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=rng, dtype=torch.float64)
        for name, shape in method.architecture.shapes().items()
    }


def _played(experiment: Experiment, seed: int = 0) -> Trajectories:
    rng, environment = torch.Generator().manual_seed(seed), experiment.environment
    shape = (TASKS, EPISODES, environment.horizon)
    return Trajectories(
        torch.randint(environment.num_arms, shape, generator=rng),
        torch.randint(environment.num_interventions, shape, generator=rng),
        torch.randint(environment.num_arms, (TASKS,), generator=rng),
    )


def _outputs(experiment: Experiment, played: Trajectories, weights: Weights) -> Outputs:
    observations = View(experiment.environment).history(played).observations.double()
    return replay(Method.of(experiment).architecture, shared(weights, TASKS), observations)


def _renamed(played: Trajectories, names: Tensor, chooses: bool) -> Trajectories:
    """The same episodes with arm a called names[a]."""
    interventions = played.interventions
    if chooses:
        interventions = (names[interventions - 1] + 1).where(interventions > 0, interventions)
    return Trajectories(names[played.arms], interventions, names[played.target])


@pytest.mark.parametrize("kind", ["signed", "arm", "graded"])
@pytest.mark.parametrize("arms", ["equivariant", "flat"])
def test_renaming_arms_renames_the_predictions_and_changes_nothing_else(kind: str, arms: str) -> None:
    """By absolute labels any permutation, the target's name included. The flat networks are the control."""
    experiment = _experiment(arms, intervention=kind, arm_labels="absolute")
    weights, played = _weights(Method.of(experiment)), _played(experiment)
    names = torch.tensor([3, 0, 4, 1, 2])
    before = _outputs(experiment, played, weights)
    after = _outputs(experiment, _renamed(played, names, kind == "arm"), weights)
    assert before.prediction is not None
    assert after.prediction is not None
    policy = after.policy_logits
    if kind == "arm":
        policy = torch.cat([policy[..., :1], policy[..., 1:][..., names]], dim=-1)
    same = [
        torch.allclose(one, other, rtol=1e-9, atol=1e-9)
        for one, other in (
            (before.prediction, after.prediction[..., names]),
            (before.policy_logits, policy),
            (before.values, after.values),
            (before.state, after.state),
        )
    ]
    assert same == [arms == "equivariant"] * 4
    assert before.prediction.std(-1).min() > 0


@pytest.mark.parametrize("kind", ["signed", "arm"])
def test_permuting_the_other_arms_permutes_the_predictions(kind: str) -> None:
    """By relative labels the target keeps label 0, whatever the others are called."""
    experiment = _experiment(intervention=kind)
    weights, played = _weights(Method.of(experiment)), _played(experiment)
    # Target 0 throughout, so that an arm's label is its number.
    played = Trajectories(played.arms, played.interventions, torch.zeros_like(played.target))
    names = torch.tensor([0, 3, 1, 4, 2])
    before = _outputs(experiment, played, weights)
    after = _outputs(experiment, _renamed(played, names, kind == "arm"), weights)
    assert before.prediction is not None
    assert after.prediction is not None
    torch.testing.assert_close(before.prediction, after.prediction[..., names])
    policy = after.policy_logits
    if kind == "arm":
        policy = torch.cat([policy[..., :1], policy[..., 1:][..., names]], dim=-1)
    torch.testing.assert_close(before.policy_logits, policy)
    torch.testing.assert_close(before.values, after.values)
    # Control: an arm that changes places with the target changes what is said.
    swapped = Trajectories(torch.tensor([1, 0, 2, 3, 4])[played.arms], played.interventions, played.target)
    assert not torch.allclose(before.values, _outputs(experiment, swapped, weights).values)


def test_equal_arms_are_predicted_alike() -> None:
    """Arms that were never pulled can't be told apart, however many there are."""
    experiment = _experiment(num_arms=9)
    weights, played = _weights(Method.of(experiment)), _played(_experiment(num_arms=4))
    logits = _outputs(
        experiment, Trajectories(played.arms, played.interventions, played.target * 0), weights
    ).prediction
    assert logits is not None
    untried = logits[..., 4:]
    torch.testing.assert_close(untried, untried[..., :1].expand_as(untried))
    assert not torch.allclose(logits[..., 1], logits[..., 4])


@pytest.mark.parametrize("kind", ["signed", "arm", "graded"])
@pytest.mark.parametrize("labels", ["relative", "absolute"])
def test_shapes_of_weights_do_not_depend_on_the_number_of_arms(kind: str, labels: str) -> None:
    def shapes(arms: str, num_arms: int) -> dict[str, tuple[int, ...]]:
        return Method.of(
            _experiment(arms, intervention=kind, arm_labels=labels, num_arms=num_arms)
        ).architecture.shapes()

    assert shapes("equivariant", 2) == shapes("equivariant", 10) == shapes("equivariant", 200)
    assert shapes("flat", 10) != shapes("flat", 200)


def test_a_trained_principal_meets_agents_with_other_numbers_of_arms() -> None:
    """The method at the other game is that of a principal made for it; the inner step works there, too."""
    trained = PrincipalModule(model_config={"experiment": _experiment().to_dict()})
    for num_arms in (2, 30):
        experiment = _experiment(num_arms=num_arms)
        method = trained.method.at(experiment.environment)
        assert method.architecture == Method.of(experiment).architecture
        tasks = AgentDistribution(experiment).tasks("train", range(TASKS))
        kshot = KShot(experiment.environment, method)
        meeting = kshot.meet(tasks, trained.weights(), trained.inner_rates(), 1, EPISODES, Key(0, "train", "meta", 0))
        assert meeting.adaptation is not None
        assert meeting.adaptation.outputs.prediction is not None
        assert meeting.adaptation.outputs.prediction.shape[-1] == num_arms
        assert meeting.adaptation.gradient_norm.min() > 0


@pytest.mark.parametrize("arms", ["equivariant", "flat"])
def test_evaluate_takes_another_number_of_arms_where_the_networks_fit(
    arms: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = _experiment(arms)
    arrays = PrincipalModule(model_config={"experiment": experiment.to_dict()}).arrays()
    save_principal(tmp_path / "principal", experiment, arrays)
    elsewhere = ["--set", "environment.num_arms=7", "--out", str(tmp_path / "out")]
    code = main(["evaluate", str(tmp_path / "principal"), "--tasks", "2", *elsewhere])
    printed = capsys.readouterr()
    if arms == "flat":
        assert code == 2
        assert "`environment` must keep the num_arms that the principal was trained with (5), got 7" in printed.err
        return
    assert code == 0
    rows = pd.read_parquet(tmp_path / "out" / "rows.parquet")
    mine = rows[rows["method"] == experiment.name]
    assert set(mine["k"]) == {0, 1}
    assert np.allclose(mine["wm_nll_uniform"], np.log(7))
    assert mine["wm_nll_after"].notna().all()


def test_marks_are_what_was_seen_of_each_arm() -> None:
    """One episode by hand: pulls 1, 1, 0 with an intervention on the second; then another episode begins."""
    experiment = _experiment(num_arms=2, horizon=4)
    architecture = Method.of(experiment).architecture
    assert architecture.per_arm is not None
    played = Trajectories(torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[0, 1, 0, 0]]]), torch.tensor([0]))
    observations = View(experiment.environment).history(played).observations.double()
    marks = architecture.per_arm.over(observations)
    assert marks.shape == (1, 4, 1, 5, 2)
    assert not marks[0, 0].any()
    pulls, paid, fast, slow, last_paid = marks[0, 3, 0]
    assert pulls.tolist() == [1, 2]
    assert paid.tolist() == [0, 1]
    torch.testing.assert_close(fast, (1 - FAST) * torch.tensor([1, FAST + FAST**2], dtype=torch.float64))
    torch.testing.assert_close(slow, (1 - SLOW) * torch.tensor([1, SLOW + SLOW**2], dtype=torch.float64))
    assert last_paid.tolist() == [0, 1]
    twice = architecture.per_arm.over(torch.cat([observations, observations], dim=1))
    torch.testing.assert_close(twice[:, 4:], marks)


@pytest.mark.parametrize("carried", [False, True])
def test_marks_that_are_made_once_serve_every_replay(carried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = _experiment()
    meta = experiment.meta_learning.model_copy(update={"carry_state": carried})
    method = Method.of(experiment.model_copy(update={"meta_learning": meta}))
    history = View(experiment.environment).history(_played(experiment))
    weights = shared({name: value.float() for name, value in _weights(method).items()}, TASKS)
    memory = method.architecture.per_arm
    assert memory is not None
    expected = unroll_support(method, weights, history)
    known = replace(history, marks=memory.over(history.observations))
    share = slice(1, None, 2)
    assert known.tasks(share).marks is not None
    monkeypatch.setattr(PerArm, "over", lambda *_: pytest.fail("made again"))
    outputs = unroll_support(method, weights, known)
    for name in ("prediction", "policy_logits", "values", "state"):
        assert torch.equal(getattr(outputs, name), getattr(expected, name)), name


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("kind", ["equivariant", "learner"])
def test_a_learner_makes_the_marks_once_per_update(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"arms": "equivariant"} if kind == "equivariant" else {"kind": "learner"}
    experiment = of_mermaide({"world_model": settings, "meta_learning": {"meta_batch_size": 8}})
    memory: Any = PerArm if kind == "equivariant" else LearnerModel
    calls, over = [], memory.over
    monkeypatch.setattr(memory, "over", lambda self, seen: calls.append(len(seen)) or over(self, seen))
    algorithm = MermaideConfig.of(experiment).build_algo()
    try:
        tasks = algorithm.distribution.meta_batch(0, 8)
        columns = concatenated(algorithm._meet(0, tasks), tasks)
        batch = MultiAgentBatch({PRINCIPAL: SampleBatch(columns)}, env_steps=experiment.env_steps_per_iteration)
        calls.clear()
        algorithm._update(batch, progress=0.0)
        assert calls == [8, 8]  # of support and query, whatever the number of minibatches
    finally:
        algorithm.stop()


def test_one_agents_adaptation_does_not_notice_how_its_arms_are_called() -> None:
    """The inner step included: adapted weights are the same under any names."""
    experiment = _experiment(arm_labels="absolute")
    method = Method.of(experiment)
    kshot, weights, played = KShot(experiment.environment, method), _weights(method), _played(experiment)
    rates = {name: torch.tensor(0.1, dtype=torch.float64) for name in method.adaptable()}
    leaves = {name: value.requires_grad_() for name, value in weights.items()}
    one, other = (
        adapt(method, shared(leaves, TASKS), rates, experience_of(kshot.environment, each), create_graph=False).weights
        for each in (played, _renamed(played, torch.tensor([3, 0, 4, 1, 2]), chooses=False))
    )
    for name in method.adaptable():
        torch.testing.assert_close(one[name], other[name], msg=name)
        assert not torch.allclose(one[name][0], weights[name]), name
