"""What changes within an episode: base means by its luck, the target by task; and what the principal is told of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import of_mermaide, stock_families, tiny
from torch import Tensor

from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.baselines.oracles import PrivilegedRules, best_rules, oracle_rules
from mermaide_ray.baselines.rule_grid import Rule
from mermaide_ray.baselines.rules import FixedRule
from mermaide_ray.changes import course_of, reflected
from mermaide_ray.envs.bandit import IncentivizedBanditEnv
from mermaide_ray.envs.incentive import Incentives
from mermaide_ray.errors import InputError
from mermaide_ray.evaluation import Evaluation
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.noise import Key
from mermaide_ray.sweep.checks import check_plan
from mermaide_ray.sweep.plan import Plan
from mermaide_ray.sweep.sections import Sweep
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import View

KEY = Key(0, "train", "changes", 1)
TASKS, EPISODES, HORIZON, ARMS = 14, 3, 15, 4


def game(kind: str = "signed", labels: str = "relative", **changes: Any) -> Experiment:
    return stock_families(environment={"changes": changes, "intervention": kind, "arm_labels": labels})


def tasks_of(experiment: Experiment, count: int = TASKS) -> Tasks:
    return AgentDistribution(experiment).tasks("train", range(count))


def base_of(experiment: Experiment, tasks: Tasks, episodes: int = EPISODES) -> Tensor:
    """Base means, [T, N, A]."""
    dice = deal_for(experiment.environment, KEY, tasks, episodes)
    return course_of(experiment.environment, tasks, episodes, dice).base


def moving_of(experiment: Experiment, count: int = TASKS) -> Tensor:
    moving = tasks_of(experiment, count).moving
    assert moving is not None
    return moving.long()


def played(experiment: Experiment, principal: Principal, tasks: Tasks | None = None) -> Trajectories:
    tasks = tasks or tasks_of(experiment)
    dice = deal_for(experiment.environment, KEY, tasks, EPISODES)
    return play(experiment.environment, tasks, EPISODES, dice, principal)


class Watcher:
    """Acts by dice alone, and keeps what it saw."""

    def __init__(self, num_interventions: int = 2) -> None:
        self.num_interventions = num_interventions

    def begin(self, num_episodes: int) -> None:
        self.seen: list[Seen] = []

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        self.seen.append(seen)
        return (seen.uniform * self.num_interventions).long()


# Base means: the episode's luck.


def test_a_walk_is_folded_at_both_ends_as_often_as_it_takes() -> None:
    x = torch.tensor([0.4, 1.2, -0.3, 2.3, -1.9, 0.0, 1.0])
    torch.testing.assert_close(reflected(x, 0.0, 1.0), torch.tensor([0.4, 0.8, 0.3, 0.3, 0.1, 0.0, 1.0]))
    torch.testing.assert_close(reflected(4 * x - 2, -2.0, 2.0), 4 * reflected(x, 0.0, 1.0) - 2)


def test_drift_starts_at_the_tasks_means_and_has_its_standard_deviation() -> None:
    experiment = stock_families(environment={"changes": {"base_drift": 2.0}}, agents={"base_reward": [-5000.0, 5000.0]})
    tasks = tasks_of(experiment, 40)
    base = base_of(experiment, tasks)
    assert torch.equal(base[0], tasks.base.repeat_interleave(EPISODES, 0))
    steps = base.diff(dim=0)
    # No end of the range is near: the reflection of a step may turn its sign, not its size.
    assert steps.square().mean().sqrt().item() == pytest.approx(2.0, rel=5 / (2 * steps.numel()) ** 0.5)
    # Independent from step to step, from arm to arm, from episode to episode.
    for one, other in ((steps[1:], steps[:-1]), (steps[..., 1:], steps[..., :-1]), (steps[:, 1:], steps[:, :-1])):
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation.item()) < 5 / one.numel() ** 0.5


def test_drift_stays_in_the_range_and_fills_it_evenly() -> None:
    experiment = stock_families(
        environment={"changes": {"base_drift": 0.4}, "horizon": 60}, agents={"base_reward": [2.0, 3.0]}
    )
    base = base_of(experiment, tasks_of(experiment, 60))
    assert base.min() >= 2
    assert base.max() <= 3
    # The uniform law is the walk's own.
    late = (base[-1].flatten() - 2).sort().values
    expected = (torch.arange(len(late)) + 0.5) / len(late)
    assert (late - expected).abs().max() < 1.63 / len(late) ** 0.5  # Kolmogorov-Smirnov, 1%


def test_switches_redraw_all_means_so_many_times_at_random_pulls() -> None:
    experiment = game(base_switches=3)
    base = base_of(experiment, tasks_of(experiment, 400))
    switched = base.diff(dim=0) != 0
    assert torch.equal(switched.all(-1), switched.any(-1))
    assert (switched.any(-1).sum(0) == 3).all()
    # Every pull but the first is as likely as any other: 1200 episodes, 3 of 14 pulls.
    rate = switched.any(-1).float().mean(1)
    assert (rate - 3 / 14).abs().max() < 5 * (3 / 14 * 11 / 14 / 1200) ** 0.5
    last = base[-1].flatten().sort().values
    assert (last - (torch.arange(len(last)) + 0.5) / len(last)).abs().max() < 1.63 / len(last) ** 0.5
    # Each switch has means of its own.
    assert len(base[:, 0].unique(dim=0)) == 4


def test_switches_come_at_the_pulls_that_are_given() -> None:
    experiment = game(base_switches_at=[4, 9])
    switched = (base_of(experiment, tasks_of(experiment)).diff(dim=0) != 0).any(-1)
    assert torch.equal(switched.any(1), switched.all(1))
    assert (switched.all(1).nonzero().flatten() + 1).tolist() == [4, 9]


@pytest.mark.parametrize(
    "changes", [{"base_drift": 0.1}, {"base_switches": 2}, {"base_drift": 0.1, "base_switches": 2}]
)
def test_base_means_are_the_episodes_luck_whoever_else_is_played(changes: dict[str, Any]) -> None:
    experiment = game(**changes)
    environment, tasks = experiment.environment, tasks_of(experiment)
    together = base_of(experiment, tasks).view(HORIZON, TASKS, EPISODES, ARMS)
    assert not torch.equal(together[:, :, 0], together[:, :, 1])
    for task, episode in itertools.product((0, 5), range(EPISODES)):
        one = tasks.select(torch.tensor([task]))
        alone = course_of(environment, one, 1, deal_for(environment, KEY, one, 1, episode)).base
        assert torch.equal(alone[:, 0], together[:, task, episode])


# Targets: the task's.


@pytest.mark.parametrize("changes", [{"target_moves": 3}, {"target_moves_at": [4, 9, 11]}])
def test_the_target_moves_so_many_times_always_to_another_arm(changes: dict[str, Any]) -> None:
    experiment = game(**changes)
    tasks, moving = tasks_of(experiment, 600), moving_of(experiment, 600)
    assert torch.equal(moving[:, 0], tasks.target)
    moved = moving.diff(dim=1)
    assert ((moved != 0).sum(1) == 3).all()
    rate = (moved != 0).float().mean(0)
    if "target_moves_at" in changes:
        assert (rate.nonzero().flatten() + 1).tolist() == [4, 9, 11]
    else:
        assert (rate - 3 / 14).abs().max() < 5 * (3 / 14 * 11 / 14 / 600) ** 0.5
    # Uniform over the other arms: 1800 moves, thirds.
    steps = torch.bincount(moved[moved != 0] % ARMS, minlength=ARMS) / 1800
    assert steps[0] == 0
    assert (steps[1:] - 1 / 3).abs().max() < 5 * (2 / 9 / 1800) ** 0.5


def test_moves_belong_to_the_task_and_change_nothing_else_of_it() -> None:
    still, moves = tasks_of(stock_families(), 30), game(target_moves=2)
    tasks = tasks_of(moves, 30)
    assert still.moving is None
    assert torch.equal(still.target, tasks.target)
    assert torch.equal(still.base, tasks.base)
    assert torch.equal(still.family, tasks.family)
    some = AgentDistribution(moves).tasks("train", [17, 4])
    assert some.moving is not None
    assert torch.equal(some.moving.long(), moving_of(moves, 30)[[17, 4]])
    other = AgentDistribution(moves).tasks("test", range(30)).moving
    assert not torch.equal(other, tasks.moving)
    # In a population, an agent met again is the same task.
    few = of_mermaide({"environment": {"changes": {"target_moves": 2}}, "agents": {"population": {"train": 3}}})
    moving = AgentDistribution(few).tasks("train", [1, 4, 2]).moving
    assert moving is not None
    assert torch.equal(moving[0], moving[1])
    assert not torch.equal(moving[0], moving[2])


def test_only_goals_pay_and_become_the_target() -> None:
    experiment = stock_families(
        environment={
            "num_arms": 9,
            "arm_labels": "absolute",
            "changes": {"base_drift": 0.1, "base_switches": 2, "target_moves": 3},
        }
    )
    tasks = tasks_of(experiment, 60)
    base, moving = base_of(experiment, tasks), moving_of(experiment, 60)
    walkers = 0
    for row, family in enumerate(tasks.family.tolist()):
        goals = list(tasks.families[family].goals_among(9))
        if len(goals) < 9:
            walkers += 1
            others = [arm for arm in range(9) if arm not in goals]
            assert not base[:, row * EPISODES][:, others].any()
        assert base[-1, row * EPISODES, goals].ne(tasks.base[row, goals]).all()
        assert set(moving[row].tolist()) <= set(goals)
        assert (moving[row].diff() != 0).sum() == 3
    assert walkers


def test_nothing_changes_by_default() -> None:
    experiment = stock_families()
    tasks = tasks_of(experiment)
    dice = deal_for(experiment.environment, KEY, tasks, EPISODES)
    course = course_of(experiment.environment, tasks, EPISODES, dice)
    for t in range(HORIZON):
        assert torch.equal(course.base[t], tasks.base.repeat_interleave(EPISODES, 0))
        assert torch.equal(course.target[t], tasks.target.repeat_interleave(EPISODES))
        assert (course.since[t] == t).all()
        assert (course.since_told[t] == t).all()
    assert dice.more == {}
    assert played(experiment, Watcher()).moving is None
    assert experiment.environment.num_news == 0


@pytest.mark.parametrize(
    "changes", [{"base_switches_at": [8]}, {"target_moves_at": [8]}, {"target_moves_at": [8], "announced": False}]
)
def test_before_the_first_change_the_game_is_the_steady_one(changes: dict[str, Any]) -> None:
    always = FixedRule(stock_families().environment, HORIZON)
    steady, changed = played(stock_families(), always), played(game(**changes), always)
    # The pull at 8 is chosen before its reward is known.
    assert torch.equal(changed.arms[..., :9], steady.arms[..., :9])
    assert not torch.equal(changed.arms[..., 9:], steady.arms[..., 9:])


# What the principal is paid for, and what it is told.


@pytest.mark.parametrize("announced", [True, False])
def test_rewards_and_incentives_follow_the_target_that_holds(announced: bool) -> None:
    experiment = stock_families(
        environment={
            "changes": {"target_moves_at": [2], "announced": announced},
            "reward_noise": 0.0,
            "delta": 2.0,
            "cost_weight": 0.5,
        }
    )
    task = tasks_of(experiment, 1)
    path = moving_of(experiment, 1)[0].tolist()
    env = IncentivizedBanditEnv({"experiment": experiment.to_dict(), "tasks": [0]})
    observations, _ = env.reset()
    (agent,) = set(observations) - {"principal"}
    for t in range(4):
        arm = path[0]  # the first target, throughout
        _, rewards, _, _, infos = env.step({"principal": 1, agent: arm})
        hit = t < 2
        assert rewards[agent] == pytest.approx(float(task.base[0, arm]) + (2.0 if hit else -2.0))
        assert rewards["principal"] == pytest.approx(hit - 0.5)
        assert infos["principal"]["success"] == hit


def test_whole_episodes_are_rewarded_by_the_target_at_each_pull() -> None:
    experiment = game(target_moves=3)
    result = played(experiment, Watcher())
    moving = moving_of(experiment)
    assert result.moving is not None
    assert result.moving.dtype == torch.uint8
    rewards = Incentives(experiment.environment).rewards_of(result)
    for task, episode, t in itertools.product(range(TASKS), range(EPISODES), range(HORIZON)):
        hit = result.arms[task, episode, t] == moving[task, t]
        expected = float(hit) - 0.3 * float(result.interventions[task, episode, t])
        assert rewards[task, episode, t].item() == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "labels"), list(itertools.product(("signed", "arm"), ("relative", "absolute"))))
@pytest.mark.parametrize("announced", [True, False])
def test_what_the_principal_is_told_by_hand(kind: str, labels: str, announced: bool) -> None:
    experiment = game(kind, labels, target_moves=3, announced=announced)
    view, watcher = View(experiment.environment), Watcher(experiment.environment.num_interventions)
    result = played(experiment, watcher)
    history, moving = view.history(result), moving_of(experiment)
    for task, episode, t in itertools.product(range(TASKS), range(EPISODES), range(HORIZON)):
        seen, row = watcher.seen[t], task * EPISODES + episode
        path = moving[task].tolist()
        told = path[t] if announced else path[0]
        assert seen.target[row] == told
        moves = [at for at in range(1, t + 1) if path[at] != path[at - 1]]
        assert seen.since[row] == (t - moves[-1] if announced and moves else t)
        arm = intervention = -1
        if t:
            arm, intervention = (int(x[task, episode, t - 1]) for x in (result.arms, result.interventions))
        relative = labels == "relative"
        assert seen.last_symbol[row] == ((arm - told) % ARMS if relative and t else arm)
        names = kind == "arm" and relative and intervention > 0
        assert seen.last_action[row] == ((intervention - 1 - told) % ARMS + 1 if names else intervention)
        assert seen.news is not None
        news = seen.news[row].tolist()
        if not announced:
            assert news == [float(t > 0 and arm == path[t - 1])]
        elif relative:
            moved = bool(moves) and moves[-1] == t
            old = (path[t - 1] - path[t]) % ARMS
            assert news == [float(moved and name == old) for name in range(ARMS)]
        else:
            assert news == []
        # What was seen at the moment is what the learner rebuilds, and what it predicts has the names of the moment.
        observed = view.observation(
            seen.last_symbol[row], seen.last_action[row], seen.target[row], torch.tensor(t), seen.news[row]
        )
        assert torch.equal(history.observations[task, t, episode], observed)
        pulled = int(result.arms[task, episode, t])
        assert history.labels[task, t, episode] == ((pulled - told) % ARMS if relative else pulled)


def test_late_symbols_too_are_named_from_the_target_that_holds() -> None:
    experiment = stock_families(environment={"changes": {"target_moves": 3}, "sight": {"delay": 2, "share": 0.7}})
    view, watcher = View(experiment.environment), Watcher()
    result = played(experiment, watcher)
    history, moving = view.history(result), moving_of(experiment)
    assert result.shown is not None
    for t, seen in enumerate(watcher.seen):
        rebuilt = history.observations[:, t, :, : view.num_symbols].flatten(0, 1)
        assert torch.equal(rebuilt.argmax(-1).where(rebuilt.sum(-1) > 0, -1), seen.last_symbol)
        if t >= 3:
            symbol, told = result.shown[:, :, t - 3].long(), moving[:, t, None]
            expected = ((symbol - told) % ARMS).where(symbol < ARMS, ARMS)
            assert torch.equal(seen.last_symbol.view(TASKS, EPISODES), expected)


@pytest.mark.parametrize("t", [0, 4, 9])
def test_an_unannounced_move_is_not_known_before_a_pull_was_rewarded_for_it(t: int) -> None:
    experiment = game(target_moves=3, announced=False)
    result, view = played(experiment, Watcher()), View(experiment.environment)
    assert result.moving is not None
    moving = result.moving.clone()
    moving[:, t:] = (moving[:, t:] + 1) % ARMS
    one, other = view.history(result).observations, view.history(replace(result, moving=moving)).observations
    assert torch.equal(one[:, : t + 1], other[:, : t + 1])
    assert not torch.equal(one[:, t + 1], other[:, t + 1])
    # And what else than the hit could tell it of the move?
    assert torch.equal(one[..., :-2], other[..., :-2])


# Rules, oracles, scores.


@pytest.mark.parametrize("announced", [True, False])
def test_a_fixed_rule_starts_anew_when_it_is_told_of_a_move(announced: bool) -> None:
    experiment = game(target_moves_at=[6, 12], announced=announced)
    result = played(experiment, FixedRule(experiment.environment, until=2))
    pulls = (result.interventions > 0).all(0).all(0).nonzero().flatten().tolist()
    assert pulls == ([0, 1, 6, 7, 12, 13] if announced else [0, 1])


def test_an_oracles_rule_may_start_anew_at_every_change() -> None:
    experiment = game(target_moves_at=[6], base_switches_at=[10], announced=False)
    rules = [Rule(2, restarts=True)] * (TASKS - 1) + [Rule(2)]
    result = played(experiment, PrivilegedRules(experiment.environment, rules, EPISODES))
    pulls = (result.interventions > 0).all(1)
    assert (pulls[:-1].all(0)).nonzero().flatten().tolist() == [0, 1, 6, 7, 10, 11]
    assert pulls[-1].nonzero().flatten().tolist() == [0, 1]


def test_there_are_rules_that_start_anew_only_where_something_changes_at_once() -> None:
    for steady in (stock_families(), game(base_drift=0.1)):
        assert not any(rule.restarts for rule in oracle_rules(steady.environment))
    for changing in (game(target_moves=1), game(base_switches=1)):
        rules = oracle_rules(changing.environment)
        assert {rule for rule in rules if not rule.restarts} == set(oracle_rules(stock_families().environment))
        assert len({str(rule) for rule in rules}) == len(rules)


@pytest.mark.parametrize("labels", ["relative", "absolute"])
def test_an_oracle_pays_for_the_true_target_where_the_principal_is_told_another(labels: str) -> None:
    experiment = game("arm", labels, target_moves=3, announced=False)
    result = played(experiment, PrivilegedRules(experiment.environment, [Rule(HORIZON)] * TASKS, EPISODES))
    assert torch.equal(result.interventions.long() - 1, result.targets.expand_as(result.arms))
    # A fixed rule knows only what it was told.
    fixed = played(experiment, FixedRule(experiment.environment, HORIZON))
    assert torch.equal(fixed.interventions.long() - 1, result.target[:, None, None].expand_as(result.arms))


def test_a_gap_is_the_lead_of_the_target_that_holds() -> None:
    experiment = game(target_moves_at=[7])
    moving, compared = moving_of(experiment).repeat_interleave(EPISODES, 0), 0

    class Witness(PrivilegedRules):
        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            nonlocal compared
            action = super().intervene(seen, hidden)
            for row, estimates in enumerate(hidden.estimates()):
                target = int(moving[row, seen.step])
                lead = float(estimates[target]) - max(float(q) for arm, q in enumerate(estimates) if arm != target)
                assert bool(action[row]) == (lead < 0.2)
                compared += 1
            return action

    played(experiment, Witness(experiment.environment, [Rule(HORIZON, gap=0.2)] * TASKS, EPISODES))
    assert compared == HORIZON * TASKS * EPISODES


@pytest.mark.parametrize(
    "changes",
    [{"base_drift": 0.1}, {"base_switches": 2}, {"target_moves": 2}, {"target_moves": 2, "announced": False}],
    ids=str,
)
def test_the_scale_has_two_ends_and_the_oracle_the_better_one(changes: dict[str, Any]) -> None:
    experiment = tiny(environment={"changes": changes, "horizon": 30}, evaluation={"tasks": 12, "episodes": 8})
    evaluation = Evaluation(experiment, "validation")
    bounds = evaluation.bounds
    assert bounds.oracle.mean() > bounds.never.mean() + 1
    rows = evaluation.baseline("first_n").rows
    assert rows["oracle_return"].mean() > rows["return"].mean()
    assert rows["success_rate"].between(0, 1).all()


def test_the_oracle_uses_what_it_knows_of_changes() -> None:
    """For some tasks the best rule is one that starts anew at each move: without those the bound would be too low."""
    experiment = tiny(environment={"changes": {"target_moves": 2}, "horizon": 60})
    tasks = AgentDistribution(experiment).tasks("validation", range(12))
    assert sum(rule.restarts for rule in best_rules(experiment, "validation", tasks)) >= 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"base_drift": -1}, "`environment.changes.base_drift` must be greater than or equal to 0, got -1"),
        ({"target_moves": 10}, "`environment.changes.target_moves` must be < environment.horizon (10), got 10"),
        (
            {"base_switches": 2, "base_switches_at": [3]},
            "`environment.changes.base_switches` must be 0 where base_switches_at says when, got 2",
        ),
        (
            {"target_moves_at": [5, 3]},
            "`environment.changes.target_moves_at` must name pulls from 1 to 9, each once and in order, got [5, 3]",
        ),
        ({"base_switches_at": [0]}, "must name pulls from 1 to 9, each once and in order, got [0]"),
        ({"announced": False}, "`environment.changes.announced` must be true where the target never moves, got false"),
        ({"drift": 0.1}, "section `environment.changes` has no key 'drift'"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        validate({"environment": {"horizon": 10, "changes": settings}}, where="tests")
    assert told in str(refused.value)


def test_settings_that_don_t_go_together_are_refused() -> None:
    equivariant = {"environment": {"changes": {"target_moves": 1}}, "world_model": {"arms": "equivariant"}}
    with pytest.raises(InputError, match=r"`world_model\.arms` must be flat where the target moves"):
        validate(equivariant, where="tests")
    unannounced = {"changes": {"target_moves": 1, "announced": False}, "sight": {"delay": 1}}
    with pytest.raises(InputError, match=r"must be true where environment\.sight is partial"):
        validate({"environment": unannounced}, where="tests")
    drift = {"environment": {"changes": {"base_drift": 0.1}}, "agents": {"base_reward": [1.0, 1.0]}}
    with pytest.raises(
        InputError, match=r"`agents\.base_reward` must be \[low, high\] with low < high where base means"
    ):
        validate(drift, where="tests")


def test_a_principal_is_scored_where_base_means_change_but_not_where_it_is_told_what_it_never_was() -> None:
    settings = {"question": "?", "name": "changes", "preset": "mermaide", "baselines": ["never"]}

    def check(changes: dict[str, Any]) -> None:
        conditions = {"changed": {"settings": {"environment": {"changes": changes}}}}
        check_plan(Plan(Sweep.model_validate(settings | {"conditions": conditions}), "tests"))

    check({"base_drift": 0.1, "base_switches": 1})
    for announced in (True, False):
        with pytest.raises(InputError, match="must keep the num_news that the principal was trained with"):
            check({"target_moves": 1, "announced": announced})
