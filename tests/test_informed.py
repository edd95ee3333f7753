"""Agents that know the principal's policy: what they are told, how they plan with it, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from conftest import STOCK_FAMILIES, all_families, of_mermaide, tiny
from torch import Tensor

from mermaide_ray.agents import FAMILIES
from mermaide_ray.agents.base import Draws
from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.baselines import SCORED_BESIDE, baseline_named
from mermaide_ray.baselines.oracles import PrivilegedRules
from mermaide_ray.baselines.rule_grid import Rule
from mermaide_ray.baselines.rules import FixedRule
from mermaide_ray.envs.bandit import IncentivizedBanditEnv
from mermaide_ray.envs.incentive import Incentives
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.models.method import Method
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.player import NetworkPrincipal
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import View

INFORMED = [name for name, family in FAMILIES.items() if family.hear is not None]
KINDS = ("signed", "bonus", "arm", "graded")


def told(family: str = "informed_epsilon_greedy", exploration: float = 0.0, **environment: object) -> Experiment:
    """One informed family, all agents alike."""
    (name,) = FAMILIES[family].hyperparameters
    return of_mermaide(
        {
            "environment": {"num_arms": 4, "horizon": 30, "reward_noise": 0.0, **environment},
            "agents": {"families": {family: {"train": {name: [exploration, exploration]}}}, "disjoint": []},
        },
    )


def agents_of(experiment: Experiment, num: int = 20) -> Tasks:
    return AgentDistribution(experiment).tasks("train", range(num))


def met(experiment: Experiment, principal: Principal, tasks: Tasks | None = None, episodes: int = 2) -> Trajectories:
    tasks = tasks or agents_of(experiment)
    dice = deal_for(experiment.environment, Key(0, "train", "informed", 0), tasks, episodes)
    return play(experiment.environment, tasks, episodes, dice, principal)


@pytest.mark.parametrize("kind", KINDS)
def test_the_offer_is_the_incentive_averaged_over_the_principals_dice(kind: str) -> None:
    incentives = Incentives(told(intervention=kind).environment)
    rng = torch.Generator().manual_seed(0)
    probabilities = torch.rand(5, incentives.num_interventions, generator=rng).softmax(-1)
    target = torch.tensor([0, 1, 2, 3, 1])
    offer = incentives.offer(probabilities, target)
    for row in range(5):
        for arm in range(4):
            each = torch.arange(incentives.num_interventions)
            paid = incentives.incentive(each, torch.full_like(each, arm), target[row].expand_as(each))
            assert offer[row, arm].item() == pytest.approx((probabilities[row] * paid).sum().item(), abs=1e-6)


@pytest.mark.parametrize("labels", ["relative", "absolute"])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_actions_become_those_of_the_interventions_meant(kind: str, labels: str) -> None:
    view = View(told(intervention=kind, arm_labels=labels).environment)
    probabilities = torch.rand(3, view.num_interventions).softmax(-1)
    target = torch.tensor([0, 2, 3])
    by_intervention = view.by_intervention(probabilities, target)
    for action in range(view.num_interventions):
        meant = view.intervention(torch.full((3,), action), target)
        assert torch.equal(by_intervention.gather(1, meant.unsqueeze(1))[:, 0], probabilities[:, action])


def test_an_agent_learns_its_own_rewards_whatever_it_is_paid() -> None:
    """Told the truth, it takes the incentive off: its estimates are the base means of the arms that it has pulled."""
    experiment, estimates = told(exploration=1.0), []

    class Witness(FixedRule):
        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            estimates.append(hidden.estimates())
            return super().intervene(seen, hidden)

    agents = agents_of(experiment)
    played = met(experiment, Witness(experiment.environment, until=20), agents, episodes=1)
    pulled = torch.nn.functional.one_hot(played.arms[:, 0, :-1].long(), 4).amax(1).bool()
    assert pulled.float().mean() > 0.9
    torch.testing.assert_close(estimates[-1][pulled], agents.base[pulled])


@pytest.mark.parametrize(("family", "stays"), [("informed_epsilon_greedy", False), ("epsilon_greedy", True)])
def test_a_follower_leaves_when_the_offer_ends_and_its_ignorant_twin_stays(family: str, stays: bool) -> None:
    """Paid for 15 pulls, then no more: who knows it goes where its own rewards are best; who doesn't was won over."""
    experiment = told(family, exploration=0.5)
    played, agents = met(experiment, FixedRule(experiment.environment, until=15)), agents_of(experiment)
    best = agents.base.argmax(1)
    unlucky = best != agents.target
    on_target, on_best = (
        (played.arms == arm[:, None, None])[unlucky, :, -5:].float().mean().item() for arm in (agents.target, best)
    )
    assert (on_target > 0.5) == stays
    assert (on_best > 0.5) != stays


