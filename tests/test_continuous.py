"""The continuous game: incentives by nearness, the principal's view, and the whole path from settings to scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import of_mermaide, tiny
from torch import Tensor

from mermaide_ray.agent_settings import CONTINUOUS_FAMILIES
from mermaide_ray.agents import POINT_FAMILIES
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.algorithm import MermaideConfig, flat_metrics
from mermaide_ray.baselines import SCORED_BESIDE, baseline_named
from mermaide_ray.baselines.oracles import PrivilegedRules
from mermaide_ray.baselines.rule_grid import Rule
from mermaide_ray.calibration import CALIBRATION_BINS, point_calibration, prediction_scores
from mermaide_ray.calibration_bins import calibration_error, of_points
from mermaide_ray.cli import main
from mermaide_ray.config_file import explained_yaml
from mermaide_ray.contender import Contender
from mermaide_ray.environment import Environment
from mermaide_ray.envs.continuous import PointIncentives
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.errors import InputError
from mermaide_ray.evaluation import Evaluation, Results
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment, check_game, load_experiment, validate
from mermaide_ray.kshot import KShot
from mermaide_ray.learners.maml import meta_loss
from mermaide_ray.lockstep import deal_for, play
from mermaide_ray.models.method import Method
from mermaide_ray.models.mixture import MixtureHead
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.points import Space
from mermaide_ray.report.pictures import calibration as draw_calibration
from mermaide_ray.report.study import read_study
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import PointView, view_of

KEY = Key(0, "train", "test", 0)

dimensions = pytest.mark.parametrize("dimensions", [1, 2])


def environment(**settings: Any) -> Environment:
    return Environment(game="continuous", **settings)


def continuous(dimensions: int = 1, **sections: Any) -> Experiment:
    """`tiny`, in the continuous game."""
    return tiny(environment={"game": "continuous", "dimensions": dimensions}, **sections)


def played(experiment: Experiment, baseline: str, tasks: range, episodes: int = 2) -> Trajectories:
    chosen = AgentDistribution(experiment).tasks("train", tasks)
    dice = deal_for(experiment.environment, KEY, chosen, episodes)
    principal = baseline_named(baseline)(experiment, "train", chosen, episodes)
    return play(experiment.environment, chosen, episodes, dice, principal)


def at(space: Space, *point: float) -> Tensor:
    return space.arm(torch.tensor([point]))


@pytest.mark.parametrize(
    ("kind", "near", "far"), [("signed", 2.0, -2.0), ("bonus", 2.0, 0.0), ("graded", 0.5 * 2.0, -0.5 * 2.0)]
)
def test_incentives_lie_between_hit_and_miss_by_nearness(kind: str, near: float, far: float) -> None:
    env = environment(intervention=kind, delta=2.0, graded_sizes=(0.5, 1.0), target_width=0.1, dimensions=2)
    incentives, space = incentives_of(env), Space(2)
    assert isinstance(incentives, PointIncentives)
    target, intervention = at(space, 0.5, 0.5), torch.tensor([1])
    assert incentives.incentive(intervention, target, target).item() == pytest.approx(near)
    assert incentives.incentive(intervention, at(space, 0.0, 1.0), target).item() == pytest.approx(far, abs=1e-6)
    assert incentives.incentive(torch.tensor([0]), target, target).item() == 0
    arm = at(space, 0.58, 0.44)
    distance = (space.point(arm) - space.point(target)).norm().item()
    nearness = math.exp(-(distance**2) / (2 * 0.1**2))
    assert incentives.value(arm, target).item() == pytest.approx(nearness, rel=1e-5)
    expected = far + (near - far) * nearness
    assert incentives.incentive(intervention, arm, target).item() == pytest.approx(expected, rel=1e-5)


def test_the_principal_is_paid_by_nearness_less_costs() -> None:
    space = Space(1)
    target, near, far = at(space, 0.3), at(space, 0.36), at(space, 0.9)
    one, none = torch.tensor([1]), torch.tensor([0])
    incentives = incentives_of(environment(target_width=0.1, cost_weight=0.3))
    nearness = incentives.value(near, target)
    assert incentives.principal_reward(none, near, target) == nearness
    assert incentives.principal_reward(one, near, target).item() == pytest.approx(nearness.item() - 0.3)
    assert [bool(incentives.success(at(space, x), target)) for x in (0.3, 0.395, 0.41, 0.21, 0.19)] == [
        True,
        True,
        False,
        True,
        False,
    ]
    paid = incentives_of(environment(target_width=0.1, cost="paid", delta=3.0))
    assert paid.cost(one, target, target).item() == 1
    assert paid.cost(one, near, target).item() == pytest.approx(2 * nearness.item() - 1, abs=1e-6)
    assert paid.cost(one, far, target).item() == 0
    assert paid.cost(none, target, target).item() == 0


@dimensions
def test_the_principal_sees_the_last_point_the_target_and_no_more(dimensions: int) -> None:
    env = environment(dimensions=dimensions, horizon=10)
    view, space = view_of(env), Space(dimensions)
    assert isinstance(view, PointView)
    last, target = at(space, *[0.2] * dimensions), at(space, *[0.25] * dimensions)
    seen = view.observation(last, torch.tensor([1]), target, torch.tensor([4]))[0]
    nearness = incentives_of(env).value(last, target)
    expected = [*space.point(last)[0], *nearness, 0, 1, *space.point(target)[0], 0.4]
    assert seen.tolist() == pytest.approx([float(x) for x in expected])
    first = view.observation(torch.tensor([-1]), torch.tensor([-1]), target, torch.tensor([0]))[0]
    assert first.tolist() == [*[0.0] * (dimensions + 3), *space.point(target)[0].tolist(), 0.0]
    assert len(seen) == view.observation_size


@dimensions
def test_histories_are_rebuilt_from_small_integers(dimensions: int) -> None:
    experiment = continuous(dimensions)
    episodes = played(experiment, "random", range(6))
    assert episodes.arms.dtype == (torch.int16 if dimensions == 1 else torch.int32)
    history = view_of(experiment.environment).history(episodes)
    batch, count, time = episodes.arms.shape
    assert history.labels.shape == (batch, time, count, dimensions)
    space = Space(dimensions)
    assert (space.arm(history.labels) == episodes.arms.transpose(1, 2)).all()
    assert (history.observations[:, 1:, :, :dimensions] == history.labels[:, :-1]).all()
    assert ((history.observations >= 0) & (history.observations <= 1)).all()


@dimensions
def test_an_episode_depends_neither_on_its_neighbours_nor_on_the_run(dimensions: int) -> None:
    experiment = continuous(dimensions)
    together = played(experiment, "always", range(12))
    again = played(experiment, "always", range(12))
    assert (together.arms == again.arms).all()
    for task in (0, 7):
        alone = played(experiment, "always", range(task, task + 1))
        assert (alone.arms[0] == together.arms[task]).all()
        assert alone.target[0] == together.target[task]
    other = validate(experiment.to_dict() | {"seed": 1}, where="tests")
    assert (played(other, "always", range(12)).arms != together.arms).float().mean() > 0.5


@pytest.mark.parametrize("family", list(POINT_FAMILIES))
def test_permanent_interventions_bring_agents_to_the_target(family: str) -> None:
    # With the reach of the target widened: those that climb must feel it from where they start.
    experiment = of_mermaide(
        {
            "environment": {"game": "continuous", "target_width": 0.25},
            "agents": {"families": {family: CONTINUOUS_FAMILIES[family]}},
        },
    )
    incentives = incentives_of(experiment.environment)

    def late_nearness(baseline: str) -> float:
        episodes = played(experiment, baseline, range(60), 1)
        late = slice(-20, None)
        return float(incentives.value(episodes.arms[..., late].long(), episodes.target[:, None, None]).mean())

    assert late_nearness("always") > 0.7
    assert late_nearness("always") > late_nearness("never") + 0.2


def test_pushing_back_whoever_moves_away_steers_the_gradient_agent_from_afar() -> None:
    experiment = of_mermaide(
        {
            "environment": {"game": "continuous"},
            "agents": {"families": {"two_point_gradient": CONTINUOUS_FAMILIES["two_point_gradient"]}},
        },
    )
    env, tasks = experiment.environment, AgentDistribution(experiment).tasks("train", range(60))
    dice = deal_for(env, KEY, tasks, 1)
    returns = {
        rule: incentives_of(env)
        .rewards_of(play(env, tasks, 1, dice, PrivilegedRules(env, [rule] * 60, 1)))
        .sum(2)
        .mean()
        .item()
        for rule in (Rule(100), Rule(0), Rule(100, next_arm="away"), Rule(100, next_arm="other"))
    }
    always, never, away, other = returns.values()
    assert away > max(always, never, other) + 10


def test_its_agents_are_the_default_and_those_of_arms_are_refused() -> None:
    experiment = load_experiment(preset="mermaide", overrides={"environment.game": "continuous"})
    assert set(experiment.agents.families) == set(CONTINUOUS_FAMILIES) == set(POINT_FAMILIES)
    changed = load_experiment(
        preset="mermaide",
        overrides={"environment.game": "continuous", "agents.families.evolution.train.step_size": [0.1, 0.2]},
    )
    assert set(changed.agents.families) == set(POINT_FAMILIES)
    assert changed.agents.families["evolution"].train["step_size"] == (0.1, 0.2)
    assert validate(changed.to_dict()) == changed
    with pytest.raises(InputError, match=r"agent family of the continuous game must be one of .*got 'ucb'"):
        of_mermaide(
            {
                "environment": {"game": "continuous"},
                "agents": {"families": {"ucb": {"train": {"ucb_coefficient": [0.1, 0.2]}}}, "disjoint": []},
            }
        )
    with pytest.raises(InputError, match=r"`environment.intervention` must be signed, bonus or graded"):
        of_mermaide({"environment": {"game": "continuous", "intervention": "arm"}})
    with pytest.raises(InputError, match=r"`world_model.arms` must be flat"):
        of_mermaide({"environment": {"game": "continuous"}, "world_model": {"arms": "equivariant"}})
    with pytest.raises(InputError, match="must keep the game"):
        check_game(changed, Environment(), "environment", "--set")
    with pytest.raises(InputError, match="must keep the dimensions"):
        check_game(changed, environment(dimensions=2), "environment", "--set")


def meeting_of(experiment: Experiment) -> tuple[KShot, PrincipalModule]:
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    return KShot(experiment.environment, Method.of(experiment)), module


@dimensions
def test_the_meta_gradient_reaches_every_weight_and_is_finite(dimensions: int) -> None:
    experiment = continuous(dimensions)
    kshot, module = meeting_of(experiment)
    tasks = AgentDistribution(experiment).tasks("train", range(8))
    meeting = kshot.meet(tasks, module.weights(), module.inner_rates(), 1, 2, KEY)
    assert meeting.support is not None
    assert meeting.adaptation is not None
    told = meta_loss(
        kshot.method,
        module.weights(),
        module.inner_rates(),
        experience_of(kshot.environment, meeting.support),
        experience_of(kshot.environment, meeting.query),
        0.01,
    )
    told.loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in module.parameters_by_name.items() if p.requires_grad}
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name
    # The world model's loss falls along the inner step.
    nll = {key: float(value) for key, value in told.metrics.items() if "nll" in key}
    assert nll.keys() == {"world_model/nll_before", "world_model/nll_after"}
    assert all(math.isfinite(value) for value in nll.values())


def test_evaluation_scores_points_as_it_scores_arms() -> None:
    experiment = continuous(evaluation={"tasks": 6, "episodes": 2})
    table, module = meeting_of(experiment)
    evaluation = Evaluation(experiment, "test")
    weights, rates = module.detached()
    results = evaluation.contender(Contender("mermaide", 0, table, weights, rates), [0, 1])
    rows = pd.concat([results.rows, *(evaluation.baseline(name).rows for name in SCORED_BESIDE)])
    assert (rows["wm_nll_uniform"] == 0).all()  # the uniform density is 1
    assert np.isfinite(rows["wm_nll_frequency"]).all()
    own = rows[rows["method"] == "mermaide"]
    assert np.isfinite(own[["wm_nll_before", "wm_nll_after", "wm_accuracy_after"]]).all(axis=None)
    assert own["wm_ece_before"].between(0, 0.5).all()
    assert own["wm_ece_after"].between(0, 0.5).all()
    assert len(results.calibration) == 2 * own["family"].nunique() * (CALIBRATION_BINS - 1)  # K, families, edges
    # Of a family with one task the file's curve has the very error of that task's row.
    errors = own[own["k"] == 1].set_index("family")["wm_ece_after"]
    single = errors[~errors.index.duplicated(keep=False)]
    assert len(single) > 0
    for family, error in single.items():
        curve = results.calibration[(results.calibration["family"] == family) & (results.calibration["k"] == 1)]
        assert (curve["count"] == experiment.environment.horizon * 2).all()
        assert calibration_error(curve) == pytest.approx(error, rel=1e-5)
    assert rows["success_rate"].between(0, 1).all()
    never = rows[rows["method"] == "never"]
    assert (never["interventions"] == 0).all()
    oracle = rows[rows["method"] == "oracle"]
    assert oracle["return"].mean() > never["return"].mean()


@dimensions
def test_points_drawn_from_the_prediction_find_it_calibrated_and_others_do_not(dimensions: int) -> None:
    """Predicted: uniform. Points below u per coordinate with probability u (calibrated), or sqrt(u)."""
    head = MixtureHead(3, dimensions, 0.1)
    raw = head.initial_bias()
    raw[: head.components] = -50.0
    points = torch.rand(2, 100, 40, dimensions, generator=torch.Generator().manual_seed(0))
    points[1] = points[1].square()
    error = prediction_scores(head, raw.expand(2, 100, 40, -1), points)["ece"]
    assert error[0] < 0.01
    edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
    assert error[1] == pytest.approx((np.sqrt(edges) - edges).mean(), abs=0.01)
    # Errors of opposite sign don't cancel between coordinates.
    if dimensions == 2:
        points[1, ..., 1] = 1 - points[1, ..., 1]
        again = prediction_scores(head, raw.expand(2, 100, 40, -1), points)["ece"]
        assert again[1] == pytest.approx(error[1], abs=0.01)


def test_calibration_counts_pit_values_by_family_and_coordinate() -> None:
    """Three tasks of two families, two coordinates; met at once or in chunks."""
    pit = torch.rand(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    families, origin = (
        ["evolution", "gp_ucb", "gp_ucb"],
        {"method": "m", "seed": 0, "split": "test", "condition": "test"},
    )
    parts = [
        point_calibration(pit[chunk], families[chunk]).assign(**origin, k=1)
        for chunk in (slice(0, 2), slice(2, 3), slice(0, 3))
    ]
    nothing = pd.DataFrame()
    chunked, whole = (
        Results.together([Results(nothing, part, nothing) for part in some]).calibration
        for some in (parts[:2], parts[2:])
    )
    pd.testing.assert_frame_equal(chunked, whole, check_exact=False, rtol=1e-6)
    assert len(whole) == 2 * 2 * (CALIBRATION_BINS - 1)
    for line in whole.to_dict("records"):
        own = pit[[family == line["family"] for family in families]][..., line["coordinate"] - 1]
        assert line["count"] == own.numel()
        assert line["confidence"] == pytest.approx((line["bin"] + 1) / CALIBRATION_BINS)
        assert line["frequency"] == pytest.approx((own < line["confidence"]).float().mean().item(), abs=1e-6)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_run_ends_with_the_calibration_of_its_world_model(tmp_path: Path) -> None:
    experiment = continuous(evaluation={"tasks": 3, "episodes": 2, "k": [1]}, training={"env_steps": 240})
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(explained_yaml(experiment), encoding="utf-8")
    assert main(["train", "--config", str(config), "--out", str(run)]) == 0
    rows = pd.read_parquet(run / "rows.parquet").query("method == 'mermaide'")
    assert rows[["wm_ece_before", "wm_ece_after"]].stack().between(0, 0.5).sum() == 2 * len(rows) > 0
    calibration = pd.read_parquet(run / "calibration.parquet")
    assert of_points(calibration)
    assert calibration["frequency"].between(0, 1).all()
    assert (run / "figures/calibration.png").is_file()
    (picture,) = draw_calibration(read_study([run]))
    assert "coordinate by coordinate" in picture.caption


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_short_training_improves_return_and_prediction() -> None:
    experiment = of_mermaide(
        {
            "environment": {"game": "continuous", "horizon": 30, "target_width": 0.2, "cost_weight": 0.8},
            "agents": {"families": {"gp_ucb": CONTINUOUS_FAMILIES["gp_ucb"]}},
            "meta_learning": {"meta_batch_size": 16, "query_episodes": 2},
            "world_model": {"hidden_size": 16, "policy_hidden": 16, "components": 3},
            "training": {"env_steps": 40 * 16 * 3 * 30, "meta_lr": 1e-2},
        },
    )
    algorithm = MermaideConfig.of(experiment).build_algo()
    told = [flat_metrics(algorithm.train()) for _ in range(experiment.num_iterations)]
    algorithm.stop()

    def mean(key: str, part: slice) -> float:
        return float(np.mean([each[key] for each in told[part]]))

    early, late = slice(0, 10), slice(-10, None)
    assert mean("principal/return", late) > mean("principal/return", early) + 2
    assert mean("world_model/nll_after", late) < mean("world_model/nll_after", early) - 0.2
    assert told[-1]["throughput/bytes_per_env_step"] < 3.2
