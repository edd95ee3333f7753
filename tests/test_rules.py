"""Fixed rules: what they do, that they see nothing of the agent, and that their one number is chosen on validation."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import all_families, of_mermaide, tiny
from torch import Tensor

from mermaide_ray import blocks
from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.baselines import BASELINES, baseline_named, rules
from mermaide_ray.baselines.contract import check_own_rules
from mermaide_ray.baselines.rules import FixedRule, chosen_n, chosen_probability
from mermaide_ray.environment import Environment
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.noise import Key
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import View

KINDS = ("signed", "bonus", "arm", "graded")


class Untouchable(Hidden):
    """Nothing hidden may be looked at."""

    def __init__(self) -> None: ...

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"looked at hidden.{name}")


def experiment_of(**sections: Any) -> Experiment:
    settings: dict[str, Any] = {
        "environment": {"num_arms": 4, "horizon": 20},
        "evaluation": {"tasks": 30, "episodes": 4},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return of_mermaide(settings)


def seen_at(step: int, uniform: Tensor, target: Tensor) -> Seen:
    before = torch.full_like(target, -1)
    return Seen(step, before, before, target, uniform, since=torch.full_like(target, step))


def actions(principal: Principal, environment: Environment, episodes: int = 50) -> Tensor:
    """What a rule does in each episode, [T, N], without anything hidden."""
    target = torch.arange(episodes) % environment.num_arms
    principal.begin(episodes)
    uniform = torch.rand(environment.horizon, episodes, generator=torch.Generator().manual_seed(0))
    return torch.stack(
        [principal.intervene(seen_at(t, uniform[t], target), Untouchable()) for t in range(environment.horizon)]
    )


@pytest.mark.parametrize("labels", ["relative", "absolute"])
@pytest.mark.parametrize("kind", KINDS)
def test_to_intervene_is_to_favour_the_target_as_much_as_can_be(kind: str, labels: str) -> None:
    sizes = (0.5, 2.0, 1.0)
    environment = experiment_of(
        environment={"intervention": kind, "arm_labels": labels, "graded_sizes": sizes}
    ).environment
    view, incentives = View(environment), incentives_of(environment)
    target, other = torch.arange(4), (torch.arange(4) + 1) % 4
    action = FixedRule(environment, until=1).intervene(seen_at(0, torch.zeros(4), target), Untouchable())
    chosen = view.intervention(action, target)
    advantage = incentives.incentive(chosen, target, target) - incentives.incentive(chosen, other, target)
    for intervention in range(environment.num_interventions):
        same = torch.full_like(target, intervention)
        less = incentives.incentive(same, target, target) - incentives.incentive(same, other, target)
        assert (less <= advantage).all()
    assert (incentives.incentive(chosen, target, target) > 0).all()


def test_first_n_intervenes_at_exactly_the_first_n_pulls() -> None:
    environment = experiment_of().environment
    for n in (0, 1, 7, 20):
        done = actions(FixedRule(environment, until=n), environment)
        assert (done[:n] == 1).all()
        assert (done[n:] == 0).all()


def test_random_intervenes_at_its_rate_and_the_ends_are_never_and_always() -> None:
    environment = experiment_of(environment={"horizon": 200}).environment
    for p in (0.0, 0.3, 1.0):
        rate = actions(FixedRule(environment, 200, p), environment).float().mean().item()
        assert rate == pytest.approx(p, abs=5 * (p * (1 - p) / 10000) ** 0.5 + 1e-9)


def mean_return(experiment: Experiment, principal: Principal) -> float:
    """On the validation agents and the dice on which numbers are chosen."""
    environment, evaluation = experiment.environment, experiment.evaluation
    tasks = AgentDistribution(experiment).held_out("validation", evaluation.tasks)
    key = Key(experiment.agents.seed, "validation", "baselines/choice", 0)
    dice = deal_for(environment, key, tasks, evaluation.episodes)
    played = play(environment, tasks, evaluation.episodes, dice, principal)
    return incentives_of(environment).rewards_of(played).sum(2).mean().item()


def test_n_and_p_have_the_highest_return_on_validation() -> None:
    experiment = experiment_of()
    environment = experiment.environment
    by_n = {n: mean_return(experiment, FixedRule(environment, n)) for n in range(21)}
    by_p = {i / 20: mean_return(experiment, FixedRule(environment, 20, i / 20)) for i in range(21)}
    assert chosen_n(experiment) == max(by_n, key=lambda n: by_n[n])
    assert chosen_probability(experiment) == max(by_p, key=lambda p: by_p[p])
    # An optimum inside the range: neither end would do.
    assert 0 < chosen_n(experiment) < 20


GAMES: dict[str, Experiment] = {
    "all families": all_families(evaluation={"tasks": 40, "episodes": 3}),
    "places": all_families(environment={"arm_labels": "absolute"}, evaluation={"tasks": 40, "episodes": 3}),
    "continuous": tiny(environment={"game": "continuous", "dimensions": 2}, evaluation={"tasks": 9, "episodes": 3}),
    "changes": tiny(environment={"changes": {"target_moves": 2}, "sight": {"share": 0.5}}),
}


@pytest.mark.parametrize("game", GAMES)
def test_numbers_are_chosen_in_little_memory_by_the_same_returns(game: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit those of all validation agents at once."""
    experiment = GAMES[game]
    environment, evaluation = experiment.environment, experiment.evaluation
    candidates = [partial(FixedRule, environment, 7), partial(FixedRule, environment, environment.horizon, 0.35)]
    expected = [mean_return(experiment, candidate()) for candidate in candidates]
    sizes: list[int] = []

    def counted(*given: Any) -> Trajectories:
        sizes.append(len(given[1]) * given[2])
        return play(*given)

    monkeypatch.setattr(rules, "play", counted)
    for most_episodes in (blocks.MOST_EPISODES, 10, 1):
        monkeypatch.setattr(blocks, "MOST_EPISODES", most_episodes)
        sizes.clear()
        returns = rules._returns_on_validation(experiment, candidates)
        assert [each.mean().item() for each in returns] == expected
        assert max(sizes) <= max(most_episodes, evaluation.episodes)
        assert sum(sizes) == len(candidates) * evaluation.tasks * evaluation.episodes


