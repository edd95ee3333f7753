"""From a sweep to its trials: which settings are trained, under which names, and what they will cost.

Imports neither Ray nor Torch, nor does `checks.py`: all that `--dry-run` needs without `--principals`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

from mermaide_ray.agent_settings import Split
from mermaide_ray.config_file import flat, merge, one_line, short_names
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import (
    EnvRunners,
    Experiment,
    load_preset,
    overlaid,
    override_path,
    validate,
    variant,
    with_setting,
)
from mermaide_ray.metrics import validation_key
from mermaide_ray.noise import generator
from mermaide_ray.sweep.sections import K_KEY, Dimension, Sweep, label_of

Values = dict[str, str]
"""Dotted key of a searched setting -> label of its value, as in names, tables and rows."""

# To a computer 0.3 is less than 3 * 0.1, and 0.6 - 0.4 less than 0.2: a rung or a perturbation would be missed.
HAIR = 1e-9
# CPU microseconds of training per env step with the default networks and arms (`make bench`): for estimates only.
_MICROSECONDS = {"bandit": 22, "learner_model": 36, "continuous": 40}
# What is added by each arm above ten, by `world_model.arms`, and by equivariant networks at ten arms
# (docs/results/question-3-action-space.md).
_MICROSECONDS_PER_ARM = {"flat": 0.06, "equivariant": 0.65}
_MICROSECONDS_OF_EQUIVARIANCE = 16
# Of these a method without support makes one: query episodes, as many as both together (`experiment.variant`).
_EPISODES = ("meta_learning.adaptation_episodes", "meta_learning.query_episodes")


@dataclass(frozen=True)
class Setting:
    """One combination of what is swept.

    Attributes:
        name: Readable, without the seed; in result files the column `trial`.
        values: Label of each searched setting.
        experiment: All settings; its seed is the sweep's first.
        preset: That which it was made of, where methods are a dimension.
    """

    name: str
    values: Values
    experiment: Experiment
    preset: str | None = None

    def run_name(self, seed: int) -> str:
        """Name of the run with one training seed."""
        return trial_name(self.name, (seed,))

    def with_seed(self, seed: int) -> Experiment:
        """The settings of one run."""
        return self.experiment.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class Trial:
    """What one process trains: a setting with some of the seeds."""

    setting: Setting
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Readable, and different for every trial."""
        return trial_name(self.setting.name, self.seeds)

    @property
    def env_steps(self) -> int:
        """Environment steps of all its runs, if it is not stopped early."""
        return budget_of(self.setting.experiment) * len(self.seeds)

    def without(self, runs: Container[str]) -> Trial:
        """The trial less those of its runs that are named."""
        return replace(self, seeds=tuple(seed for seed in self.seeds if self.setting.run_name(seed) not in runs))

    @property
    def cpu_seconds(self) -> float:
        """A rough estimate of the time of training."""
        return cpu_seconds_of(self.setting.experiment) * len(self.seeds)


