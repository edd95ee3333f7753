"""The game in lock step: batched is one at a time, and nobody's company or place in the batch changes anything."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import all_families
from torch import Tensor

from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.lockstep import Hidden, Principal, Seen, deal_for, play
from mermaide_ray.noise import Key, deal
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import View

KEY = Key(0, "train", "lockstep", 2)
TASKS, EPISODES = 50, 3
KINDS = ("signed", "bonus", "arm", "graded")


class Scripted:
    """An action that depends on everything that a principal may know, and on its own past."""

    def __init__(self, num_interventions: int) -> None:
        self.num_interventions = num_interventions
        self.seen: list[Seen] = []

    def begin(self, num_episodes: int) -> None:
        self.memory = torch.zeros(num_episodes, dtype=torch.int64)
        self.seen = []

    def probabilities(self) -> Tensor:
        """It tells beforehand what it does."""
        return torch.nn.functional.one_hot(self.action, self.num_interventions).float()

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        self.seen.append(seen)
        self.memory = (3 * self.memory + seen.last_symbol + 5 * seen.last_action + 7) % 101
        self.action = (self.memory + seen.target + seen.step + (seen.uniform * 6).long()) % self.num_interventions
        return self.action


def scripted(experiment: Experiment) -> Principal:
    return Scripted(experiment.environment.num_interventions)


def tasks_of(experiment: Experiment, count: int = TASKS) -> Tasks:
    tasks = AgentDistribution(experiment).tasks("train", range(count))
    # Every family, and never side by side.
    assert len(set(tasks.family_names())) == len(experiment.agents.families)
    assert (tasks.family.diff() < 0).any()
    return tasks


def played(experiment: Experiment, tasks: Tasks, horizon: int | None = None) -> Trajectories:
    dice = deal_for(experiment.environment, KEY, tasks, EPISODES)
    return play(experiment.environment, tasks, EPISODES, dice, scripted(experiment), horizon)


def assert_same(one: Trajectories, other: Trajectories) -> None:
    assert torch.equal(one.arms, other.arms)
    assert torch.equal(one.interventions, other.interventions)
    assert torch.equal(one.target, other.target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_one_task_at_a_time(kind: str) -> None:
    experiment = all_families(environment={"intervention": kind})
    tasks = tasks_of(experiment)
    together = played(experiment, tasks)
    assert together.arms.shape == (TASKS, EPISODES, experiment.environment.horizon)
    assert len(together.interventions.unique()) == experiment.environment.num_interventions
    for place in range(TASKS):
        assert_same(played(experiment, tasks.select(torch.tensor([place]))), together.tasks(slice(place, place + 1)))


def test_a_batch_is_one_episode_at_a_time() -> None:
    experiment = all_families()
    environment, tasks = experiment.environment, tasks_of(experiment)
    together = played(experiment, tasks)
    for place, episode in itertools.product(range(TASKS), range(EPISODES)):
        one = tasks.select(torch.tensor([place]))
        dice = deal(
            KEY, one.ids, 1, environment.horizon, environment.num_arms, one.needs_normals(), first_episode=episode
        )
        alone = play(environment, one, 1, dice, scripted(experiment))
        assert_same(alone, together.tasks(slice(place, place + 1)).episodes(slice(episode, episode + 1)))


def test_families_side_by_side_or_interleaved_play_the_same() -> None:
    experiment = all_families()
    tasks = tasks_of(experiment)
    interleaved = played(experiment, tasks)
    by_family = tasks.family.argsort(stable=True)
    side_by_side = played(experiment, tasks.select(by_family))
    assert torch.equal(side_by_side.arms, interleaved.arms[by_family])
    assert torch.equal(side_by_side.interventions, interleaved.interventions[by_family])


def test_order_of_the_tasks_does_not_matter() -> None:
    experiment = all_families()
    tasks = tasks_of(experiment)
    backwards = torch.arange(TASKS).flip(0)
    assert torch.equal(played(experiment, tasks.select(backwards)).arms, played(experiment, tasks).arms[backwards])


def test_a_shorter_game_is_the_beginning_of_the_longer_one() -> None:
    experiment = all_families()
    tasks = tasks_of(experiment)
    whole, part = played(experiment, tasks), played(experiment, tasks, horizon=6)
    assert torch.equal(part.arms, whole.arms[:, :, :6])
    assert torch.equal(part.interventions, whole.interventions[:, :, :6])


def test_a_principal_forgets_one_game_before_the_next() -> None:
    experiment = all_families()
    tasks = tasks_of(experiment)
    dice, principal = deal_for(experiment.environment, KEY, tasks, EPISODES), scripted(experiment)
    first = play(experiment.environment, tasks, EPISODES, dice, principal)
    assert_same(play(experiment.environment, tasks, EPISODES, dice, principal), first)


@pytest.mark.parametrize(("kind", "labels"), list(itertools.product(KINDS, ("relative", "absolute"))))
def test_a_principal_sees_the_past_and_nothing_of_the_pull_to_come(kind: str, labels: str) -> None:
    # Seen is kept over the whole game: a tensor that the game goes on writing to would show here.
    experiment = all_families(environment={"intervention": kind, "arm_labels": labels})
    tasks, principal = tasks_of(experiment), Scripted(experiment.environment.num_interventions)
    dice = deal_for(experiment.environment, KEY, tasks, EPISODES)
    history = View(experiment.environment).history(play(experiment.environment, tasks, EPISODES, dice, principal))
    assert (principal.seen[0].last_symbol == -1).all()
    assert (principal.seen[0].last_action == -1).all()
    for t, seen in enumerate(principal.seen):
        assert seen.step == t
        assert torch.equal(seen.uniform, dice.principal[t])
        if t:
            assert torch.equal(seen.last_symbol, history.labels[:, t - 1].flatten())
            assert torch.equal(seen.last_action, history.actions[:, t - 1].flatten())


@pytest.mark.parametrize("labels", ["relative", "absolute"])
def test_what_is_seen_at_the_moment_of_acting_is_the_last_pull(labels: str) -> None:
    experiment = all_families(environment={"arm_labels": labels})
    tasks, at_the_moment, to_come = tasks_of(experiment), [], []

    class Witness(Scripted):
        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            at_the_moment.append(seen.last_symbol.clone())
            to_come.append(hidden.next_arm.clone())
            return super().intervene(seen, hidden)

    dice = deal_for(experiment.environment, KEY, tasks, EPISODES)
    result = play(experiment.environment, tasks, EPISODES, dice, Witness(2))
    history = View(experiment.environment).history(result)
    assert torch.equal(torch.stack(at_the_moment)[1:], history.labels.permute(1, 0, 2).flatten(1)[:-1])
    # An oracle is told the truth, but of those who wait to hear what the principal will do.
    waiting = torch.tensor([tasks.families[i].hear is not None for i in tasks.family.tolist()])
    arms = result.arms.permute(2, 0, 1).flatten(1).long()
    assert torch.equal(torch.stack(to_come), arms.masked_fill(waiting.repeat_interleave(EPISODES), -1))


def test_hidden_estimates_are_the_sample_means_of_what_the_agent_perceived() -> None:
    experiment = validate(
        {
            "environment": {"num_arms": 3, "horizon": 12, "reward_noise": 0.0, "delta": 2.0},
            "agents": {"families": {"ucb": {"train": {"ucb_coefficient": [1.0, 1.0]}}}, "disjoint": []},
        },
        where="tests",
    )
    tasks = AgentDistribution(experiment).tasks("train", [0])
    target, base = int(tasks.target), tasks.base[0]
    perceived: dict[int, list[float]] = {arm: [] for arm in range(3)}

    class Witness:
        def begin(self, num_episodes: int) -> None: ...

        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            for arm, rewards in perceived.items():
                mean = sum(rewards) / len(rewards) if rewards else 0.0
                assert hidden.estimates()[0, arm].item() == pytest.approx(mean, abs=1e-5)
            action, arm = seen.step % 2, int(hidden.next_arm)
            perceived[arm].append(base[arm].item() + action * (2.0 if arm == target else -2.0))
            return torch.tensor([action])

    play(experiment.environment, tasks, 1, deal_for(experiment.environment, KEY, tasks, 1), Witness())
    assert sum(len(rewards) for rewards in perceived.values()) == 12


def test_families_without_estimates_show_none() -> None:
    experiment = all_families()
    tasks, estimates = tasks_of(experiment), []

    class Witness(Scripted):
        def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
            estimates.append(hidden.estimates())
            return super().intervene(seen, hidden)

    play(experiment.environment, tasks, 1, deal_for(experiment.environment, KEY, tasks, 1), Witness(2), horizon=3)
    unknown = [name in ("gradient_bandit", "exp3") for name in tasks.family_names()]
    for shown in estimates:
        assert shown.isnan().all(1).tolist() == unknown
        assert shown.isnan().any(1).tolist() == unknown
