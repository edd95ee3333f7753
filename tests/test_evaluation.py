"""The K-shot protocol: its rows, its scale, its floors, and that every method meets the same agents and luck."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import of_mermaide, tiny
from torch import Tensor

from mermaide_ray import evaluation
from mermaide_ray.agents.base import Family, Params, State
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.baselines import SCORED_BESIDE, oracles, rules
from mermaide_ray.calibration import CALIBRATION_BINS, frequency_floor, prediction_scores
from mermaide_ray.contender import Contender
from mermaide_ray.errors import InputError
from mermaide_ray.evaluation import LEAST_SPAN, Bounds, Evaluation, Results
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment, overlaid
from mermaide_ray.kshot import KShot
from mermaide_ray.lockstep import deal_for, play
from mermaide_ray.metrics import ROW_METRICS
from mermaide_ray.models.architecture import Weights
from mermaide_ray.models.categorical import ArmHead
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.report.statistics import interquartile_mean

KEYS = ["method", "seed", "split", "task", "family", "k"]
ARMS = 4


def _experiment(**sections: Any) -> Experiment:
    """Long and cheap enough that the oracle gains more than a pull's worth on nearly every task."""
    return tiny(**{"environment": {"num_arms": ARMS, "horizon": 25, "cost_weight": 0.1}, **sections})


def _contender(
    experiment: Experiment,
    name: str = "mine",
    seed: int = 0,
    changes: Weights | None = None,
    rehearsals: int | None = None,
) -> Contender:
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    weights, rates = module.detached()
    weights |= changes or {}
    return Contender(name, seed, KShot(experiment.environment, module.method, rehearsals), weights, rates)


@pytest.fixture(scope="module")
def held_out() -> Evaluation:
    return Evaluation(_experiment(), "validation")


@pytest.fixture(scope="module")
def scored(held_out: Evaluation) -> Results:
    return held_out.contender(_contender(_experiment(), seed=7), (0, 1, 2))


def _without(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return frame.drop(columns=list(columns)).reset_index(drop=True)


def _same(one: pd.DataFrame, other: pd.DataFrame, **tolerance: float) -> None:
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True), **tolerance)


def test_rows_have_the_columns_that_everybody_reads(held_out: Evaluation, scored: Results) -> None:
    expected = [
        *KEYS,
        "condition",
        *(metric.key for metric in ROW_METRICS),
        "exploration",
        "param.epsilon",
        "param.ucb_coefficient",
    ]
    for results in (scored, held_out.baseline("never"), held_out.baseline("first_n")):
        assert sorted(results.rows.columns) == sorted(expected)
    rows = scored.rows
    assert len(rows) == 3 * 6
    assert not rows.duplicated(KEYS).any()
    assert set(rows["seed"]) == {7}
    assert set(rows["split"]) == {"validation"}
    ucb = rows["family"] == "ucb"
    assert (rows["param.epsilon"].isna() == ucb).all()
    assert (rows["param.ucb_coefficient"].isna() == ~ucb).all()
    assert 0 < ucb.sum() < len(rows)
    assert (rows["exploration"] == rows["param.epsilon"].fillna(rows["param.ucb_coefficient"])).all()


def test_rows_agree_with_themselves(scored: Results, held_out: Evaluation) -> None:
    """Return = pulls on the target - alpha * cost; what is not measured is NaN, and only that."""
    rows = pd.concat([scored.rows, held_out.baseline("random").rows])
    horizon, alpha = 25, 0.1
    np.testing.assert_allclose(rows["return"], rows["success_rate"] * horizon - alpha * rows["cost"], rtol=1e-5)
    np.testing.assert_allclose(rows["cost"], rows["interventions"], rtol=1e-5)
    # Never paid, an agent has base means alone, in [0, 1]; always (signed), 1 more on the target and 1 less elsewhere.
    never, always = (held_out.baseline(name).rows for name in ("never", "always"))
    assert never["agent_return"].between(0, horizon).all()
    own = always["agent_return"] - (2 * always["success_rate"] - 1) * horizon
    assert own.between(0, horizon).all()
    assert not np.allclose(own, always["agent_return"])
    span = rows["oracle_return"] - rows["never_return"]
    np.testing.assert_allclose(
        rows["normalised_score"], ((rows["return"] - rows["never_return"]) / span).where(span >= LEAST_SPAN), rtol=1e-5
    )
    trained = rows["method"] == "mine"
    assert (rows["support_return"].notna() == (trained & (rows["k"] > 0))).all()
    for when in ("before", "after"):
        assert (rows[f"wm_nll_{when}"].notna() == trained).all()
    assert set(rows.loc[~trained, "k"]) == {0}
    assert set(rows.loc[~trained, "seed"]) == {0}