class Plan:
    """What a sweep will do.

    Args:
        sweep: The resolved sweep.
        where: The sweep as the user knows it, for error messages.
    """

    def __init__(self, sweep: Sweep, where: str) -> None:
        self.sweep, self.where = sweep, where
        self.dimensions = {key: dimension for key, dimension in sweep.search.items() if key != K_KEY}
        self._short = short_names(list(self.dimensions))

    @cached_property
    def choices(self) -> list[tuple[Values, str | None]]:
        """Values and preset of every setting, in order; empty where a searcher finds them as it goes."""
        if not self.sweep.is_enumerated:
            return []
        presets = self.sweep.methods or (None,)
        # Two draws may round to the same labels: one run, counted once.
        return list({self.name(v, p): (v, p) for v in self._combinations() for p in presets}.values())

    @cached_property
    def settings(self) -> list[Setting]:
        """Every setting, in the order of `choices`."""
        return [self.setting(values, preset) for values, preset in self.choices]

    @property
    def extremes(self) -> list[Setting]:
        """Every setting; where a search finds them as it goes, the ends of its ranges, and each single alternative."""
        if self.sweep.is_enumerated:
            return self.settings
        first, last = ({key: _end(d, end) for key, d in self.dimensions.items()} for end in (0, 1))
        each = [first | {key: label} for key, d in self.dimensions.items() for label in d.alternatives or {}]
        return [self.setting(values) for values in (first, last, *each)]

    @cached_property
    def trials(self) -> list[Trial]:
        """Every trial, one seed of every setting before the next: stopped early, a sweep still compares them all."""
        seeds, together = self.sweep.seeds, self.seeds_per_trial
        parts = [seeds[start : start + together] for start in range(0, len(seeds), together)]
        return [Trial(setting, part) for part in parts for setting in self.settings]

    @property
    def seeds_per_trial(self) -> int:
        """Training seeds that share a trial: all where their mean decides on it."""
        tune = self.sweep.tune
        judged = tune.scheduler != "none" or not self.sweep.is_enumerated
        return len(self.sweep.seeds) if judged else self.sweep.resources.seeds_per_trial

    def setting(self, values: Mapping[str, str], preset: str | None = None) -> Setting:
        """The setting with these labels, and the method of a preset where methods are a dimension.

        Raises:
            InputError: It is no valid experiment.
        """
        trial = self.name(values, preset)
        where = self.place_of(trial)
        experiment = validate(self.given(values, where), where)
        if preset:
            asked, experiment = experiment, variant(experiment, preset, f"methods, {self.where}")
            self._check_left_open(asked, experiment, preset, values, where)
        return Setting(trial, dict(values), experiment, preset)

    def given(self, values: Mapping[str, str], where: str) -> dict[str, Any]:
        """What is given of the settings with these labels, to be validated and, with methods, to be varied."""
        sweep = self.sweep
        # A method states all its switches; the settings beneath may be of a game that the default method can't play.
        preset = sweep.preset or ("mermaide" if sweep.methods else None)
        base = load_preset(preset, where) if preset else {}
        settings = overlaid(base, sweep.settings)
        for key, label in values.items():
            settings = with_setting(settings, key, self.drawn_value(key, label))
        if K_KEY in sweep.search:
            ks = list((sweep.search[K_KEY].alternatives or {}).values())
            every = [k for value in ks for k in (value if isinstance(value, list | tuple) else [value])]
            if all(isinstance(k, int) for k in every):  # else validation says so
                every = sorted(set(every))
            settings = merge(settings, {"evaluation": {"k": every}})
        return settings | {"seed": sweep.seeds[0]}

    def _check_left_open(
        self, asked: Experiment, made: Experiment, preset: str, values: Mapping[str, str], where: str
    ) -> None:
        """Refuses what is given, and a method sets otherwise."""
        searched = [*values, *([K_KEY] if K_KEY in self.sweep.search else [])]
        given = [key for key, _ in flat(self.sweep.settings, whole=("families",))]
        if not made.meta_learning.adaptation_episodes:
            given = [key for key in given if key not in _EPISODES]  # played all the same, as query episodes
        wanted, found = asked.to_dict(), made.to_dict()
        for place, keys in (("`search` must vary", searched), ("`settings` (and --set) must hold", given)):
            for key in keys:
                before, after = (_at(override_path(key), settings) for settings in (wanted, found))
                if before != after:
                    hint = "a condition may set it, for scoring; " if key.startswith("evaluation.") else ""
                    raise InputError(
                        f"{place} what all methods leave open, but method {preset} sets {key} to {one_line(after)}, "
                        f"got {one_line(before)} ({hint}{where})"
                    )

    def name(self, values: Mapping[str, str], preset: str | None = None) -> str:
        """The trial's name, without the seed."""
        parts = [f"method={preset}"] if preset else []
        return ",".join([*parts, *(f"{self._short[key]}={label}" for key, label in values.items())])

    def place_of(self, trial: str) -> str:
        """A trial as the user knows it, for error messages."""
        return f"{self.where}, trial {trial}" if trial else self.where

    def drawn_value(self, key: str, label: str) -> Any:
        """The value of a searched setting that goes by a label."""
        dimension = self.dimensions[key]
        if dimension.alternatives is not None:
            return dimension.alternatives[label]
        if dimension.randint is not None:
            return int(label)
        assert dimension.bounds is not None
        low, high = dimension.bounds
        return min(max(float(label), low), high)  # a label's four digits may lie just outside

    def scored_in(self, setting: Setting) -> Iterator[tuple[str, Experiment, tuple[int, ...]]]:
        """Each condition of a setting: its name, the settings to score in, the numbers of support episodes."""
        for name, condition in self.sweep.conditions.items():
            settings = overlaid(setting.experiment.to_dict(), condition.settings)
            experiment = validate(settings, f"{self.where}, condition {name}")
            yield name, experiment, condition.k or experiment.evaluation.k

    @cached_property
    def method_names(self) -> list[str]:
        """What the methods are called in rows and tables, sorted."""
        if not self.sweep.methods:
            return [self.some_setting().experiment.name]
        values = self.choices[0][0]
        return sorted({self.setting(values, preset).experiment.name for preset in self.sweep.methods})

    @cached_property
    def metric(self) -> str:
        """What search and scheduler maximise."""
        return self.sweep.tune.metric or validation_key(max(self.some_setting().experiment.evaluation.k))

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What any trial needs at the same time: its own process, and beside it the actors of one run."""
        runners = [setting.experiment.env_runners for setting in self.settings or [self.some_setting()]]
        most = {key: max(getattr(one, key) for one in runners) for key in EnvRunners.model_fields}
        own: dict[str, float] = {"CPU": self.sweep.resources.cpus}
        if gpus := max(self.sweep.resources.gpus, *(one.driver_gpus for one in runners)):
            own["GPU"] = gpus
        return [own, *EnvRunners.model_construct(**most).actors]

    @property
    def scoring_bundles(self) -> list[dict[str, float]]:
        """What a trial needs that trains nothing: one thread scores."""
        return [{"CPU": min(1.0, self.sweep.resources.cpus)}]

    @property
    def num_trials(self) -> int:
        """Processes that train one or several runs each."""
        return len(self.trials) if self.sweep.is_enumerated else self.sweep.tune.samples

    @property
    def num_runs(self) -> int:
        """Training runs: settings x seeds."""
        count = len(self.choices) if self.sweep.is_enumerated else self.sweep.tune.samples
        return count * len(self.sweep.seeds)

    @property
    def env_steps(self) -> int:
        """Environment steps of all runs, if none is stopped early."""
        if not self.sweep.is_enumerated:
            return self.num_runs * budget_of(self.some_setting().experiment)
        return sum(trial.env_steps for trial in self.trials)

    def cpu_seconds(self) -> float:
        """A rough estimate of the time of training, all runs together."""
        if not self.sweep.is_enumerated:
            return self.num_runs * cpu_seconds_of(self.some_setting().experiment)
        return sum(trial.cpu_seconds for trial in self.trials)

    def num_rows(self) -> int | None:
        """Rows that the sweep will yield; None where that depends on what the search finds."""
        if not self.sweep.is_enumerated or self.sweep.tune.scheduler != "none":
            return None
        trained, games = 0, dict[str, int]()
        for setting in self.settings:
            for condition, experiment, ks in self.scored_in(setting):
                tasks = experiment.agents.available(self.split(condition), experiment.evaluation.tasks)
                trained += len(ks) * tasks
                games[self.game_key(condition, experiment)] = tasks
        return trained * len(self.sweep.seeds) + sum(games.values()) * len(self.baselines)

    @property
    def baselines(self) -> tuple[str, ...]:
        """Fixed rules and oracles that are scored beside."""
        from mermaide_ray.baselines import SCORED_BESIDE

        return SCORED_BESIDE if self.sweep.baselines is None else self.sweep.baselines

    def game_key(self, condition: str, experiment: Experiment) -> str:
        """What the scores of fixed rules depend on, as a short name: agents, game, split, protocol."""
        game = experiment.model_dump(mode="json", include={"environment", "agents", "evaluation"})
        evaluation = {key: game["evaluation"][key] for key in ("tasks", "episodes")}
        text = json.dumps([game["environment"], game["agents"], evaluation, self.split(condition)], sort_keys=True)
        return f"{condition}-{blake2b(text.encode(), digest_size=6).hexdigest()}"

    def split(self, condition: str) -> Split:
        """Whose agents a condition scores on."""
        return self.sweep.conditions[condition].split

    def _combinations(self) -> Iterator[Values]:
        """Labels of every combination: the grid, once for each draw of the random dimensions."""
        fixed = {key: list(d.alternatives or {}) for key, d in self.dimensions.items() if not d.is_random}
        for draw in range(self.sweep.tune.samples):
            drawn = {
                key: _drawn(dimension, self.sweep.tune.seed, key, draw)
                for key, dimension in self.dimensions.items()
                if dimension.is_random
            }
            for labels in itertools.product(*fixed.values()):
                chosen = dict(zip(fixed, labels, strict=True)) | drawn
                yield {key: chosen[key] for key in self.dimensions}

    def some_setting(self) -> Setting:
        """One of those that there may be, where they are found as the search goes."""
        return self.setting(self.some_values)

    @property
    def some_values(self) -> Values:
        """Labels of `some_setting`."""
        return {key: _end(dimension, 0) for key, dimension in self.dimensions.items()}


def trial_name(setting: str, seeds: Sequence[int]) -> str:
    """A setting's name with the seeds that are trained."""
    told = f"seed={seeds[0]}" if len(seeds) == 1 else f"seed={seeds[0]}-{seeds[-1]}"
    return f"{setting},{told}" if setting else told


