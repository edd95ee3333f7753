"""Which agents a principal meets: rebuilt from ids alone, and never the same in two splits that must be apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import all_families

from mermaide_ray.agent_settings import SPLITS, Split
from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment, load_experiment, validate

EPSILON = "epsilon_greedy"


def greedy(train: list[float], test: list[float] | None = None, **agents: Any) -> Experiment:
    """Only epsilon-greedy agents, with these ranges of epsilon."""
    family: dict[str, Any] = {"train": {"epsilon": train}}
    if test is not None:
        family["test"] = {"epsilon": test}
    return validate({"agents": {"families": {EPSILON: family}, **agents}}, where="tests")


def tasks_of(experiment: Experiment, split: Split, count: int) -> Tasks:
    return AgentDistribution(experiment).tasks(split, range(count))


def assert_same(one: Tasks, other: Tasks) -> None:
    assert one.ids == other.ids
    assert torch.equal(one.family, other.family)
    assert torch.equal(one.base, other.base)
    assert torch.equal(one.target, other.target)
    for name, values in one.params.items():
        torch.testing.assert_close(values, other.params[name], rtol=0, atol=0, equal_nan=True)


def test_a_task_is_rebuilt_from_its_id_alone() -> None:
    experiment = all_families()
    together = tasks_of(experiment, "test", 20)
    for place in (17, 3, 0):
        alone = AgentDistribution(experiment).tasks("test", [place])
        assert_same(alone, together.select(torch.tensor([place])))


def test_select_keeps_each_task_whole() -> None:
    experiment = all_families()
    picked = [5, 5, 1]
    selected = tasks_of(experiment, "train", 8).select(torch.tensor(picked))
    assert_same(selected, AgentDistribution(experiment).tasks("train", picked))
    assert len(selected) == 3


def test_splits_draw_from_separate_branches() -> None:
    # The same ranges everywhere, and the same seed: only the branch is left to tell the splits apart.
    experiment = greedy([0.1, 0.2], disjoint=[])
    bases = torch.cat([tasks_of(experiment, split, 30).base for split in SPLITS])
    assert len(bases.flatten().unique()) == bases.numel()


def test_training_agents_belong_to_the_training_seed_and_the_others_to_the_agents_seed() -> None:
    def first_base(split: Split, seed: int, agents_seed: int) -> list[float]:
        experiment = validate({"seed": seed, "agents": {"seed": agents_seed}}, where="tests")
        return tasks_of(experiment, split, 1).base[0].tolist()

    for split in SPLITS:
        reference = first_base(split, 0, 0)
        assert (first_base(split, 1, 0) == reference) == (split != "train"), split
        assert (first_base(split, 0, 1) == reference) == (split == "train"), split


def test_hyperparameters_lie_in_the_split_s_range_and_fill_it() -> None:
    experiment = validate({}, where="tests")
    for split, expected in (("train", (0.05, 0.5)), ("validation", (0.05, 0.5)), ("test", (0.6, 1.5))):
        tasks = tasks_of(experiment, split, 400)  # type: ignore[arg-type]
        values = tasks.params["ucb_coefficient"]
        assert torch.equal(values.isnan(), tasks.family != 0)
        drawn = values[tasks.family == 0]
        low, high = expected
        assert drawn.min() >= low
        assert drawn.max() <= high
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=5 * (high - low) / 12**0.5 / 180**0.5)


def test_base_rewards_and_targets_are_uniform() -> None:
    tasks = tasks_of(validate({}, where="tests"), "train", 1500)
    assert tasks.base.min() >= 0
    assert tasks.base.max() <= 1
    assert tasks.base.mean().item() == pytest.approx(0.5, abs=5 * 0.289 / 15000**0.5)
    # 150 expected per arm, standard deviation 11.6.
    assert (tasks.target.bincount(minlength=10) - 150).abs().max() < 5 * 11.6
    # The target is not tied to the rewards: on average it ranks in the middle.
    assert tasks.base.gather(1, tasks.target[:, None]).mean().item() == pytest.approx(0.5, abs=5 * 0.289 / 1500**0.5)


def test_families_come_in_proportion_to_their_weights() -> None:
    settings = {
        "ucb": {"weight": 3.0, "train": {"ucb_coefficient": [0.1, 0.2]}},
        EPSILON: {"weight": 1.0, "train": {"epsilon": [0.1, 0.2]}},
    }
    tasks = tasks_of(validate({"agents": {"families": settings, "disjoint": []}}, where="tests"), "train", 1000)
    assert tasks.family_names().count("ucb") == pytest.approx(750, abs=5 * 13.7)
    assert set(tasks.family_names()) == {"ucb", EPSILON}


def test_only_families_that_draw_normals_ask_for_them() -> None:
    tasks = tasks_of(all_families(), "train", 40)
    needed = dict(zip(tasks.family_names(), tasks.needs_normals(), strict=True))
    assert needed.pop("thompson")
    assert not any(needed.values())


def test_default_training_and_test_ranges_do_not_overlap() -> None:
    agents = validate({}, where="tests").agents
    assert ("train", "test") in agents.disjoint
    for family in agents.families.values():
        for name, (low, high) in family.ranges("train").items():
            other_low, other_high = family.ranges("test")[name]
            assert high < other_low or other_high < low


@pytest.mark.parametrize(("train", "test"), [([0.1, 0.3], [0.2, 0.5]), ([0.1, 0.1], [0.1, 0.1]), ([0.1, 0.3], None)])
def test_overlapping_ranges_are_refused(train: list[float], test: list[float] | None) -> None:
    with pytest.raises(InputError, match="disjoint"):
        greedy(train, test)
    # The negative control: nothing is claimed, so nothing is refused.
    assert greedy(train, test, disjoint=[])


def test_ranges_may_share_an_end_point_which_no_draw_hits() -> None:
    assert greedy([0.1, 0.3], [0.3, 0.5])


def test_meta_batches_of_an_unlimited_stream_are_fresh_each_time() -> None:
    distribution = AgentDistribution(validate({}, where="tests"))
    met = [task for iteration in range(5) for task in distribution.meta_batch(iteration, 7)]
    assert len(set(met)) == 35
    assert distribution.meta_batch(3, 7) == met[21:28]


def test_meta_batches_of_a_population_are_seeded_and_stay_within_it() -> None:
    experiment = greedy([0.1, 0.2], [0.3, 0.4], population={"train": 5})
    distribution = AgentDistribution(experiment)
    batches = [distribution.meta_batch(iteration, 12) for iteration in range(20)]
    assert batches == [AgentDistribution(experiment).meta_batch(iteration, 12) for iteration in range(20)]
    agents = [[task % 5 for task in batch] for batch in batches]
    assert {agent for batch in agents for agent in batch} == set(range(5))
    assert agents[0] != agents[1]
    # Luck goes by id: an agent met twice in a batch must have two.
    assert all(len(set(batch)) == 12 for batch in batches)
    bases = distribution.tasks("train", [2, 7, 3]).base
    assert torch.equal(bases[0], bases[1])
    assert not torch.equal(bases[0], bases[2])


def test_another_training_seed_meets_other_meta_batches() -> None:
    settings = {"agents": {"population": {"train": 5}}}
    one, other = (AgentDistribution(validate({"seed": seed, **settings}, where="tests")) for seed in (0, 1))
    assert [one.meta_batch(i, 12) for i in range(3)] != [other.meta_batch(i, 12) for i in range(3)]


def test_held_out_tasks_are_the_first_ones_or_a_whole_population() -> None:
    assert AgentDistribution(validate({}, where="tests")).held_out("test", 4).ids == (0, 1, 2, 3)
    small = AgentDistribution(validate({"agents": {"population": {"test": 3}}}, where="tests"))
    assert small.held_out("test", 100).ids == (0, 1, 2)
    assert small.held_out("test", 2).ids == (0, 1)


def test_paper_populations_share_no_agent() -> None:
    experiment = load_experiment(preset="paper")
    assert (experiment.agents.size("train"), experiment.agents.size("test")) == (15, 10)
    distribution = AgentDistribution(experiment)
    bases = torch.cat([distribution.tasks("train", range(15)).base, distribution.tasks("test", range(10)).base])
    assert len(bases.unique(dim=0)) == 25


def test_populations_are_of_ranges_apart_as_streams_are() -> None:
    with pytest.raises(InputError, match=r"agents\.disjoint"):
        greedy([0.1, 0.3], [0.2, 0.5], population={"train": 3, "test": 2})
    assert greedy([0.1, 0.2], [0.3, 0.5], population={"train": 3, "test": 2})
