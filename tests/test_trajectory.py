"""What the principal sees: names of arms and interventions, and an observation that holds the past and nothing else."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from mermaide_ray.environment import Environment
from mermaide_ray.trajectory import Trajectories, compact_dtype
from mermaide_ray.view import View

KINDS, LABELS = ("signed", "bonus", "arm", "graded"), ("relative", "absolute")
GAMES = list(itertools.product(KINDS, LABELS))
ARMS, HORIZON = 4, 6


def environment(kind: str, labels: str, **settings: Any) -> Environment:
    given = {"num_arms": ARMS, "horizon": HORIZON, "intervention": kind, "arm_labels": labels, **settings}
    return Environment.model_validate(given)


def random_episodes(env: Environment, seed: int = 0) -> Trajectories:
    rng = torch.Generator().manual_seed(seed)
    shape = (3, 2, env.horizon)
    return Trajectories(
        arms=torch.randint(env.num_arms, shape, generator=rng).to(torch.uint8),
        interventions=torch.randint(env.num_interventions, shape, generator=rng).to(torch.uint8),
        target=torch.tensor([0, 2, 3]),
    )


@pytest.mark.parametrize(("kind", "labels"), GAMES)
def test_action_and_intervention_are_inverse_for_every_target(kind: str, labels: str) -> None:
    view = View(environment(kind, labels))
    every = torch.arange(view.num_interventions)
    for target in range(ARMS):
        there = torch.full_like(every, target)
        assert torch.equal(view.action(view.intervention(every, there), there), every)
        assert torch.equal(view.intervention(view.action(every, there), there), every)


@pytest.mark.parametrize(("kind", "labels"), GAMES)
def test_none_is_none_by_every_name(kind: str, labels: str) -> None:
    view = View(environment(kind, labels))
    targets = torch.arange(ARMS)
    assert view.action(torch.zeros_like(targets), targets).tolist() == [0] * ARMS


def test_relative_names_count_from_the_target() -> None:
    view = View(environment("arm", "relative"))
    target = torch.tensor(3)
    assert view.label(torch.tensor([3, 0, 1, 2]), target).tolist() == [0, 1, 2, 3]
    assert view.label(torch.arange(ARMS), torch.arange(ARMS)).tolist() == [0] * ARMS
    # Interventions 1..4 choose arms 0..3, so 4 is the target: action 1.
    assert view.action(torch.tensor([4, 1, 2, 3]), target).tolist() == [1, 2, 3, 4]


def test_absolute_names_are_the_arms_themselves() -> None:
    view = View(environment("arm", "absolute"))
    target = torch.tensor(3)
    assert view.label(torch.arange(ARMS), target).tolist() == [0, 1, 2, 3]
    assert view.action(torch.arange(5), target).tolist() == [0, 1, 2, 3, 4]
    assert view.label(target, target).item() == 3


def test_observation_is_as_worked_out_by_hand() -> None:
    step, target = torch.tensor([0, 3]), torch.tensor([2, 2])
    arm, action = torch.tensor([-1, 1]), torch.tensor([-1, 1])
    relative = View(environment("signed", "relative")).observation(arm, action, target, step)
    assert relative.tolist() == [[0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1, 0.5]]
    absolute = View(environment("signed", "absolute")).observation(arm, action, target, step)
    assert absolute.tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0.5]]


@pytest.mark.parametrize(("kind", "labels"), GAMES)
def test_history_is_what_was_observed_step_by_step(kind: str, labels: str) -> None:
    env = environment(kind, labels)
    view, played = View(env), random_episodes(env)
    history = view.history(played)
    assert history.observations.shape == (3, HORIZON, 2, view.observation_size)
    for task, episode in itertools.product(range(3), range(2)):
        target = played.target[task]
        last_arm = last_action = torch.tensor(-1)
        for t in range(HORIZON):
            observed = view.observation(last_arm, last_action, target, torch.tensor(t))
            assert torch.equal(history.observations[task, t, episode], observed), t
            last_arm = view.label(played.arms[task, episode, t].long(), target)
            last_action = view.action(played.interventions[task, episode, t].long(), target)
            assert history.labels[task, t, episode] == last_arm
            assert history.actions[task, t, episode] == last_action


@pytest.mark.parametrize(("kind", "labels"), GAMES)
@pytest.mark.parametrize("t", range(HORIZON))
def test_nothing_from_a_step_or_after_it_is_in_its_observation(kind: str, labels: str, t: int) -> None:
    env = environment(kind, labels)
    view, played, other = View(env), random_episodes(env), random_episodes(env, seed=1)
    changed = Trajectories(played.arms.clone(), played.interventions.clone(), played.target)
    changed.arms[:, :, t:] = other.arms[:, :, t:]
    changed.interventions[:, :, t:] = other.interventions[:, :, t:]
    before, after = view.history(played).observations, view.history(changed).observations
    assert torch.equal(before[:, : t + 1], after[:, : t + 1])
    # And what follows does see it.
    assert t == HORIZON - 1 or not torch.equal(before[:, t + 1], after[:, t + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_renaming_all_arms_with_the_target_changes_nothing_by_relative_names(kind: str) -> None:
    env = environment(kind, "relative")
    view, played = View(env), random_episodes(env)
    interventions = played.interventions
    if kind == "arm":
        interventions = torch.where(interventions > 0, interventions % ARMS + 1, interventions)
    renamed = Trajectories((played.arms + 1) % ARMS, interventions, (played.target + 1) % ARMS)
    one, other = view.history(played), view.history(renamed)
    assert torch.equal(one.observations, other.observations)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.actions, other.actions)


@pytest.mark.parametrize(("count", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_the_compact_type_holds_every_value(count: int, dtype: torch.dtype) -> None:
    assert compact_dtype(count) == dtype
    assert torch.tensor(count - 1).to(dtype).item() == count - 1


def test_parts_of_trajectories_are_those_tasks_and_episodes() -> None:
    played = random_episodes(environment("signed", "relative"))
    part = played.tasks(slice(1, 3)).episodes(slice(1, 2))
    assert torch.equal(part.arms, played.arms[1:3, 1:2])
    assert torch.equal(part.interventions, played.interventions[1:3, 1:2])
    assert part.target.tolist() == [2, 3]


@pytest.mark.parametrize("more", [{}, {"shown": torch.full((3, 2, HORIZON), 1), "moving": torch.full((3, HORIZON), 2)}])
def test_what_is_shipped_by_a_name_is_found_by_that_name(more: dict[str, torch.Tensor]) -> None:
    env = environment("signed", "relative")
    support, query = replace(random_episodes(env), **more), replace(random_episodes(env, seed=1), **more)
    columns = support.columns("support") | query.columns("query")
    for name, played in (("support", support), ("query", query)):
        found = Trajectories.of_columns(columns, name)
        for field in fields(Trajectories):
            one, other = getattr(found, field.name), getattr(played, field.name)
            assert one is other or torch.equal(one, other), field.name