def member_name(index: int) -> str:
    """The setting's name of a member of a population, which keeps it while its settings change."""
    return f"member={index}"


def budget_of(experiment: Experiment) -> int:
    """Environment steps of a whole run."""
    return experiment.num_iterations * experiment.env_steps_per_iteration


def cpu_seconds_of(experiment: Experiment) -> float:
    """A rough estimate of a run's time of training on a core of its own."""
    model, steps = experiment.world_model, budget_of(experiment)
    if experiment.environment.game == "continuous":
        return steps * _MICROSECONDS["continuous"] / 1e6
    each = _MICROSECONDS["learner_model" if model.kind == "learner" else "bandit"]
    wide = _MICROSECONDS_PER_ARM[model.arms] * (experiment.environment.num_arms - 10)
    return steps * (each + wide + _MICROSECONDS_OF_EQUIVARIANCE * (model.arms == "equivariant")) / 1e6


def _at(path: Sequence[str], settings: Any) -> Any:
    """The value at a path of nested mappings, None where there is none."""
    for part in path:
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def _drawn(dimension: Dimension, seed: int, key: str, draw: int) -> str:
    """The label of one draw, by dice of its own: more samples leave the earlier ones as they were."""
    dice = generator(seed, "train", f"sweep/{key}", 0, draw)
    alternatives = dimension.alternatives
    if alternatives is not None:
        return list(alternatives)[int(dice.integers(len(alternatives)))]
    if dimension.randint is not None:
        return str(int(dice.integers(dimension.randint[0], dimension.randint[1], endpoint=True)))
    if dimension.loguniform is not None:
        low, high = map(math.log, dimension.loguniform)
        return label_of(math.exp(dice.uniform(low, high)))
    assert dimension.uniform is not None
    return label_of(float(dice.uniform(*dimension.uniform)))


def _end(dimension: Dimension, end: int) -> str:
    """The label at one end of a dimension."""
    if dimension.bounds is not None:
        return label_of(dimension.bounds[end])
    return list(dimension.alternatives or {})[-end]