def test_an_intervention_that_costs_more_than_all_pulls_are_worth_is_never_chosen() -> None:
    dear = experiment_of(environment={"cost_weight": 50.0})
    assert chosen_n(dear) == 0
    assert chosen_probability(dear) == 0


def test_the_choice_depends_on_validation_agents_alone() -> None:
    def n_of(validation: list[float], test: list[float], seed: int = 0) -> int:
        family = {"train": {"epsilon": [0.1, 0.2]}, "validation": {"epsilon": validation}, "test": {"epsilon": test}}
        experiment = experiment_of(agents={"families": {"epsilon_greedy": family}, "disjoint": []})
        return chosen_n(experiment.model_copy(update={"seed": seed}))

    chosen = n_of([0.0, 0.05], [0.3, 0.5])
    assert n_of([0.0, 0.05], [0.9, 1.0]) == chosen
    assert n_of([0.0, 0.05], [0.3, 0.5], seed=5) == chosen
    assert n_of([0.95, 1.0], [0.3, 0.5]) != chosen


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_plays_and_only_privileged_ones_look_at_what_is_hidden(name: str) -> None:
    experiment = experiment_of()
    environment = experiment.environment
    tasks = AgentDistribution(experiment).tasks("test", range(6))
    principal = baseline_named(name)(experiment, "test", tasks, 2)
    key = Key(0, "test", "evaluation/query", 0)
    played = play(environment, tasks, 2, deal_for(environment, key, tasks, 2), principal)
    assert played.arms.shape == (6, 2, 20)
    principal.begin(12)
    seen = seen_at(0, torch.zeros(12), tasks.target.repeat_interleave(2))
    if BASELINES[name].privileged:
        with pytest.raises(AssertionError, match="looked at hidden"):
            principal.intervene(seen, Untouchable())
    else:
        assert principal.intervene(seen, Untouchable()).shape == (12,)