def test_a_follower_takes_the_offer_at_once() -> None:
    experiment = told()
    played = met(experiment, FixedRule(experiment.environment, until=30))
    assert (played.arms == played.target[:, None, None]).all()


def test_informed_ucb_tries_every_arm_once_and_then_counts_the_offer_in() -> None:
    ucb, given = FAMILIES["informed_ucb"], {"ucb_coefficient": torch.tensor([[0.1]])}
    state, arms = ucb.init(given, torch.tensor([[2.0, 4.0, 1.0, 3.0]])), []
    assert ucb.hear is not None
    offer = torch.tensor([[0.0, 0.0, 5.0, 0.0]])
    draws = Draws(torch.zeros(1, 2), torch.zeros(1, 0))
    for t in range(5):
        state = ucb.hear(state, given, offer)
        arm = ucb.act(state, given, torch.tensor(float(t)), draws)
        # Perceived: an own reward of 0.1 an arm's number, and the offer.
        state = ucb.learn(state, given, torch.tensor(float(t)), arm, 0.1 * arm + offer[0, arm])
        arms.append(int(arm))
    assert arms == [1, 3, 0, 2, 2]
    torch.testing.assert_close(state["mean"], torch.tensor([[0.0, 0.1, 0.2, 0.3]]))


def test_equal_offers_leave_the_order_of_untried_arms_to_their_priority() -> None:
    greedy, given = FAMILIES["informed_epsilon_greedy"], {"epsilon": torch.tensor([[0.0]])}
    state = greedy.init(given, torch.tensor([[2.0, 4.0, 1.0, 3.0]]))
    assert greedy.hear is not None
    state = greedy.hear(state, given, torch.tensor([[-1.0, -1.0, -2.0, -1.0]]))
    assert greedy.act(state, given, torch.tensor(0.0), Draws(torch.zeros(1, 2), torch.zeros(1, 0))).tolist() == [1]


def network(experiment: Experiment) -> NetworkPrincipal:
    module = PrincipalModule(model_config={"experiment": experiment.to_dict()})
    weights = {name: 4 * value.detach().unsqueeze(0) for name, value in module.weights().items()}
    return NetworkPrincipal(Method.of(experiment), View(experiment.environment), weights)


PRINCIPALS: dict[str, Callable[[Experiment, int], Principal]] = {
    "network": lambda experiment, num: network(experiment),
    "rule": lambda experiment, num: FixedRule(experiment.environment, 9, 0.5),
    "oracle": lambda experiment, num: PrivilegedRules(
        experiment.environment, [Rule(12, gap=0.3), Rule(12, next_arm="other")] * num, 1
    ),
}