@pytest.mark.parametrize("changes", [{}, {"base_switches": 2, "base_drift": 0.1, "target_moves": 2}])
def test_what_agents_earn_is_what_they_learned_from(changes: dict[str, Any]) -> None:
    """Without noise: the rewards that reach the agents in the game, added up, whatever changes within the episode."""
    environment = {"num_arms": ARMS, "horizon": 25, "reward_noise": 0.0, "changes": changes}
    held_out, earned = Evaluation(_experiment(environment=environment), "validation"), []
    assert held_out.bounds is not None  # played now, not while we listen

    def heard(family: Family) -> Family:
        def learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
            earned.append(reward.sum().item())
            return family.learn(state, params, step, arm, reward)

        return replace(family, learn=learn)

    held_out.tasks = replace(held_out.tasks, families=tuple(map(heard, held_out.tasks.families)))
    rows = held_out.baseline("always").rows
    assert rows["agent_return"].sum() * held_out.episodes == pytest.approx(sum(earned), rel=1e-5)


def test_never_scores_0_and_the_oracle_1(held_out: Evaluation) -> None:
    never, oracle = (held_out.baseline(name).rows["normalised_score"].dropna() for name in ("never", "oracle"))
    assert len(never) == len(oracle) >= 4
    assert (never == 0).all()
    np.testing.assert_allclose(oracle, 1, rtol=1e-6)


def test_the_oracle_is_searched_once_and_a_rule_s_number_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    for module, name in ((oracles, "best_rules"), (oracles, "returns_of"), (rules, "_best_on_validation")):
        monkeypatch.setattr(module, name, partial(_counted, searched, name, getattr(module, name)))
    experiment = _experiment(agents={"seed": 4711})
    for split in ("validation", "test"):
        once, again = (Evaluation(experiment, split, 2, 2) for _ in range(2))
        for name in ("first_n", "privileged_gap", "oracle"):
            pd.testing.assert_frame_equal(once.baseline(name).rows, again.baseline(name).rows)
    assert searched.count("best_rules") == 2  # once per split
    assert searched.count("_best_on_validation") == 1
    assert searched.count("returns_of") == 2 * 2 + 1  # two rounds for each oracle, one for the gap


def _counted(counts: list[str], name: str, function: Any, *arguments: Any, **named: Any) -> Any:
    counts.append(name)
    return function(*arguments, **named)


def test_no_rule_earns_more_than_the_oracle() -> None:
    """It is the best of them for each task, though chosen on other luck: a margin of a fifth of a pull for that."""
    many = Evaluation(_experiment(), "validation", 24, 16)
    oracle = many.baseline("oracle").rows["return"].mean()
    for name in set(SCORED_BESIDE) - {"oracle"}:
        assert many.baseline(name).rows["return"].mean() < oracle + 0.2, name


def test_no_score_where_the_oracle_gains_less_than_a_pull() -> None:
    bounds = Bounds(never=torch.tensor([2.0, 2.0, 2.0]), oracle=torch.tensor([2.0 + LEAST_SPAN, 2.5, 1.0]))
    scores = bounds.normalised(torch.tensor([2.25, 2.25, 2.25]))
    assert scores[0] == 0.25
    assert scores[1:].isnan().all()


@pytest.mark.parametrize(("rule", "leaning"), [("never", -80.0), ("always", 80.0)])
@pytest.mark.parametrize("k", [0, 2])
def test_methods_are_paired(held_out: Evaluation, rule: str, leaning: float, k: int) -> None:
    """A network that always does as a rule does gets the rule's results to the last pull: same agents, same luck."""
    changes = {"policy_output_bias": torch.tensor([0.0, leaning])}
    experiment = _experiment(meta_learning={"inner_lr": 0.0})
    network = held_out.contender(_contender(experiment, changes=changes), [k])
    fixed = held_out.baseline(rule)
    columns = ["task", "family", "return", "success_rate", "interventions", "cost", "normalised_score"]
    _same(network.rows[columns], fixed.rows[columns])
    _same(_without(network.profiles, "method", "k"), _without(fixed.profiles, "method", "k"))


