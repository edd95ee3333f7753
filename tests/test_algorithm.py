"""MERMAIDE as an RLlib algorithm: who does the work changes nothing, settings make the variants, and it learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from conftest import tiny
from numpy.typing import NDArray
from ray import tune

import mermaide_ray.algorithm
from mermaide_ray.algorithm import Mermaide, MermaideConfig, flat_metrics
from mermaide_ray.contender import Contender
from mermaide_ray.errors import InputError
from mermaide_ray.evaluation import Evaluation
from mermaide_ray.experiment import Experiment, preset_names, variant
from mermaide_ray.kshot import KShot
from mermaide_ray.metrics import METRICS, SCALARS, validation_key
from mermaide_ray.models.architecture import CORE, LATENTS, WORLD_MODEL_HEAD
from mermaide_ray.sweep import tuning
from mermaide_ray.sweep.checks import rising

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ITERATIONS = 3
Arrays = dict[str, NDArray[Any]]


@dataclass
class Run:
    """What a run did: the trajectories of each iteration, the weights at the end, and each learner's.

    And the weights after one iteration more, before which the first runner lost those that it had.
    """

    columns: list[Arrays]
    weights: Arrays
    ranks: list[Arrays]
    told: list[dict[str, float]]
    later: Arrays


def _run(experiment: Experiment) -> Run:
    run = Run([], {}, [], [], {})
    concatenated = mermaide_ray.algorithm.concatenated

    def recorded(*args: Any) -> Arrays:
        run.columns.append(concatenated(*args))
        return run.columns[-1]

    def fall_behind(runner: Any) -> None:
        runner.weights_version -= 1
        for parameter in runner.module.weights().values():
            parameter.data.mul_(5)

    algorithm = MermaideConfig.of(experiment).build_algo()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mermaide_ray.algorithm, "concatenated", recorded)
            run.told = [flat_metrics(algorithm.train()) for _ in range(ITERATIONS)]
        run.weights = algorithm.principal().arrays()
        ranks = algorithm.learner_group.foreach_learner(
            lambda learner: learner.module["principal"].unwrapped().arrays()
        )
        run.ranks = [each.get() for each in ranks]
        if algorithm.env_runner_group.num_remote_env_runners():
            algorithm.env_runner_group.foreach_env_runner(fall_behind, local_env_runner=False, remote_worker_ids=[1])
        algorithm.train()
        run.later = algorithm.principal().arrays()
    finally:
        algorithm.stop()
    return run


def _workers(runners: int, learners: int) -> Experiment:
    return tiny(env_runners={"num_env_runners": runners, "num_learners": learners})


@pytest.fixture(scope="module")
def alone(local_ray: None) -> Run:
    """Sampled and learned in the driver."""
    return _run(_workers(0, 0))


@pytest.fixture(scope="module", params=[(1, 1), (2, 2)], ids=["1 runner, 1 learner", "2 runners, 2 learners"])
def shared_out(local_ray: None, request: pytest.FixtureRequest) -> Run:
    return _run(_workers(*request.param))


def _assert_close(one: Arrays, other: Arrays, atol: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=atol, err_msg=name)


def _assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_trajectories_do_not_depend_on_who_sampled_and_who_learned(alone: Run, shared_out: Run) -> None:
    assert len(shared_out.columns) == ITERATIONS
    for mine, theirs in zip(shared_out.columns, alone.columns, strict=True):
        _assert_same(mine, theirs)
    # Control: iterations differ from one another, so that equality says something.
    assert not np.array_equal(alone.columns[0]["query_arms"], alone.columns[1]["query_arms"])


def test_learned_weights_do_not_depend_on_who_sampled_and_who_learned(alone: Run, shared_out: Run) -> None:
    _assert_close(shared_out.weights, alone.weights)
    fresh = MermaideConfig.of(tiny()).get_rl_module_spec().build().arrays()
    moved = [np.abs(alone.weights[name] - fresh[name]).max() for name in fresh if not name.startswith("log_inner_lr_")]
    assert min(moved) > 1e-3


def test_learners_stay_equal_to_one_another(shared_out: Run) -> None:
    for rank in shared_out.ranks:
        _assert_same(rank, shared_out.weights)


def test_metrics_do_not_depend_on_who_sampled_and_who_learned(alone: Run, shared_out: Run) -> None:
    for mine, theirs in zip(shared_out.told, alone.told, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if key not in ("throughput/env_steps_per_s", "throughput/sample_s", "throughput/update_s"):
                assert value == pytest.approx(theirs[key], abs=1e-4), key


def test_what_is_told_is_what_happened(alone: Run) -> None:
    """Metrics against the trajectories themselves."""
    environment = tiny().environment
    for iteration, (told, columns) in enumerate(zip(alone.told, alone.columns, strict=True), start=1):
        hits = columns["query_arms"] == columns["target"][:, None, None]
        acted = columns["query_interventions"] > 0
        assert told["principal/success_rate"] == pytest.approx(hits.mean())
        assert told["principal/interventions"] == pytest.approx(acted.sum(2).mean())
        expected = (hits - environment.cost_weight * acted).sum(2).mean()
        assert told["principal/return"] == pytest.approx(expected, abs=1e-4)
        assert told["throughput/env_steps"] == iteration * 8 * (1 + 2) * 10
        assert told["throughput/bytes_per_env_step"] < 3


def test_what_is_shipped_tells_the_learner_of_moving_targets_and_of_what_was_seen(local_ray: None) -> None:
    run = _run(tiny(environment={"changes": {"target_moves": 2}, "sight": {"share": 0.5}}))
    for told, columns in zip(run.told, run.columns, strict=True):
        hits = columns["query_arms"] == columns["moving"][:, None]
        rewards = hits - 0.3 * (columns["query_interventions"] > 0)
        assert told["principal/return"] == pytest.approx(rewards.sum(2).mean(), rel=1e-5)
        assert told["principal/success_rate"] == pytest.approx(hits.mean(), rel=1e-5)
        assert columns["query_shown"].dtype == columns["support_shown"].dtype == columns["moving"].dtype == np.uint8
        assert (columns["query_shown"] == 4).any()
        assert 0 < told["world_model/nll_after"] < 3


def test_every_scalar_is_told_and_every_metric_told_is_known(alone: Run) -> None:
    expected = {metric.key for metric in SCALARS if not metric.key.startswith("validation/")}
    assert alone.told[0].keys() == expected


# Presets as they are, and single settings that make a variant.
VARIANTS: dict[str, Experiment] = {name: variant(tiny(), name) for name in preset_names()} | {
    "clipped, 3 epochs": tiny(training={"objective": "clipped", "epochs": 3}),
    "learned inner rates": tiny(meta_learning={"learn_inner_lr": True}),
    "first order, dice": tiny(meta_learning={"order": "first", "estimator": "dice"}),
    "leave one out": tiny(meta_learning={"adaptation_episodes": 2}, training={"baseline": "leave_one_out"}),
    "core without policy gradient": tiny(world_model={"policy_gradient": False}),
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_variant_is_a_setting(name: str) -> None:
    """Each runs, tells finite metrics that are known, and moves exactly the weights that it has a use for."""
    experiment = VARIANTS[name]
    algorithm = MermaideConfig.of(experiment).build_algo()
    try:
        before = algorithm.principal().arrays()
        told = flat_metrics(algorithm.train())
        after = algorithm.principal().arrays()
    finally:
        algorithm.stop()
    assert told.keys() <= METRICS.keys()
    assert all(math.isfinite(value) for value in told.values()), told
    assert ("world_model/nll_after" in told) == experiment.world_model.enabled
    assert ("adaptation/support_return" in told) == (experiment.meta_learning.adaptation_episodes > 0)
    rises = {key for key in told if not METRICS[key].falls}
    assert rises == {key for key in rising(experiment) if not key.startswith("validation/")}
    for key in before:
        is_rate = key.startswith("log_inner_lr_")
        moves = key != LATENTS and (not is_rate or experiment.meta_learning.learn_inner_lr)
        assert (not np.array_equal(before[key], after[key])) == moves, key
    assert any(key in before for key in WORLD_MODEL_HEAD) == experiment.world_model.enabled
    assert set(CORE) <= before.keys()


def test_validation_in_training_does_without_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it scores is the policy; the final scores of the same principal are planned."""

    class Planned(Exception): ...

    def planned(*_: Any) -> None:
        raise Planned

    experiment = variant(tiny(), "mermaide_learner")
    monkeypatch.setattr("mermaide_ray.kshot.plan", planned)
    algorithm = MermaideConfig.of(experiment).build_algo()
    try:
        assert math.isfinite(algorithm.evaluate()[validation_key(1)])
        module = algorithm.principal()
    finally:
        algorithm.stop()
    kshot, rates = KShot(experiment.environment, module.method), module.inner_rates()
    contender = Contender("mine", 0, kshot, module.weights(), rates).at(experiment)
    with pytest.raises(Planned):
        Evaluation(experiment, "validation", 4).contender(contender, (1,))


