"""The dice: dealt up front, the same whoever deals them, in whatever company."""

from __future__ import annotations

import itertools
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from mermaide_ray.environment import MoreDice
from mermaide_ray.noise import Dice, Key, deal, generator

KEY = Key(3, "train", "query", 7)
ARMS, HORIZON = 5, 6
# Where the episodes lie in each of the arrays of `Dice`.
EPISODE_AXIS = {"priority": 0, "uniform": 1, "normal": 1, "reward_noise": 1, "principal": 1}
MORE: dict[str, MoreDice] = {"walk": ("normal", (HORIZON, ARMS)), "times": ("uniform", (3,))}


def dice_of(tasks: list[int], episodes: int, key: Key = KEY, first_episode: int = 0, normals: bool = True) -> Dice:
    return deal(key, tasks, episodes, HORIZON, ARMS, [normals] * len(tasks), first_episode, MORE)


def rows(dice: Dice, wanted: list[int]) -> dict[str, Tensor]:
    found = {name: getattr(dice, name).index_select(axis, torch.tensor(wanted)) for name, axis in EPISODE_AXIS.items()}
    return found | {name: luck[torch.tensor(wanted)] for name, luck in dice.more.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def test_every_array_of_the_dice_is_looked_at_here() -> None:
    assert {field.name for field in fields(Dice)} == EPISODE_AXIS.keys() | {"more"}
    assert {name: luck.shape for name, luck in dice_of([4], 2).more.items()} == {"walk": (2, 6, 5), "times": (2, 3)}


def test_an_episode_is_the_same_however_many_are_dealt() -> None:
    assert_same(rows(dice_of([4], 3), [0, 1, 2]), rows(dice_of([4], 8), [0, 1, 2]))


def test_later_episodes_can_be_dealt_without_the_earlier_ones() -> None:
    assert_same(rows(dice_of([4], 2, first_episode=3), [0, 1]), rows(dice_of([4], 5), [3, 4]))


def test_neither_order_nor_company_of_the_tasks_matters() -> None:
    together = dice_of([8, 1, 5], 2)
    for place, task in enumerate((8, 1, 5)):
        assert_same(rows(dice_of([task], 2), [0, 1]), rows(together, [2 * place, 2 * place + 1]))


def test_agents_that_need_no_normals_change_nothing_for_those_that_do() -> None:
    mixed = deal(KEY, [1, 2], 1, HORIZON, ARMS, [False, True])
    assert_same(rows(mixed, [1]), rows(dice_of([2], 1), [0]))
    assert dice_of([1, 2], 1, normals=False).normal.shape == (HORIZON, 2, 0)


@pytest.mark.parametrize(
    "other",
    [KEY._replace(seed=4), KEY._replace(split="test"), KEY._replace(purpose="support"), KEY._replace(iteration=8)],
    ids=str,
)
def test_every_part_of_the_key_gives_other_dice(other: Key) -> None:
    mine, theirs = rows(dice_of([0], 1), [0]), rows(dice_of([0], 1, other), [0])
    for name in mine.keys() - {"priority"}:
        assert not (mine[name] == theirs[name]).any(), name


def test_no_two_arrays_and_no_two_tasks_share_a_stream() -> None:
    dice = dice_of([0, 1], 1)
    columns = [dice.uniform[:, :, 0], dice.uniform[:, :, 1], dice.principal]
    flat = torch.cat([column.T for column in columns]).flatten()
    assert len(flat.unique()) == len(flat)
    assert not torch.equal(dice.reward_noise[:, 0], dice.normal[:, 0, 0])


def test_neighbouring_seeds_iterations_and_tasks_do_not_meet() -> None:
    # Where a key is a sum, seed 0 / task 2 and seed 1 / task 1 are the same dice.
    keys = itertools.product(range(12), range(12), range(12))
    draws = {generator(seed, "train", "query", iteration, task).random() for seed, iteration, task in keys}
    assert len(draws) == 12**3


def test_each_priority_is_a_permutation_and_all_are_equally_likely() -> None:
    priority = deal(KEY, [0], 6000, 1, 3, [False]).priority
    assert torch.equal(priority.sort(1).values, torch.tensor([1.0, 2.0, 3.0]).expand(6000, 3))
    counts = priority.unique(dim=0, return_counts=True)[1]
    # 1000 expected of each of 6, standard deviation 29.
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 5 * 29


def test_uniforms_and_normals_have_their_moments() -> None:
    dice = deal(KEY, list(range(20)), 50, 20, 5, [True] * 20)
    for uniform in (dice.uniform, dice.principal):
        assert uniform.min() >= 0
        assert uniform.max() < 1
        assert uniform.mean().item() == pytest.approx(0.5, abs=5 * 0.289 / uniform.numel() ** 0.5)
        assert uniform.var().item() == pytest.approx(1 / 12, rel=0.03)
    for normal in (dice.normal, dice.reward_noise):
        assert normal.mean().item() == pytest.approx(0, abs=5 / normal.numel() ** 0.5)
        assert normal.var().item() == pytest.approx(1, rel=0.06)
    correlation = torch.corrcoef(torch.stack([dice.uniform[..., 0].flatten(), dice.uniform[..., 1].flatten()]))[0, 1]
    assert abs(correlation.item()) < 5 / 20000**0.5
