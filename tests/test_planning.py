"""Planning: the rules as they are played, the agents as they are imagined, and which of rule and policy is taken."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from conftest import of_mermaide
from torch import Tensor

from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.baselines.oracles import PrivilegedRules
from mermaide_ray.baselines.rule_grid import Rule, gap_rules
from mermaide_ray.baselines.rules import FixedRule
from mermaide_ray.contender import Contender
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.errors import InputError
from mermaide_ray.evaluation import Evaluation
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.imagination import Imagination
from mermaide_ray.kshot import KShot
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.models.learner_model import LearnerModel
from mermaide_ray.models.method import Method, learner_model_of
from mermaide_ray.models.principal import shared
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.planning import Choice, SupposedRules, plan
from mermaide_ray.view import View

TASKS, EPISODES = 12, 4
KEY = Key(0, "train", "test", 0)
# UCB agents that must be paid nearly all the time, and epsilon-greedy ones that need it but at first.
FAMILIES = {
    "ucb": {"train": {"ucb_coefficient": [1.6, 2.0]}},
    "epsilon_greedy": {"train": {"epsilon": [0.02, 0.05]}},
}


def _game(method: dict[str, Any] | None = None, **environment: Any) -> Experiment:
    settings = {"environment": environment, "agents": {"families": FAMILIES, "disjoint": []}}
    return validate(settings | (method or {"world_model": {"kind": "learner"}}), where="tests")


def _tasks(experiment: Experiment) -> Tasks:
    tasks = AgentDistribution(experiment).tasks("train", range(TASKS))
    return tasks.select(tasks.family.argsort(stable=True))


def _base(tasks: Tasks) -> Tensor:
    return torch.stack([row.roll(-int(target)) for row, target in zip(tasks.base, tasks.target, strict=True)])


def _imagination(experiment: Experiment, tasks: Tasks) -> Imagination:
    dice = deal_for(experiment.environment, KEY, tasks, 2)
    played = play(experiment.environment, tasks, 2, dice, FixedRule(experiment.environment, 30))
    return Imagination.of(experiment.environment, View(experiment.environment).history(played), tasks.ids)


def _planned(experiment: Experiment, tasks: Tasks, policy: Principal) -> Choice:
    return plan(_imagination(experiment, tasks), policy, KEY)


@pytest.mark.parametrize(
    "environment", [{}, {"intervention": "bonus"}, {"intervention": "graded", "graded_sizes": [0.5, 1, 2]}]
)
def test_with_the_true_means_a_rule_does_what_the_oracle_does_with_the_agents_own(environment: dict[str, Any]) -> None:
    """Without noise an agent's estimates are base mean and mean incentive, once all arms are pulled."""
    experiment = _game(reward_noise=0.0, **environment)
    tasks, game = _tasks(experiment), experiment.environment
    rules = tuple(gap_rules(game)[7::11][:TASKS])
    rules += (Rule(60, intervention=max(rule.intervention for rule in rules)),) * (TASKS - len(rules))
    dice = deal_for(game, KEY, tasks, EPISODES)
    supposed = play(game, tasks, EPISODES, dice, SupposedRules(game, rules, _base(tasks), EPISODES))
    # From the first pull on the privileged rules must know the arms not yet pulled, as the supposed ones do.
    privileged = PrivilegedRules(game, rules, EPISODES)
    base = tasks.base.repeat_interleave(EPISODES, 0)

    class Informed:
        def begin(self, num_episodes: int) -> None:
            privileged.begin(num_episodes)

        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            own = hidden.estimates()

            class Knowing(Hidden):
                def estimates(self) -> Tensor:
                    return base.where(own.abs() < 1e-20, own)

            knowing = Knowing(hidden._agents, hidden.last_arm, hidden.next_arm, hidden.target, hidden.since)
            return privileged.intervene(seen, knowing)

    expected = play(game, tasks, EPISODES, dice, Informed())
    assert supposed.interventions.any()
    assert len(supposed.interventions.unique()) == game.num_interventions
    assert (supposed.interventions == expected.interventions).float().mean() > 0.999
    assert (supposed.arms == expected.arms).float().mean() > 0.99