def test_runner_that_missed_the_last_weights_gets_them_with_its_share(alone: Run, shared_out: Run) -> None:
    _assert_close(shared_out.later, alone.later)


def test_continuing_from_a_checkpoint_is_never_having_stopped(alone: Run, tmp_path: Path) -> None:
    """Also the optimizer's moments, the position in the stream of tasks, and the falling rates."""
    algorithm = MermaideConfig.of(tiny()).build_algo()
    algorithm.train()
    algorithm.save_to_path(str(tmp_path))
    algorithm.stop()
    restored = Mermaide.from_checkpoint(str(tmp_path))
    try:
        told = [flat_metrics(restored.train()) for _ in range(ITERATIONS - 1)]
        assert restored.meta_iteration == ITERATIONS
        _assert_same(restored.principal().arrays(), alone.weights)
    finally:
        restored.stop()
    timings = {"throughput/env_steps_per_s", "throughput/sample_s", "throughput/update_s"}
    for mine, theirs in zip(told, alone.told[1:], strict=True):
        assert {key: mine[key] for key in mine.keys() - timings} == {key: theirs[key] for key in mine.keys() - timings}


def test_fluent_sections_make_the_experiment() -> None:
    config = (
        MermaideConfig()
        .environment(num_arms=4, horizon=10)
        .agents(families={"ucb": {"train": {"ucb_coefficient": [0.1, 0.2]}, "test": {"ucb_coefficient": [1, 2]}}})
        .meta_learning(meta_batch_size=16)
        .world_model(hidden_size=9)
        .training(meta_lr=0.01, gamma=0.9)
        .evaluation(k=[0, 2])
        .env_runners(num_env_runners=2)
        .learners(num_learners=2)
        .debugging(seed=5)
    )
    experiment = config.experiment
    assert (experiment.environment.num_arms, experiment.training.meta_lr, experiment.training.gamma) == (4, 0.01, 0.9)
    assert list(experiment.agents.families) == ["ucb"]
    assert (experiment.meta_learning.meta_batch_size, experiment.world_model.hidden_size) == (16, 9)
    assert (experiment.evaluation.k, experiment.seed) == ((0, 2), 5)
    assert (experiment.env_runners.num_env_runners, experiment.env_runners.num_learners) == (2, 2)
    assert MermaideConfig.of(experiment).experiment == experiment


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda config: config.training(meta_lrr=0.1), "no key 'meta_lrr' (did you mean 'meta_lr'?)"),
        (lambda config: config.environment(num_arm=4), "no key 'num_arm' (did you mean 'num_arms'?)"),
        (lambda config: config.evaluation(task=4), "no key 'task' (did you mean 'tasks'?)"),
        (lambda config: config.agents(base=[0, 1]), "section `agents` has no key 'base'"),
        (lambda config: config.world_model(hidden=4), "section `world_model` has no key 'hidden'"),
        (
            lambda config: config.meta_learning(inner_lr=-1),
            "`meta_learning.inner_lr` must be greater than or equal to 0",
        ),
        (lambda config: config.meta_learning(meta_batch_size=9).learners(num_learners=2), "must be a multiple of"),
        (lambda config: config.training(lr=1e-3), ".training(lr=…) must be given as meta_lr"),
    ],
)
def test_wrong_setting_is_refused_in_one_sentence_before_anything_starts(wrong: Any, expected: str) -> None:
    with pytest.raises(InputError) as refused:
        wrong(MermaideConfig()).validate()
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tune_finds_the_algorithm_by_name_and_searches_in_its_settings(tmp_path: Path) -> None:
    config = MermaideConfig.of(tiny()).training(meta_lr=tune.grid_search([2e-2]))
    results = tune.Tuner(
        tuning.NAME,
        param_space=config,
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), name="grid", stop={"training_iteration": 1}, verbose=0, checkpoint_config=None
        ),
    ).fit()
    assert tuning.NAME == "MERMAIDE"
    assert not results.errors
    (result,) = results
    assert flat_metrics(result.metrics)["principal/meta_lr"] == pytest.approx(2e-2)
    assert tiny().training.meta_lr != 2e-2


