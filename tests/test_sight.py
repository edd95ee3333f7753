"""Partial observability: what is seen of a pull follows from dice and arm, and is all that is learned from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import stock_families, tiny
from torch import Tensor

from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.baselines.oracles import PrivilegedRules
from mermaide_ray.baselines.rule_grid import Rule
from mermaide_ray.contender import Contender
from mermaide_ray.environment import Environment
from mermaide_ray.errors import InputError
from mermaide_ray.evaluation import Evaluation
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment, load_experiment, validate
from mermaide_ray.kshot import KShot
from mermaide_ray.learners.adaptation import unroll
from mermaide_ray.learners.losses import prediction_nll
from mermaide_ray.learners.maml import meta_loss
from mermaide_ray.lockstep import Hidden, Seen, deal_for, play
from mermaide_ray.models.categorical import ArmHead
from mermaide_ray.models.principal import shared
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.sweep.checks import check_plan
from mermaide_ray.sweep.plan import Plan
from mermaide_ray.sweep.sections import Sweep
from mermaide_ray.trajectory import Experience, Trajectories
from mermaide_ray.view import View

KEY = Key(0, "train", "sight", 1)
TASKS, EPISODES = 14, 2
SIGHTS: dict[str, dict[str, Any]] = {
    "noisy": {"noise": 0.4},
    "late": {"delay": 3},
    "sparse": {"share": 0.4},
    "all three": {"noise": 0.3, "delay": 2, "share": 0.6},
}


class Watcher:
    """Acts by dice alone, and keeps what it saw."""

    def begin(self, num_episodes: int) -> None:
        self.seen: list[Tensor] = []

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        self.seen.append(seen.last_symbol.clone())
        return (seen.uniform < 0.5).long()


def played(experiment: Experiment, principal: Watcher) -> Trajectories:
    tasks = AgentDistribution(experiment).tasks("train", range(TASKS))
    return play(
        experiment.environment, tasks, EPISODES, deal_for(experiment.environment, KEY, tasks, EPISODES), principal
    )


def contender(experiment: Experiment) -> Contender:
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    weights, rates = module.detached()
    return Contender("mermaide", 0, KShot(experiment.environment, module.method), weights, rates)


def test_symbols_come_as_often_as_the_settings_say() -> None:
    environment = Environment.model_validate({"num_arms": 4, "sight": {"noise": 0.4, "share": 0.7}})
    luck = torch.rand(60_000, 2, generator=torch.Generator().manual_seed(0))
    symbols = View(environment).symbol(torch.full((60_000,), 2), luck)
    shares = torch.bincount(symbols, minlength=5) / 60_000
    # A seen pull shows its own arm unless the noise chooses another: 0.7 * (1 - 0.4 * 3 / 4).
    expected = torch.tensor([0.07, 0.07, 0.49, 0.07, 0.3])
    assert (shares - expected).abs().max() < 5 * (0.25 / 60_000) ** 0.5


def test_full_sight_deals_and_stores_nothing_more() -> None:
    plain, told = tiny(), tiny(environment={"sight": {"noise": 0.0, "delay": 0, "share": 1.0}})
    assert plain.environment.more_dice == {}
    assert plain.environment.num_symbols == plain.environment.num_arms
    one, other = played(plain, Watcher()), played(told, Watcher())
    assert one.shown is None
    assert other.shown is None
    assert torch.equal(one.arms, other.arms)


@pytest.mark.parametrize("sight", SIGHTS.values(), ids=SIGHTS)
def test_sight_changes_nothing_of_the_agent_or_of_any_other_luck(sight: dict[str, Any]) -> None:
    plain, partial = stock_families(), stock_families(environment={"sight": sight})
    one, other = played(plain, Watcher()), played(partial, Watcher())
    assert torch.equal(one.arms, other.arms)
    assert torch.equal(one.interventions, other.interventions)
    assert other.shown is None or not torch.equal(other.shown, other.arms)


@pytest.mark.parametrize("labels", ["relative", "absolute"])
@pytest.mark.parametrize("sight", SIGHTS.values(), ids=SIGHTS)
def test_the_principal_sees_the_symbols_so_many_pulls_late(sight: dict[str, Any], labels: str) -> None:
    environment = stock_families(environment={"sight": sight, "arm_labels": labels}).environment
    watcher, view = Watcher(), View(environment)
    result = played(stock_families(environment={"sight": sight, "arm_labels": labels}), watcher)
    symbols = (result.arms if result.shown is None else result.shown).long()
    history, late = view.history(result), environment.sight.delay + 1
    for t, seen in enumerate(watcher.seen):
        at_the_moment = seen.view(TASKS, EPISODES)
        if t < late:
            assert (at_the_moment == -1).all()
        else:
            symbol, target = symbols[:, :, t - late], result.target[:, None]
            assert torch.equal(at_the_moment == view.num_arms, symbol == view.num_arms)
            label = (symbol - target) % view.num_arms if labels == "relative" else symbol
            assert torch.equal(at_the_moment, label.where(symbol < view.num_arms, view.num_arms))
        # What was seen at the moment is what the learner rebuilds.
        rebuilt = history.observations[:, t, :, : view.num_symbols]
        assert torch.equal(rebuilt.sum(-1) == 0, at_the_moment == -1)
        assert torch.equal(rebuilt.argmax(-1).where(at_the_moment >= 0, -1), at_the_moment)


@pytest.mark.parametrize("sight", [SIGHTS["noisy"], SIGHTS["sparse"]], ids=["noisy", "sparse"])
def test_the_learner_is_given_nothing_that_was_not_seen(sight: dict[str, Any]) -> None:
    experiment = stock_families(environment={"sight": sight})
    result, view = played(experiment, Watcher()), View(experiment.environment)
    other = replace(result, arms=(result.arms + 1) % view.num_arms)
    one, same = view.history(result), view.history(other)
    assert torch.equal(one.observations, same.observations)
    assert torch.equal(one.labels, same.labels)
    assert result.shown is not None
    assert one.seen is not None
    assert torch.equal(one.seen, (result.shown < view.num_arms).transpose(1, 2))
    # Control: with full sight the arms are what is seen.
    assert not torch.equal(view.history(replace(other, shown=None)).labels, one.labels)


def test_the_loss_is_the_mean_over_pulls_that_were_seen() -> None:
    logits = torch.randn(2, 3, 1, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[1, 0, 3], [2, 2, 0]]).unsqueeze(-1)
    seen = torch.tensor([[True, False, True], [False, False, False]]).unsqueeze(-1)
    head = ArmHead(4)
    loss = prediction_nll(head, logits, labels, seen)
    log_p = logits.log_softmax(-1)
    assert loss[0].item() == pytest.approx(-(log_p[0, 0, 0, 1] + log_p[0, 2, 0, 3]).item() / 2)
    assert loss[1].item() == 0
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.equal(gradient.abs().sum(-1) > 0, seen)
    torch.testing.assert_close(
        prediction_nll(head, logits, labels, torch.ones_like(seen)), prediction_nll(head, logits, labels)
    )


def test_neither_the_inner_nor_the_outer_step_learns_from_a_pull_that_was_not_seen() -> None:
    experiment = tiny(environment={"sight": {"share": 0.5}})
    one, tasks = contender(experiment), AgentDistribution(experiment).tasks("train", range(TASKS))
    meeting = one.kshot.meet(tasks, one.weights, one.inner_rates, 1, EPISODES, KEY)
    assert meeting.support is not None
    parts = [experience_of(one.kshot.environment, played) for played in (meeting.support, meeting.query)]

    def losses(parts: list[Experience]) -> Tensor:
        weights = {name: value.clone().requires_grad_() for name, value in one.weights.items()}
        told = meta_loss(one.kshot.method, weights, one.inner_rates, parts[0], parts[1], 0.01).metrics
        keys = ("world_model/nll_before", "world_model/nll_after", "world_model/accuracy")
        return torch.stack([told[key] for key in keys])

    def renamed(seen: bool) -> list[Experience]:
        other = []
        for part in parts:
            assert part.history.seen is not None
            labels = ((part.history.labels + 1) % 4).where(part.history.seen == seen, part.history.labels)
            other.append(replace(part, history=replace(part.history, labels=labels)))
        return other

    assert torch.equal(losses(renamed(seen=False)), losses(parts))
    # Control: what was seen does matter.
    assert (losses(renamed(seen=True)) != losses(parts)).all()


def test_a_meta_batch_of_which_nothing_was_seen_has_finite_metrics() -> None:
    experiment = tiny(environment={"sight": {"share": 1e-9}})
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    kshot, tasks = KShot(experiment.environment, module.method), AgentDistribution(experiment).tasks("train", range(2))
    meeting = kshot.meet(tasks, module.weights(), module.inner_rates(), 1, 2, Key(0, "train", "tests", 0))
    assert meeting.support is not None
    support, query = (experience_of(kshot.environment, part) for part in (meeting.support, meeting.query))
    assert query.history.seen is not None
    assert not query.history.seen.any()
    told = meta_loss(module.method, module.weights(), module.inner_rates(), support, query, 0.01)
    assert all(torch.isfinite(value) for value in (told.loss, *told.metrics.values()))


@pytest.mark.parametrize("sight", SIGHTS.values(), ids=SIGHTS)
def test_rows_score_the_prediction_against_what_was_really_pulled(sight: dict[str, Any]) -> None:
    experiment = tiny(environment={"sight": sight})
    evaluation, one = Evaluation(experiment, "validation"), contender(experiment)
    rows = evaluation.contender(one, [0]).rows
    played = one.kshot.meet(
        evaluation.tasks, one.weights, one.inner_rates, 0, evaluation.episodes, evaluation.key
    ).query
    history = experience_of(one.kshot.environment, played).history
    logits = unroll(one.kshot.method, shared(one.weights, len(evaluation.tasks)), history).prediction
    assert logits is not None
    assert logits.shape[-1] == experiment.environment.num_arms
    truth = View(experiment.environment).label(played.arms.transpose(1, 2).long(), played.target[:, None, None])
    head = ArmHead(experiment.environment.num_arms)
    expected = prediction_nll(head, logits, truth)
    torch.testing.assert_close(torch.tensor(rows["wm_nll_after"].tolist()), expected)
    if history.seen is not None:
        assert not torch.allclose(prediction_nll(head, logits, history.labels, history.seen), expected)


def test_both_ends_of_the_scale_and_rules_see_the_truth() -> None:
    """Fixed rules look at nothing of the agent, oracles at the truth: how badly the principal sees changes neither."""
    plain, partial = (tiny(environment={"sight": sight}) for sight in ({}, SIGHTS["all three"]))
    one, other = Evaluation(plain, "validation"), Evaluation(partial, "validation")
    assert one._ends is other._ends  # found once, since
    for name in ("never", "oracle"):
        returns = [found._returns(found._played_by_rule(name)) for found in (one, other)]
        assert torch.equal(*returns), name
    for name in ("first_n", "random", "privileged_gap"):
        assert one.baseline(name).rows.equals(other.baseline(name).rows), name


def test_the_oracle_of_points_sees_the_truth() -> None:
    """Its rules compare the next point with the last, of which the principal may have seen another."""
    game, ends = {"game": "continuous", "horizon": 20}, []
    for sight in ({}, {"noise": 0.5, "delay": 1}):
        experiment = load_experiment(preset="mermaide", overrides={"environment": {**game, "sight": sight}})
        tasks = AgentDistribution(experiment).tasks("validation", range(4))
        rules = PrivilegedRules(experiment.environment, [Rule(20, next_arm="away")] * 4, 2)
        dice = deal_for(experiment.environment, KEY, tasks, 2)
        ends.append(play(experiment.environment, tasks, 2, dice, rules).interventions)
    assert ends[0].any()
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("sight", "told"),
    [
        ({"delay": 10}, "`environment.sight.delay` must be < environment.horizon (10), got 10"),
        ({"noise": 1.5}, "`environment.sight.noise` must be less than or equal to 1, got 1.5"),
        ({"share": 0}, "`environment.sight.share` must be greater than 0, got 0"),
        ({"q": 0.5}, "section `environment.sight` has no key 'q'"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(sight: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        validate({"environment": {"horizon": 10, "sight": sight}}, where="tests")
    assert told in str(refused.value)


def test_a_principal_that_knows_no_blank_is_not_scored_where_there_are_some() -> None:
    settings = {"question": "?", "name": "sight", "preset": "mermaide", "baselines": ["never"]}
    noisy = {"conditions": {"noisy": {"settings": {"environment": {"sight": {"noise": 0.5, "delay": 2}}}}}}
    check_plan(Plan(Sweep.model_validate(settings | noisy), "tests"))
    sparse = {"conditions": {"sparse": {"settings": {"environment": {"sight": {"share": 0.5}}}}}}
    with pytest.raises(InputError, match="must keep the num_symbols that the principal was trained with"):
        check_plan(Plan(Sweep.model_validate(settings | sparse), "tests"))