def test_held_out_agents_do_not_depend_on_the_training_seed() -> None:
    one, other = (Evaluation(_experiment(seed=seed), "validation", 4, 2).baseline("never").rows for seed in (0, 1))
    _same(one, other)
    moved = Evaluation(_experiment(agents={"seed": 1}), "validation", 4, 2).baseline("never").rows
    assert not one["return"].equals(moved["return"])
    test = Evaluation(_experiment(), "test", 4, 2).baseline("never").rows
    assert (test["param.epsilon"].dropna() >= 0.25).all()
    assert (test["param.ucb_coefficient"].dropna() >= 0.6).all()


def test_result_does_not_depend_on_how_many_tasks_are_met_at_once(
    held_out: Evaluation, scored: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_MOST_TASKS", 2)
    chunked = held_out.contender(_contender(_experiment(), seed=7), (0, 1, 2))
    keys = ["method", "seed", "split", "k", "family", "bin"]
    _same(chunked.rows, scored.rows, rtol=1e-5, atol=1e-6)
    _same(chunked.profiles, scored.profiles)
    mine, theirs = (each.calibration.sort_values(keys)[sorted(each.calibration)] for each in (chunked, scored))
    _same(mine, theirs, rtol=1e-5, atol=1e-6)


def test_without_a_rate_adaptation_changes_no_row(held_out: Evaluation) -> None:
    rows = held_out.contender(_contender(_experiment(meta_learning={"inner_lr": 0.0})), (0, 1)).rows
    zero, one = (rows[rows["k"] == k] for k in (0, 1))
    _same(_without(zero, "k", "support_return"), _without(one, "k", "support_return"))
    for measure in ("nll", "accuracy", "ece"):
        # Weights that tasks share go through another product than each task's own: on some processors they round apart.
        before, after = rows[f"wm_{measure}_before"], rows[f"wm_{measure}_after"]
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6, err_msg=measure)


def test_before_is_before_and_after_is_after(scored: Results) -> None:
    rows = scored.rows
    zero, one = (rows[rows["k"] == k].reset_index(drop=True) for k in (0, 1))
    assert (zero["wm_nll_before"] == zero["wm_nll_after"]).all()
    assert (one["wm_nll_after"] != one["wm_nll_before"]).all()
    # One step on the world model's own loss, from a fresh start: it can only get better.
    assert one["wm_nll_after"].mean() < one["wm_nll_before"].mean()


def test_world_model_measures_of_a_constant_prediction_by_hand(held_out: Evaluation) -> None:
    """Whatever it sees, it predicts these; the arms that are pulled are counted from the profile of the target."""
    p = torch.tensor([0.55, 0.25, 0.15, 0.05])
    experiment = _experiment()
    constant = {
        "world_model_weight": torch.zeros(experiment.world_model.hidden_size, ARMS),
        "world_model_bias": p.log(),
    }
    contender = _contender(experiment, changes=constant)
    results = held_out.contender(contender, [0])
    meeting = contender.kshot.meet(
        held_out.tasks, contender.weights, contender.inner_rates, 0, held_out.episodes, held_out.key
    )
    labels = experience_of(contender.kshot.environment, meeting.query).history.labels.flatten(1)
    share = torch.stack([(labels == arm).float().mean(1) for arm in range(ARMS)], dim=1)
    rows = results.rows
    np.testing.assert_allclose(rows["wm_nll_after"], -(share * p.log()).sum(1), rtol=1e-5)
    np.testing.assert_allclose(rows["wm_accuracy_after"], share[:, 0], rtol=1e-5)
    np.testing.assert_allclose(rows["wm_ece_after"], (share[:, 0] - 0.55).abs(), atol=1e-5)
    np.testing.assert_allclose(rows["wm_nll_uniform"], math.log(ARMS), rtol=1e-6)
    calibration = results.calibration.set_index("family")
    assert set(calibration["bin"]) == {int(0.55 * CALIBRATION_BINS)}
    np.testing.assert_allclose(calibration["confidence"], 0.55, rtol=1e-5)
    for family, group in rows.groupby("family"):
        assert calibration.loc[family, "count"] == len(group) * labels.shape[1]
        assert calibration.loc[family, "frequency"] == pytest.approx(group["wm_accuracy_after"].mean(), rel=1e-5)