TOY: dict[str, Any] = {
    "meta_learning": {"meta_batch_size": 16, "query_episodes": 4},
    "training": {"env_steps": 30 * 16 * 5 * 10, "meta_lr": 0.02, "entropy_weight": 0.0},
}


def _learned(experiment: Experiment) -> dict[str, float]:
    """Metrics of the last iterations, averaged, after having spent the budget."""
    algorithm = MermaideConfig.of(experiment).build_algo()
    try:
        told = [flat_metrics(algorithm.train()) for _ in range(experiment.num_iterations)][-5:]
    finally:
        algorithm.stop()
    return {key: float(np.mean([each[key] for each in told])) for key in told[0]}


def test_learns_never_to_intervene_where_it_never_pays() -> None:
    """An intervention costs more than all that an episode can bring: the optimum is to do nothing, at return T / A."""
    told = _learned(tiny(environment={"num_arms": 4, "horizon": 10, "cost_weight": 20.0}, **TOY))
    assert told["principal/interventions"] < 0.1


def test_learns_always_to_intervene_where_it_is_free() -> None:
    """Each intervention moves the agent towards the target and costs nothing: the optimum is to intervene always."""
    told = _learned(tiny(environment={"num_arms": 4, "horizon": 10, "cost_weight": 0.0}, **TOY))
    assert told["principal/interventions"] > 9
    assert told["principal/success_rate"] > 0.5


def test_session_is_shared() -> None:
    """Nothing above has brought Ray down, or joined another one."""
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 4
