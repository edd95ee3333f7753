"""The agents as the user writes them: the section `agents` of an experiment. Which families, which ranges per split.

Imports neither Ray nor Torch. Tasks are drawn from it in `agents/distribution.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from mermaide_ray.config_file import one_line
from mermaide_ray.environment import Environment
from mermaide_ray.errors import InputError
from mermaide_ray.points import Space
from mermaide_ray.registry import near
from mermaide_ray.settings import Layer, Number, Range, Section, Whole, source

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT: tuple[Split, ...] = SPLITS[1:]


class FamilyRanges(Section):
    """One agent family in the mixture: its weight, and per split the range of each hyperparameter."""

    weight: Number = Field(1.0, gt=0, description="share of this family in the mixture, relative to the others")
    train: dict[str, Range] = Field(description="hyperparameter: [low, high], drawn uniformly")
    validation: dict[str, Range] | None = Field(None, description="as train if not given")
    test: dict[str, Range] | None = Field(None, description="as train if not given")

    def ranges(self, split: Split) -> dict[str, Range]:
        """The ranges that hold in `split`."""
        ranges: dict[str, Range] | None = getattr(self, split)
        return self.train if ranges is None else ranges


class Population(Section):
    """Finite sets of agents in place of an unlimited stream [paper: 15 training agents, 10 test agents]."""

    train: Whole = Field(15, ge=1, description="agents in the training population")
    validation: Whole = Field(10, ge=1, description="agents in the validation population")
    test: Whole = Field(10, ge=1, description="agents in the test population")


DEFAULT_FAMILIES: dict[str, Any] = {
    "ucb": {"train": {"ucb_coefficient": (0.05, 0.5)}, "test": {"ucb_coefficient": (0.6, 1.5)}},
    "epsilon_greedy": {"train": {"epsilon": (0.02, 0.2)}, "test": {"epsilon": (0.25, 0.5)}},
}
CONTINUOUS_FAMILIES: dict[str, Any] = {
    "kernel_ucb": {"train": {"ucb_coefficient": (0.05, 0.3)}, "test": {"ucb_coefficient": (0.4, 1.0)}},
    "gp_ucb": {"train": {"confidence": (0.5, 1.5)}, "test": {"confidence": (2.0, 4.0)}},
    "two_point_gradient": {
        "train": {"probe": (0.04, 0.1), "learning_rate": (0.005, 0.02)},
        "test": {"probe": (0.12, 0.2), "learning_rate": (0.005, 0.02)},
    },
    "evolution": {"train": {"step_size": (0.05, 0.2)}, "test": {"step_size": (0.25, 0.5)}},
}
"""What `agents.families` is in the continuous game if not given."""


def default_families(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The mixture of an experiment whose settings name none."""
    environment = settings.get("environment")
    game = environment.get("game") if isinstance(environment, Mapping) else getattr(environment, "game", None)
    continuous = game == "continuous"
    return CONTINUOUS_FAMILIES if continuous else DEFAULT_FAMILIES


def _bounded(pair: tuple[float, float]) -> tuple[float, float]:
    # Beyond, an untried arm would no longer be above all others to UCB (`agents/ucb.py`).
    if max(map(abs, pair)) > 1e4:
        raise ValueError(f"must lie in [-10000, 10000], got {one_line(pair)}")
    return pair


class Agents(Section):
    """The distribution of agents (a task is one sampled agent)."""

    families: dict[str, FamilyRanges] = Field(
        default_factory=lambda: {k: FamilyRanges(**v) for k, v in DEFAULT_FAMILIES.items()},
        description="registered name or dotted path `package.module:NAME` -> weight and ranges",
        min_length=1,
    )
    base_reward: Annotated[Range, AfterValidator(_bounded)] = Field(
        (0.0, 1.0),
        description="base mean of each arm: uniform on [low, high], drawn per task; within [-10000, 10000]",
    )
    population: Population | None = Field(None, description="finite populations; none = an unlimited stream of tasks")
    disjoint: tuple[tuple[Split, Split], ...] = Field(
        (("train", "test"),), description="pairs of splits whose agents must not overlap; checked before a run"
    )
    seed: Whole = Field(
        0, ge=0, lt=2**32, description="seed of the validation and test agents, shared by all training seeds"
    )

    def size(self, split: Split) -> int | None:
        """Number of agents in a split, or None for an unlimited stream."""
        return None if self.population is None else getattr(self.population, split)

    def available(self, split: Split, wanted: int) -> int:
        """How many of the agents that are wanted a split has."""
        size = self.size(split)
        return wanted if size is None else min(wanted, size)

    @model_validator(mode="after")
    def _splits_are_disjoint(self) -> Agents:
        for one, other in self.disjoint:
            if one == other:
                raise ValueError(f"`agents.disjoint` must name two different splits, got {one!r} twice")
            for family, ranges in self.families.items():
                mine, theirs = ranges.ranges(one), ranges.ranges(other)
                # Ranges of different names: one is misspelt or missing, which `check_families` says better.
                if mine.keys() != theirs.keys() or not mine:
                    continue
                if not any(_apart(mine[key], theirs[key]) for key in mine):
                    raise ValueError(
                        f"`agents.families.{family}` must have a range that does not overlap between the splits "
                        f"{one!r} and {other!r}, got {one_line(mine)} and {one_line(theirs)}, which overlap "
                        "(`agents.disjoint` names the splits that must not)"
                    )
        return self