@pytest.mark.parametrize("name", list(PRINCIPALS))
def test_those_who_know_nothing_play_as_if_no_informed_agent_were_there(name: str) -> None:
    """Company changes nothing: the others' games are bit for bit the same with and without informed agents beside."""
    experiment = all_families()
    tasks = AgentDistribution(experiment).tasks("train", range(50))
    ignorant = torch.tensor([name not in INFORMED for name in tasks.family_names()]).nonzero().squeeze(1)
    assert 0 < len(ignorant) < 50
    both = met(experiment, PRINCIPALS[name](experiment, 50), tasks)
    alone = met(experiment, PRINCIPALS[name](experiment, len(ignorant)), tasks.select(ignorant))
    assert torch.equal(both.arms[ignorant], alone.arms)
    assert torch.equal(both.interventions[ignorant], alone.interventions)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_network_announces_is_how_often_it_then_does_it(kind: str) -> None:
    experiment = tiny(environment={"intervention": kind})
    principal, num = network(experiment), 4000
    principal.begin(num)
    none, dice = torch.full((num,), -1), (torch.arange(num) + 0.5) / num
    target = torch.zeros(num, dtype=torch.int64)
    seen = Seen(0, none, none, target, dice, since=torch.zeros_like(target))
    action = principal.intervene(seen, cast(Hidden, None))  # it never looks
    probabilities = principal.probabilities()
    assert probabilities.shape == (num, experiment.environment.num_interventions)
    shares = action.bincount(minlength=probabilities.shape[1]) / num
    torch.testing.assert_close(probabilities[0], shares, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", SCORED_BESIDE)
def test_every_baseline_tells_how_likely_it_is_to_do_what_it_does(name: str) -> None:
    """Probabilities add up to 1, and what has happened was possible; a rule without dice is certain."""
    experiment = all_families(environment={"num_arms": 3, "horizon": 6}, evaluation={"tasks": 12, "episodes": 2})
    tasks = AgentDistribution(experiment).tasks("test", range(40))
    principal, checked = baseline_named(name)(experiment, "test", tasks, 2), []

    class Witness:
        def begin(self, num_episodes: int) -> None:
            principal.begin(num_episodes)

        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            action = principal.intervene(seen, hidden)
            happened = self.probabilities().gather(1, action.unsqueeze(1))
            torch.testing.assert_close(self.probabilities().sum(1), torch.ones(80))
            checked.append(bool((happened > 0).all()))
            return action

        def probabilities(self) -> Tensor:
            return principal.probabilities()  # type: ignore[attr-defined]

    dice = deal_for(experiment.environment, Key(0, "test", "informed", 0), tasks, 2)
    play(experiment.environment, tasks, 2, dice, Witness())
    assert checked == [True] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_sufficient_offer_brings_the_lead_up_to_the_gap_and_no_further(kind: str) -> None:
    experiment = told(exploration=0.3, intervention=kind, delta=2.0, graded_sizes=[1.0])
    gap, offered = 0.1, []
    span = 4.0 if kind in ("signed", "graded") else 2.0
    target = agents_of(experiment).target.repeat_interleave(2).unsqueeze(1)

    class Witness(PrivilegedRules):
        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            own = hidden.estimates()
            lead = own.gather(1, target) - own.scatter(1, target, float("-inf")).amax(1, keepdim=True)
            action = super().intervene(seen, hidden)
            offered.append((lead.squeeze(1), 1 - self.probabilities()[:, 0]))
            return action

    met(experiment, Witness(experiment.environment, [Rule(30, gap=gap)] * 20, 2))
    lead, probability = (torch.cat(part) for part in zip(*offered, strict=True))
    leads, needed = lead >= gap, lead < gap - 0.01
    assert leads.any()
    assert needed.any()
    assert not probability[leads].any()
    torch.testing.assert_close((lead + span * probability)[needed], torch.full_like(lead[needed], gap))


def test_no_rule_foresees_the_arm_of_an_informed_agent() -> None:
    experiment = told()
    for wanted in ("target", "other"):
        rules = PrivilegedRules(experiment.environment, [Rule(30, next_arm=wanted)] * 20, 2)
        assert not met(experiment, rules).interventions.any()


def test_the_oracle_bounds_the_other_rules_on_informed_agents() -> None:
    experiment = of_mermaide(
        {
            "environment": {"horizon": 40},
            "agents": {
                "families": {
                    "informed_ucb": {"train": {"ucb_coefficient": [0.05, 0.5]}},
                    "informed_epsilon_greedy": {"train": {"epsilon": [0.02, 0.2]}},
                },
                "disjoint": [],
            },
            "evaluation": {"tasks": 20, "episodes": 4},
        },
    )
    tasks = AgentDistribution(experiment).tasks("train", range(20))
    dice = deal_for(experiment.environment, Key(0, "train", "informed", 0), tasks, 8)
    incentives = Incentives(experiment.environment)

    def score(name: str) -> float:
        played = play(experiment.environment, tasks, 8, dice, baseline_named(name)(experiment, "train", tasks, 8))
        return incentives.rewards_of(played).sum(2).mean().item()

    oracle = score("oracle")
    for name in ("never", "always", "first_n", "privileged_gap", "privileged_foresight"):
        assert oracle > score(name) + 0.5, name


def test_the_oracle_is_not_beaten_by_a_rule_that_offers_just_enough() -> None:
    """An informed epsilon-greedy agent follows any lead, however small."""
    experiment = told(exploration=0.1, num_arms=10, horizon=40, reward_noise=0.05)
    tasks = agents_of(experiment)
    just_enough = PrivilegedRules(experiment.environment, [Rule(40, gap=0.02)] * len(tasks), 8)
    oracle = baseline_named("oracle")(experiment, "train", tasks, 8)
    incentives = Incentives(experiment.environment)
    scores = [incentives.rewards_of(met(experiment, each, tasks, 8)).sum(2).mean() for each in (oracle, just_enough)]
    assert scores[0] > scores[1]


def test_a_principal_that_does_not_tell_its_policy_meets_no_informed_agent() -> None:
    class Silent:
        def begin(self, num_episodes: int) -> None: ...

        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            return torch.zeros_like(seen.target)

    with pytest.raises(InputError, match=r"must tell its probabilities .* got Silent for informed_epsilon_greedy"):
        met(told(), Silent())


@pytest.mark.parametrize("name", INFORMED)
def test_rllibs_own_runner_refuses_them(name: str) -> None:
    with pytest.raises(InputError, match=f"must hold no agents that know the principal's policy .* got '{name}'"):
        IncentivizedBanditEnv({"experiment": told(name).to_dict()})
    assert name not in STOCK_FAMILIES