def test_an_imagined_agent_pulls_as_the_model_predicts() -> None:
    """Frequencies of the generic learner's next arm against the model's probabilities: calibrated in each bin."""
    experiment = _game(reward_noise=0.0)
    learner = Method.of(experiment).architecture.learner_model
    assert learner is not None
    game, count = experiment.environment, 3000
    latents = learner.prior() + 0.7 * torch.randn(count, learner.size, generator=torch.Generator().manual_seed(0))
    base, hyperparameters = learner.agents(latents)
    mixture = {"generic_learner": {"train": {name: [1, 1] for name in hyperparameters}}}
    settings = experiment.to_dict() | {"agents": {"families": mixture, "disjoint": []}}
    settings["agents"]["families"]["generic_learner"]["train"]["lapse"] = [0.1, 0.2]
    agents = AgentDistribution(validate(settings, where="tests")).tasks("train", range(count))
    agents = Tasks(
        ids=agents.ids,
        families=agents.families,
        family=agents.family,
        params=hyperparameters,
        base=base,
        target=torch.zeros(count, dtype=torch.int64),
        base_range=(0.0, 1.0),
        moving=None,
    )
    played = play(game, agents, 1, deal_for(game, KEY, agents, 1), FixedRule(game, 25))
    history = View(game).history(played)
    p = learner.log_p(latents[:, None, None], learner.over(history.observations)).exp()
    pulled = torch.nn.functional.one_hot(history.labels, game.num_arms).float()
    edges = torch.linspace(0, 1, 11)
    which = torch.bucketize(p.flatten(), edges[1:-1])
    for number in which.unique().tolist():
        of_bin = which == number
        said, happened = p.flatten()[of_bin].mean(), pulled.flatten()[of_bin].mean()
        assert abs(said - happened) < 5 * (said * (1 - said) / of_bin.sum()).sqrt(), number


def test_what_pulls_tell_of_the_latents_is_fishers_information() -> None:
    """Against derivatives of the predicted probabilities."""
    learner, generator = LearnerModel(4, 10, ((0.0, 0.0), (1.0, -1.0))), torch.Generator().manual_seed(0)
    latents = torch.randn(learner.size, generator=generator, dtype=torch.double) / 2
    pulls = torch.randint(0, 3, (1, 6, 2, 4), generator=generator).double()
    account = torch.stack([pulls, torch.randn(pulls.shape, generator=generator).double()], dim=-2)

    def log_p(latents: Tensor) -> Tensor:
        return learner.log_p(latents, account)

    slopes = cast("Tensor", torch.autograd.functional.jacobian(log_p, latents))  # type: ignore[no-untyped-call]
    expected = (log_p(latents).exp().unsqueeze(-1) * slopes.square()).sum((0, 1, 2, 3))
    torch.testing.assert_close(learner._information(latents[None], *learner._known(account))[0], expected)


def test_a_policy_is_replaced_where_a_rule_is_clearly_better_and_only_there() -> None:
    """Intervening for 35 pulls suits the epsilon-greedy agents, not those whose exploration needs it all the time."""
    experiment = _game()
    tasks, game = _tasks(experiment), experiment.environment
    policy = FixedRule(game, 35)
    found = _planned(experiment, tasks, policy)
    is_ucb = torch.tensor([name == "ucb" for name in tasks.family_names()])
    assert 0 < is_ucb.sum() < TASKS
    assert found.by_rule[is_ucb].all()
    assert found.by_rule[~is_ucb].float().mean() < 0.5
    dice, incentives = deal_for(game, Key(0, "train", "query", 0), tasks, 16), incentives_of(game)

    def returns(principal: Principal) -> Tensor:
        return incentives.rewards_of(play(game, tasks, 16, dice, principal)).sum(2).mean(1)

    planned, before = returns(found.principal(game, policy, 16)), returns(policy)
    assert (planned - before)[is_ucb].mean() > 5
    assert torch.equal(planned[~found.by_rule], before[~found.by_rule])
    # A policy that is itself the rule is kept.
    assert not _planned(experiment, tasks, found.principal(game, policy, 32)).by_rule.any()


def test_an_agent_that_no_rule_moves_is_left_alone_by_a_rule() -> None:
    """Interventions of a thousandth of a reward are but a cost: never to intervene is clearly better than always to."""
    experiment = _game(delta=0.001)
    tasks = _tasks(experiment)
    found = _planned(experiment, tasks, FixedRule(experiment.environment, 100))
    assert found.by_rule.all()
    assert max(rule.until for rule in found.rules) <= 10


def test_a_plan_depends_on_no_other_task() -> None:
    experiment = _game(horizon=40, num_arms=4)
    tasks = _tasks(experiment)
    policy = FixedRule(experiment.environment, 20)
    together, some = _planned(experiment, tasks, policy), torch.tensor([7, 2])
    alone = _planned(experiment, tasks.select(some), policy)
    assert [str(rule) for rule in alone.rules] == [str(together.rules[i]) for i in some]
    assert torch.equal(alone.by_rule, together.by_rule[some])


def test_the_rule_plays_where_it_was_chosen_and_the_policy_elsewhere() -> None:
    experiment = _game()
    game = experiment.environment
    either = Choice((Rule(10), Rule(10)), torch.zeros(2, 10), torch.tensor([False, True])).principal(
        game, FixedRule(game, 0), 1
    )
    either.begin(2)
    zeros = torch.zeros(2, dtype=torch.int64)
    seen = Seen(0, zeros - 1, zeros - 1, zeros, torch.zeros(2), zeros)
    assert either.intervene(seen, cast("Hidden", None)).tolist() == [0, 1]  # nothing hidden is looked at