def _apart(one: Range, other: Range) -> bool:
    # An end point may be shared, as no draw ever hits it; two ranges of the same one number may not.
    return one != other and (one[1] <= other[0] or other[1] <= one[0])


def check_families(agents: Agents, environment: Environment, layers: Sequence[Layer]) -> None:
    """Checks the families by what is registered of them; `layers` say where their settings come from.

    Raises:
        InputError: One is not known, has no such hyperparameters, or can't be in this game.
    """
    from mermaide_ray.agents import family_named

    keys: dict[str, str] = {}
    for name, family in agents.families.items():
        for path, problem in _family_problems(name, family, environment.space):
            raise InputError(f"{problem} ({source(('agents', 'families', name, *path), layers)})")
        for key, problem in _game_problems(name, environment):
            raise InputError(f"`environment.{key}` {problem} ({source(('environment', key), layers)})")
        called = family_named(name, environment.space).name
        if called in keys:
            raise InputError(
                "`agents.families` must be families of different names, by which rows and figures tell them apart, "
                f"got {called!r} twice: {keys[called]} and {name} ({source(('agents', 'families', name), layers)})"
            )
        keys[called] = name


def check_planned(agents: Agents, environment: Environment, layers: Sequence[Layer]) -> None:
    """Refuses to plan for agents who know the policy: imagined ones don't, and stay won over where these do not.

    Raises:
        InputError: There are such agents.
    """
    from mermaide_ray.agents import family_named

    for name in agents.families:
        if family_named(name, environment.space).hear is not None:
            raise InputError(
                f"`evaluation.planning` must be false where agents know the principal's policy ({name}): agents are "
                "imagined who know nothing of it, got true (or --preset mermaide, which does not plan) "
                f"({source(('evaluation', 'planning'), layers)})"
            )


def _game_problems(name: str, environment: Environment) -> Iterator[tuple[str, str]]:
    """What a known family cannot have in the game.

    Yields:
        The key of the environment, and the problem.
    """
    from mermaide_ray.agents import family_named

    family = family_named(name, environment.space)
    if environment.num_arms < family.least_arms:
        yield "num_arms", f"must be >= {family.least_arms} for agents of family {name}, got {environment.num_arms}"
    if family.goals is not None and environment.arm_labels == "relative":
        yield (
            "arm_labels",
            f"must be absolute for agents of family {name}, whose arms are places in a world: named by their distance "
            "from the target, places differ from task to task, got relative",
        )


def _family_problems(name: str, family: FamilyRanges, space: Space | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """Hyperparameters that don't exist, or are missing, or ranges that leave where the family is defined.

    Yields:
        The path below the family's section, and the problem.
    """
    from mermaide_ray.agents import family_named

    try:
        known = family_named(name, space).hyperparameters
    except InputError as error:
        yield (), f"`agents.families`: {error}"
        return
    for split in SPLITS:
        ranges, key = family.ranges(split), f"agents.families.{name}.{split}"
        for wrong in sorted(ranges.keys() - known.keys()):
            yield (
                (split, wrong),
                f"`{key}` must name hyperparameters of {name} ({', '.join(known) or 'it has none'}), "
                f"got {wrong!r}{near(wrong, list(known))}",
            )
        for missing in sorted(known.keys() - ranges.keys()):
            yield (split,), f"`{key}` must give a range for each hyperparameter of {name}, got none for {missing!r}"
        for hyperparameter, (low, high) in ranges.items():
            least, most = known[hyperparameter].low, known[hyperparameter].high
            if low < least or high > most:
                yield (
                    (split, hyperparameter),
                    f"`{key}.{hyperparameter}` must lie in [{least:g}, {most:g}], got [{low:g}, {high:g}]",
                )