def test_privileged_baselines_say_so_in_their_description() -> None:
    for baseline in BASELINES.values():
        assert baseline.description.startswith("privileged:") == baseline.privileged


def test_unknown_baseline_names_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(InputError, match=r"never, always, .*did you mean 'first_n'"):
        baseline_named("first_m")


def test_a_baseline_of_the_user_s_own_is_taken_by_its_dotted_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from mermaide_ray.baselines.rules import FixedRule\n\n\ndef half(experiment, split, tasks, episodes):\n"
    source += "    return FixedRule(experiment.environment, experiment.environment.horizon // 2)\n"
    (tmp_path / "own_baselines.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    experiment = experiment_of()
    tasks = AgentDistribution(experiment).tasks("test", range(2))
    done = actions(baseline_named("own_baselines:half")(experiment, "test", tasks, 1), experiment.environment)
    assert done.sum(0).tolist() == [10] * 50


class Rule:
    """Of the user's own; each fault is one of its parts replaced."""

    def begin(self, num_episodes: int) -> None:
        """Nothing to forget."""

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        return 0 * seen.last_symbol


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda experiment: Rule(), r"`RULE` of 'own_rules:RULE' must not fail, got TypeError: .* takes 1 positional"),
        (lambda *given: None, "must return a principal with `begin`, `intervene`, got NoneType without `begin`"),
        ({"intervene": lambda seen, hidden: seen.last_symbol.float()}, r"must return int64 \[N\], got float32 \[N\]"),
        ({"intervene": lambda seen, hidden: 0 * seen.last_symbol + 7}, "must return actions from 0 to 1, got 7"),
        ({"intervene": lambda seen, hidden: seen.nothing}, r"must not fail, got AttributeError: .*test_rules.py, line"),
        ({"probabilities": lambda: torch.ones(3)}, None),  # no agent asks for them
        ({"intervene": lambda seen, hidden: (0 * seen.last_symbol).int()}, None),
    ],
)
def test_a_rule_of_the_user_s_own_is_played_before_anything_starts(
    build: Any, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*given: Any) -> Rule:
        rule = Rule()
        vars(rule).update(build)
        return rule

    module = ModuleType("own_rules")
    vars(module)["RULE"] = build if callable(build) else built
    monkeypatch.setitem(sys.modules, "own_rules", module)
    with pytest.raises(InputError, match=expected) if expected else nullcontext():
        check_own_rules(["never", "own_rules:RULE"], experiment_of(), "validation")


def test_agents_that_know_the_policy_ask_a_rule_of_the_user_s_own_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_of(
        agents={"families": {"informed_ucb": {"train": {"ucb_coefficient": [0.1, 0.2]}}}, "disjoint": []}
    )
    module, rule = ModuleType("own_rules"), Rule()
    vars(module)["RULE"] = lambda *given: rule
    monkeypatch.setitem(sys.modules, "own_rules", module)
    with pytest.raises(InputError, match="got Rule without `probabilities`, which informed_ucb agents ask for"):
        check_own_rules(["own_rules:RULE"], experiment, "validation")
    vars(rule)["probabilities"] = lambda: torch.ones(16, 2, dtype=torch.float64) / 2
    with pytest.raises(InputError, match=r"must return float32 \[N, 2\], got float64 \[N, 2\]"):
        check_own_rules(["own_rules:RULE"], experiment, "validation")
    vars(rule)["probabilities"] = lambda: torch.ones(16, 2) / 2
    check_own_rules(["own_rules:RULE"], experiment, "validation")


def test_listing_baselines_loads_neither_torch_nor_ray() -> None:
    code = "import sys, mermaide_ray.baselines; sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