# All methods plan alike: adapted, carrying a state, reading each arm, and without any of these.
POLICIES = {
    "learner": {"world_model": {"kind": "learner"}},
    "mermaide": {"world_model": {"kind": "recurrent"}},
    "rl2": {"world_model": {"kind": "recurrent"}, "meta_learning": {"carry_state": True, "inner_steps": 0}},
    "equivariant": {"world_model": {"kind": "recurrent", "arms": "equivariant"}},
    "reinforce": {
        "world_model": {"kind": "recurrent", "enabled": False},
        "meta_learning": {"adaptation_episodes": 0, "inner_steps": 0},
    },
}


@pytest.mark.parametrize("policy", POLICIES)
def test_scores_with_planning_say_who_played(policy: str) -> None:
    experiment = _game(POLICIES[policy] | {"evaluation": {"rehearsals": 0}}, horizon=50)
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    weights, rates = module.weights(), module.inner_rates()
    contenders = [
        Contender("mine", 0, KShot(experiment.environment, module.method, rehearsals), weights, rates)
        for rehearsals in (None, 0)
    ]
    evaluation = Evaluation(experiment, "train", 8, 4)
    plain, planning = (evaluation.contender(contender, (0, 1)).rows for contender in contenders)
    assert plain["planned"].isna().all()
    before, after = planning[planning["k"] == 0], planning[planning["k"] == 1]
    assert before["planned"].isna().all()  # nothing is known of the agent
    # An untrained policy is no match for a rule.
    assert set(after["planned"]) <= {0.0, 1.0}
    assert after["planned"].mean() > 0.5
    assert before["return"].tolist() == plain[plain["k"] == 0]["return"].tolist()
    assert after["return"].mean() > plain[plain["k"] == 1]["return"].mean() + 5
    elsewhere = validate(experiment.to_dict() | {"evaluation": {"planning": True}}, where="tests")
    assert [contender.at(elsewhere).kshot.rehearsals for contender in contenders] == [30, 30]
    assert [contender.in_game_of(elsewhere).kshot.rehearsals for contender in contenders] == [None, 0]


def test_planning_alone_tells_agents_apart_that_a_fixed_schedule_can_not() -> None:
    evaluation = Evaluation(_game(), "train", TASKS, EPISODES)
    planned, scheduled = (evaluation.baseline(name).rows for name in ("untrained_planning", "first_n"))
    assert planned["return"].mean() > scheduled["return"].mean() + 2
    # UCB agents of this kind must be paid nearly all the time, the others not: one number is wrong for either.
    paid = planned.groupby("family")["interventions"].mean()
    assert paid["ucb"] > paid["epsilon_greedy"] + 20


def test_planning_for_agents_that_know_the_policy_is_refused() -> None:
    informed = {"informed_ucb": {"train": {"ucb_coefficient": [0.1, 0.2]}}}
    settings = _game().to_dict() | {"agents": {"families": informed, "disjoint": []}}
    validate(settings | {"evaluation": {"planning": False}}, where="tests")
    with pytest.raises(InputError, match=r"`evaluation.planning` must be false where .* \(informed_ucb\).* \(tests\)"):
        validate(settings | {"evaluation": {"planning": True}}, where="tests")


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_supposed_of_an_agent_is_what_its_support_tells_whatever_the_policy(policy: str) -> None:
    experiment = _game(POLICIES[policy], horizon=20, num_arms=4)
    tasks = _tasks(experiment)
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    kshot, weights = KShot(experiment.environment, module.method, 0), module.weights()
    dice = deal_for(experiment.environment, KEY, tasks, 1)
    support = play(experiment.environment, tasks, 1, dice, FixedRule(experiment.environment, 10))
    adaptation = kshot.adapt(support, weights, module.inner_rates())
    choice = kshot.prepare(tasks.ids, support, shared(weights, 1), adaptation, KEY).choice
    assert choice is not None
    history = View(experiment.environment).history(support)
    latents = learner_model_of(experiment.environment).infer(history.observations, history.labels)
    assert torch.equal(choice.base, latents[:, : experiment.environment.num_arms])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"sight": {"delay": 1}}, "`environment.sight.delay` must be 0 where evaluation.planning is true.* got 1"),
        ({"arm_labels": "absolute"}, "`environment.arm_labels` must be relative where evaluation.planning is true"),
        (
            {"intervention": "arm"},
            "`environment.intervention` must be signed, bonus or graded where .*planning is",
        ),
    ],
)
def test_planning_in_a_game_that_no_model_of_learners_describes_is_refused(
    environment: dict[str, Any], expected: str
) -> None:
    of_mermaide({"environment": environment})
    with pytest.raises(InputError, match=expected):
        of_mermaide({"environment": environment, "evaluation": {"planning": True}})
