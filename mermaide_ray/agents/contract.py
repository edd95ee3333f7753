"""What a family of the user's own must keep, found out by playing a few of its agents: a moment, before hours of it.

The contract tests hold the registered families to the same, and to more.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from mermaide_ray.agent_settings import SPLITS
from mermaide_ray.agents import ALL_FAMILIES, family_named
from mermaide_ray.agents.base import Draws, Family, PointFamily
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment
from mermaide_ray.noise import Dice, Key, deal
from mermaide_ray.points import Space
from mermaide_ray.registry import lookup

if TYPE_CHECKING:
    from torch import Tensor

PULLS = 40
_NUM_ARMS = 10
_FAR = 10.0

Span = tuple[str, float, float]
"""A hyperparameter, and the ends of its range."""


def check_own_families(experiment: Experiment) -> None:
    """Checks the families that an experiment names by dotted paths, over the ranges of all its splits.

    Raises:
        InputError: One of them breaks its contract.
    """
    environment = experiment.environment
    for name, family in experiment.agents.families.items():
        if ":" in name:
            every = [family.ranges(split) for split in SPLITS]
            spans = tuple((key, min(r[key][0] for r in every), max(r[key][1] for r in every)) for key in every[0])
            _check(name, environment.space, environment.num_arms, spans)
            own, moves = family_named(name, environment.space), environment.changes.of_target
            _check_goals(name, own, environment.num_arms, moves)


def check_named(name: str) -> str:
    """Checks a family, registered or at a dotted path, over all values for which it is defined.

    Returns:
        A remark on what may be meant, or may not; else empty.

    Raises:
        InputError: There is none of that name, or it breaks its contract.
    """
    chooses_points = isinstance(lookup(name, ALL_FAMILIES, object, "agent family"), PointFamily)
    space = Space(2) if chooses_points else None
    family = family_named(name, space)
    # Without an upper bound, up to some number.
    spans = tuple((key, b.low, min(b.high, max(0.0, b.low) + _FAR)) for key, b in family.hyperparameters.items())
    num_arms = max(_NUM_ARMS, family.least_arms)
    _check(name, space, num_arms, spans)
    _check_goals(name, family, num_arms, moves=False)
    # Those that live in a world, or choose points, may begin at one place.
    return "" if space is not None or family.goals is not None else _all_begin_alike(name, family, num_arms, spans)


@cache
def _check(name: str, space: Space | None, num_arms: int, spans: tuple[Span, ...]) -> None:
    import torch

    family = family_named(name, space)
    num_actions, num_candidates = (num_arms, num_arms) if space is None else (space.size, space.num_candidates)
    # As many agents as arms, and one axis could be taken for the other unnoticed.
    num = 3 if num_candidates != 3 else 4
    params = {key: torch.linspace(low, high, num).unsqueeze(1) for key, low, high in spans}
    dice = deal(Key(0, "train", "contract", 0), range(num), 1, PULLS, num_candidates, [family.normals] * num)
    arms = _play(name, family, num_actions, params, dice)
    if not torch.equal(arms, _play(name, family, num_actions, params, dice)):
        raise InputError(
            f"`act` of {name!r} must take its luck from `draws` alone, and know nothing but the state, got other pulls "
            "when the same agents were played with the same draws again"
        )
    first = {key: value[:2] for key, value in params.items()}
    if not torch.equal(arms[:, :2], _play(name, family, num_actions, first, dice.rows(torch.arange(2)))):
        raise InputError(
            f"an agent of {name!r} must play alike whoever is played beside it, got other pulls with fewer agents "
            "beside it (the family's functions must treat each row by itself)"
        )


def _check_goals(name: str, family: Family, num_arms: int, moves: bool) -> None:
    """Whether the arms that pay are arms, and enough of them for a target that moves."""
    if family.goals is None:
        return
    goals = list(called(name, "goals", family.goals, num_arms))
    least = 2 if moves else 1
    if len(goals) < least or len(set(goals)) < len(goals) or any(goal not in range(num_arms) for goal in goals):
        where = " where the target moves" if moves else ""
        raise InputError(
            f"`goals` of {name!r} must return {least} or more different arms from 0 to {num_arms - 1}{where}, "
            f"got {goals}"
        )


def _all_begin_alike(name: str, family: Family, num_arms: int, spans: Sequence[Span]) -> str:
    """A remark if agents that know nothing yet all pull the same arm, whatever luck they have; else empty."""
    import torch

    num = 64
    params = {key: torch.linspace(low, high, num).unsqueeze(1) for key, low, high in spans}
    dice = deal(Key(0, "train", "ties", 0), range(num), 1, PULLS, num_arms, [family.normals] * num)
    arms = _play(name, family, num_arms, params, dice)[0]
    if len(set(arms.tolist())) > 1:
        return ""
    return (
        f"{num} agents that know nothing yet all pull arm {int(arms[0])} first: unless that is meant, let `priority` "
        "break their ties (a large number added to untried arms rounds it away)"
    )


def _play(name: str, family: Family, num_actions: int, params: Mapping[str, Tensor], dice: Dice) -> Tensor:
    """The arms that N agents pull, int64 [T, N], paid on arm 1 and fined elsewhere, and the other way round."""
    import torch

    num, arms = dice.priority.shape[0], []
    state = _state(name, num, "init", family.init, params, dice.priority)
    for t in range(PULLS):
        step, sign = torch.tensor(float(t)), 1.0 if t // 10 % 2 == 0 else -1.0
        if family.hear is not None:
            state = _state(name, num, "hear", family.hear, state, params, torch.zeros_like(dice.priority))
        arm = called(name, "act", family.act, state, params, step, Draws(dice.uniform[t], dice.normal[t]))
        _expect(name, num, "act", arm, torch.int64)
        if wrong := [number for number in arm.tolist() if not 0 <= number < num_actions]:
            raise InputError(f"`act` of {name!r} must return arms from 0 to {num_actions - 1}, got {wrong[0]}")
        reward = 0.1 * (arm % 10) + sign * (2.0 * (arm == 1) - 1.0)
        if family.perceive is not None:
            reward = called(name, "perceive", family.perceive, params, reward, torch.zeros(num))
            _expect(name, num, "perceive", reward, torch.float32)
        state = _state(name, num, "learn", family.learn, state, params, step, arm, reward)
        arms.append(arm)
    return torch.stack(arms)


def _state(name: str, num: int, function: str, call: Callable[..., Any], *arguments: Any) -> dict[str, Tensor]:
    """The learning state that a function returns."""
    import torch

    state = called(name, function, call, *arguments)
    if not isinstance(state, dict):
        raise InputError(
            f"`{function}` of {name!r} must return a dict of tensors [N, …], got {type_and_shape(state, num)}"
        )
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.shape[:1] != (num,):
            got = f"{type_and_shape(value, num)} in {key!r}"
            raise InputError(f"`{function}` of {name!r} must return a dict of tensors [N, …], got {got}")
        if value.isnan().any():
            raise InputError(f"the state of {name!r} must hold numbers, got NaN in {key!r} from `{function}`")
    return state


def called(name: str, function: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the user's own returns.

    Raises:
        InputError: It fails.
    """
    try:
        return call(*arguments)
    except Exception as error:  # the user's own code may raise anything
        # The frame below this one is the function's own; there is none where it takes other arguments.
        frames = traceback.extract_tb(error.__traceback__)[1:2]
        where = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"`{function}` of {name!r} must not fail, got {said}{where}") from error


def _expect(name: str, num: int, function: str, value: Any, dtype: Any) -> None:
    wanted = f"{str(dtype).removeprefix('torch.')} [N]"
    if type_and_shape(value, num) != wanted:
        raise InputError(f"`{function}` of {name!r} must return {wanted}, got {type_and_shape(value, num)}")


def type_and_shape(value: Any, num: int) -> str:
    """A tensor's type and shape, as the documentation tells them."""
    if not hasattr(value, "dtype"):
        return type(value).__name__
    shape = ["N" if place == 0 and size == num else str(size) for place, size in enumerate(value.shape)]
    return f"{str(value.dtype).removeprefix('torch.')} [{', '.join(shape)}]"