def test_calibration_error_by_hand() -> None:
    """Two bins: two predictions at 0.9, of which one hits, and two at 0.6, which both hit."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]]).view(1, 4, 1, 2)
    found = prediction_scores(ArmHead(2), p.log(), torch.tensor([0, 0, 0, 1]).view(1, 4, 1))
    assert found["ece"][0] == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 1.0), rel=1e-5)
    assert found["accuracy"][0] == 0.75
    assert found["nll"][0] == pytest.approx(-(math.log(0.9) + math.log(0.1) + 2 * math.log(0.6)) / 4, rel=1e-5)


def test_floor_of_running_frequencies_by_hand() -> None:
    """Arms 0, 0, 1 of two, each seen once beforehand: 1/2, 2/3, 1/4; right by chance, right, wrong."""
    labels = torch.tensor([0, 0, 1]).view(1, 3, 1)
    expected = -(math.log(1 / 2) + math.log(2 / 3) + math.log(1 / 4)) / 3
    # Episodes don't learn of one another.
    for episodes in (labels, torch.cat([labels, 1 - labels], dim=2)):
        floor = frequency_floor(episodes, 2)
        assert floor["wm_nll_frequency"] == pytest.approx(expected, rel=1e-5)
        assert floor["wm_accuracy_frequency"] == pytest.approx((1 / 2 + 1 + 0) / 3, rel=1e-5)


def test_profiles_add_up_to_the_rows(scored: Results) -> None:
    profiles, rows = scored.profiles, scored.rows
    assert len(profiles) == len(rows) * 25
    grouped = profiles.groupby(["k", "task"])
    expected = rows.sort_values(["k", "task"])
    np.testing.assert_allclose(grouped["intervention_rate"].sum(), expected["interventions"], rtol=1e-5)
    np.testing.assert_allclose(grouped["target_rate"].mean(), expected["success_rate"], rtol=1e-5)
    exploration = grouped["exploration"].first().to_numpy()
    np.testing.assert_allclose(exploration, expected["param.epsilon"].fillna(expected["param.ucb_coefficient"]))


def test_scores_are_interquartile_means_of_the_rows(held_out: Evaluation, scored: Results) -> None:
    scores = held_out.scores(_contender(_experiment(), seed=7), (0, 1))
    for k in (0, 1):
        column = scored.rows.loc[scored.rows["k"] == k, "normalised_score"].dropna()
        assert scores[k] == pytest.approx(interquartile_mean(column.to_numpy()[None]))


def test_a_method_without_world_model_has_no_world_model_measures() -> None:
    experiment = _experiment(world_model={"enabled": False})
    results = Evaluation(experiment, "validation", 3, 2).contender(_contender(experiment), (0, 1))
    assert (
        results.rows[[column for column in results.rows if column.endswith(("before", "after"))]]
        .isna()
        .to_numpy()
        .all()
    )
    assert results.calibration.empty


def test_a_principal_is_refused_a_game_that_its_networks_do_not_fit_in_one_sentence() -> None:
    contender, larger = _contender(_experiment()), _experiment(environment={"num_arms": 7})
    expected = r"`environment` must keep the num_arms that the principal was trained with \(4\), got 7"
    with pytest.raises(InputError, match=expected):
        contender.at(larger)
    with pytest.raises(InputError, match=expected):
        Evaluation(larger, "test", 2, 2).contender(contender, [0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"environment": {"sight": {"delay": 3}}},
            "`environment.sight.delay` must be 0 where world_model.kind is learner",
        ),
        (
            {"agents": {"families": {"informed_ucb": {"train": {"ucb_coefficient": [0.1, 0.2]}}}, "disjoint": []}},
            "`evaluation.planning` must be false where agents know the principal's policy",
        ),
    ],
)
def test_a_principal_is_refused_where_its_model_of_learners_does_not_hold(
    settings: dict[str, Any], expected: str
) -> None:
    """Its networks would fit: as many arms, symbols and interventions."""
    trained = tiny(world_model={"kind": "learner"})
    contender = _contender(trained, rehearsals=0)
    elsewhere = of_mermaide(overlaid(tiny().to_dict(), settings))
    with pytest.raises(InputError, match=re.escape(expected)):
        contender.in_game_of(elsewhere)
    with pytest.raises(InputError, match=re.escape(expected)):
        Evaluation(elsewhere, "train", 2, 2).contender(contender, [1])


@pytest.mark.parametrize("name", ["first_n", "random", "oracle"])
def test_rules_play_some_tasks_at_a_time_to_the_same_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny()
    together = Evaluation(experiment, "test", 5, 2).baseline(name).rows
    monkeypatch.setattr("mermaide_ray.evaluation._played", {})
    monkeypatch.setattr("mermaide_ray.evaluation.tasks_at_once", lambda *_: 2)
    pd.testing.assert_frame_equal(Evaluation(experiment, "test", 5, 2).baseline(name).rows, together)


def test_who_trains_is_of_no_account_where_a_principal_is_scored() -> None:
    # A meta-batch of eight could not be shared out to five learners.
    elsewhere = _experiment(env_runners={"num_learners": 5}, meta_learning={"meta_batch_size": 20})
    contender = _contender(_experiment(meta_learning={"meta_batch_size": 8}))
    assert contender.at(elsewhere).kshot.environment == elsewhere.environment


def test_a_principal_is_scored_in_the_game_of_the_evaluation() -> None:
    contender = _contender(_experiment())
    dear = _experiment(environment={"num_arms": ARMS, "horizon": 20, "cost_weight": 0.9})
    evaluation = Evaluation(dear, "test", 3, 2)
    here, there = (evaluation.contender(each, [1]).rows for each in (contender, contender.at(dear)))
    pd.testing.assert_frame_equal(here, there)


@pytest.mark.parametrize("rehearsals", [None, 0, 3])
def test_a_player_acts_as_its_principal_is_scored(rehearsals: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapted to what it played with an agent, it plays what it is scored by, planning and rehearsal included."""
    # By rules alone, or by the rehearsed policy alone: else the unplanned policy's own acts might be compared again.
    monkeypatch.setattr("mermaide_ray.planning._MARGIN", 1e9 if rehearsals else 0.0)
    experiment = _experiment() if rehearsals is None else tiny(world_model={"kind": "learner"})
    contender = _contender(experiment, rehearsals=rehearsals)
    tasks, key = AgentDistribution(experiment).tasks("test", [5]), Key(0, "test", "x", 0)
    meeting = contender.kshot.meet(tasks, contender.weights, contender.inner_rates, 2, 3, key)
    assert meeting.support is not None
    if rehearsals is not None:
        assert meeting.prepared.choice is not None
        assert meeting.prepared.choice.by_rule.all() == (not rehearsals)
    for purpose, episodes, known, expected in (
        ("x/support", 2, None, meeting.support),
        ("x/query", 3, meeting.support, meeting.query),
    ):
        dice = deal_for(experiment.environment, Key(0, "test", purpose, 0), tasks, episodes)
        player = contender.player(known, episodes, task=5, key=key)
        played = play(experiment.environment, tasks, episodes, dice, player)
        assert torch.equal(played.interventions, expected.interventions)
        assert torch.equal(played.arms, expected.arms)


def test_a_principal_rehearses_as_it_did_wherever_it_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mermaide_ray.planning._MARGIN", 1e9)  # no rule takes the policy's place
    experiment = tiny(world_model={"kind": "learner"}, evaluation={"planning": True, "rehearsals": 10})
    plain, own = (_contender(experiment, rehearsals=rehearsals) for rehearsals in (None, 0))
    evaluation = Evaluation(experiment, "test", 4, 8)
    scored = [evaluation.contender(each, [1]).rows["return"] for each in (plain, own, own.at(experiment))]
    assert scored[0].equals(scored[1])
    assert not scored[0].equals(scored[2])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tset",), r"split must be one of train, validation, test, got 'tset' \(did you mean 'test'\?\)"),
        (("test", 0), "num_tasks must be >= 1, got 0"),
        (("test", 4, -1), "episodes must be >= 1, got -1"),
    ],
)
def test_what_cannot_be_evaluated_is_told(arguments: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Evaluation(_experiment(), *arguments)


def test_a_negative_number_of_episodes_is_told(held_out: Evaluation) -> None:
    with pytest.raises(InputError, match=r"support episodes must be one or more, each >= 0, got \[0, -1\]"):
        held_out.contender(_contender(_experiment()), [0, -1])
