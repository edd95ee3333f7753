"""Writes the folder of a sweep as `mermaide sweep` leaves it, with scores that follow from a few stated effects."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

FAMILIES = {"ucb": ("ucb_coefficient", 0.05, 0.5, 0.6, 1.5), "epsilon_greedy": ("epsilon", 0.02, 0.2, 0.25, 0.5)}
RULES = {"never": 0.0, "always": 0.67, "first_n": 0.85, "oracle": 1.0}
HORIZON = 100


@dataclass(frozen=True)
class Effects:
    """What the scores of a trained method follow from.

    Attributes:
        score: Normalised score at K = 0 in the `validation` condition.
        gain: What one adaptation episode adds, by condition (`gain_of` by family on top).
        shift: What every condition but `validation` takes away.
        seed_sd, task_sd, noise_sd: Standard deviations over seeds, tasks, and single scores.
        interventions: Per episode.
        model_margin: By how much the world model's loss is below the frequency floor, nats; None without one.
        per_setting: (dotted key, slope): added per step in the list of that key's values.
        seed_offsets: Seed -> added to all its scores.
        seed_interventions: Seed -> interventions of that seed.
    """

    score: float = 0.9
    gain: float = 0.04
    gain_of: Mapping[str, float] = field(default_factory=dict)
    shift: float = 0.1
    seed_sd: float = 0.01
    task_sd: float = 0.05
    noise_sd: float = 0.02
    interventions: float = 25.0
    model_margin: float | None = 0.6
    per_setting: Mapping[str, float] = field(default_factory=dict)
    seed_offsets: Mapping[int, float] = field(default_factory=dict)
    seed_interventions: Mapping[int, float] = field(default_factory=dict)


METHODS = {"mermaide": Effects(), "rl2": Effects(score=0.85, gain=0.02, model_margin=None)}


def write_sweep(
    folder: Path,
    methods: Mapping[str, Effects] = METHODS,
    search: Mapping[str, Sequence[Any]] | None = None,
    *,
    seeds: int = 5,
    tasks: int = 20,
    ks: Sequence[int] = (0, 1),
    conditions: Sequence[str] = ("validation", "test"),
    answer: Mapping[str, Any] | None = None,
    game: Sequence[str] = (),
    horizon: int = HORIZON,
    iterations: int = 40,
    failed: Sequence[tuple[str, int]] = (),
    curves: bool = True,
    profiles: bool = True,
    seed: int = 0,
) -> Path:
    """Writes sweep.yaml, provenance.json, rows, trials, progress, calibration and profiles.

    Args:
        folder: To be made.
        methods: Trained methods and what their scores follow from.
        search: Dotted key -> values; every combination is a setting.
        seeds: Training seeds.
        tasks: Tasks per condition.
        ks: Numbers of support episodes.
        conditions: Names; "validation" has agents of the training ranges, all others of the test ranges.
        answer: The section `answer`.
        game: Searched keys that change the game: rules play it anew for each of their values.
        horizon: Pulls per episode.
        iterations: Iterations in progress.parquet.
        failed: (method, seed) that failed, in every setting.
        curves: Whether to write progress.parquet.
        profiles: Whether to write profiles.parquet.
        seed: Of all that is random.
    """
    folder.mkdir(parents=True)
    search = dict(search or {})
    sweep = {
        "question": "Does adaptation pay on agents that were never met?",
        "name": folder.name,
        "settings": {"environment": {"horizon": horizon}},
        "methods": list(methods),
        "search": {key: {"grid": list(values)} for key, values in search.items()},
        "seeds": seeds,
        "conditions": {name: {"split": "validation" if name == "validation" else "test"} for name in conditions},
    }
    if answer is not None:
        sweep["answer"] = dict(answer)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    provenance = {
        "started": "2026-03-01T10:00:00+00:00",
        "command": ["mermaide", "sweep", f"tune_configs/{folder.name}.yaml"],
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "uncommitted_changes": False,
        "versions": {"mermaide_ray": "0.1.0", "python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "machine": {"system": "Linux", "processor": "x86_64", "cpus": 2},
        "hardware": {"nodes": 1, "cpus": 2, "gpus": 0},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    settings = [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]
    writer = _Writer(methods, search, game, seeds, tasks, ks, conditions, horizon, iterations, set(failed), seed)
    parts = [(method, setting) for setting in settings for method in methods]
    trained = [writer.rows(method, setting) for method, setting in parts]
    # Rules don't know the settings of a method: they are there once per game.
    games = [dict(zip(game, values, strict=True)) for values in itertools.product(*(search[key] for key in game))]
    rules = [writer.rule_rows(name, each) for name in RULES for each in games]
    _write(folder / "rows.parquet", [*trained, *rules])
    _write(folder / "trials.parquet", [writer.trials(method, setting) for method, setting in parts])
    _write(folder / "calibration.parquet", [writer.calibration(method, setting) for method, setting in parts])
    if curves:
        _write(folder / "progress.parquet", [writer.progress(method, setting) for method, setting in parts])
    if profiles:
        _write(folder / "profiles.parquet", [writer.profiles(method, setting) for method, setting in parts])
    for method, failed_seed in failed:
        (folder / "failures").mkdir(exist_ok=True)
        (folder / "failures" / f"method={method},seed={failed_seed}.txt").write_text("RunFault: not a number")
    return folder


def _write(path: Path, frames: Sequence[pd.DataFrame]) -> None:
    filled = [frame for frame in frames if len(frame)]
    if filled:
        pd.concat(filled, ignore_index=True).to_parquet(path, index=False)


@dataclass
class _Writer:
    methods: Mapping[str, Effects]
    search: Mapping[str, Sequence[Any]]
    game: Sequence[str]
    seeds: int
    tasks: int
    ks: Sequence[int]
    conditions: Sequence[str]
    horizon: int
    iterations: int
    failed: set[tuple[str, int]]
    seed: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shape = (len(self.conditions), self.tasks)
        self.task_effect = rng.normal(size=shape)
        self.never = 8 + 4 * rng.random(shape)
        self.oracle = 70 + 15 * rng.random(shape)
        self.quantile = rng.random(shape)
        self.family = np.array(list(FAMILIES))[np.arange(self.tasks) % 2]

    def exploration(self, condition: int) -> np.ndarray:
        """First hyperparameter of each task's agent, [T]."""
        held_out = self.conditions[condition] != "validation"
        ranges = np.array([FAMILIES[name][3:5] if held_out else FAMILIES[name][1:3] for name in self.family])
        return ranges[:, 0] + self.quantile[condition] * (ranges[:, 1] - ranges[:, 0])

    def trial(self, method: str, setting: Mapping[str, Any]) -> str:
        told = [f"method={method}", *(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items())]
        return ",".join(told)

    def about(self, method: str, setting: Mapping[str, Any]) -> dict[str, Any]:
        named = {f"setting.{key}": value for key, value in setting.items()}
        return {"trial": self.trial(method, setting), "method": method, **named}

    def seeds_of(self, method: str) -> list[int]:
        return [seed for seed in range(self.seeds) if (method, seed) not in self.failed]

    def rows(self, method: str, setting: Mapping[str, Any]) -> pd.DataFrame:
        effects = self.methods[method]
        parts = []
        for condition, k in itertools.product(range(len(self.conditions)), self.ks):
            for seed in self.seeds_of(method):
                key = [self.seed, seed, condition, k, *method.encode(), *str(setting).encode()]
                rng = np.random.default_rng(key)
                seed_rng = np.random.default_rng([self.seed, seed, *method.encode()])
                score = effects.score + effects.seed_sd * seed_rng.normal() + effects.seed_offsets.get(seed, 0.0)
                score = score + effects.gain * k - effects.shift * (self.conditions[condition] != "validation")
                for name, slope in effects.per_setting.items():
                    score += slope * list(self.search[name]).index(setting[name])
                scores = score + effects.task_sd * self.task_effect[condition]
                scores = scores + effects.noise_sd * rng.normal(size=self.tasks)
                scores = scores + k * np.array([effects.gain_of.get(name, 0.0) for name in self.family])
                amount = effects.seed_interventions.get(seed, effects.interventions)
                parts.append(self._frame(setting, seed, condition, k, scores, amount, effects.model_margin))
        if not parts:
            return pd.DataFrame()
        return pd.concat(parts, ignore_index=True).assign(**self.about(method, setting))

    def rule_rows(self, name: str, setting: Mapping[str, Any]) -> pd.DataFrame:
        amount = {"never": 0.0, "always": float(self.horizon), "first_n": 35.0}.get(name, 20.0)
        parts = []
        for condition in range(len(self.conditions)):
            rng = np.random.default_rng([self.seed, condition, *name.encode()])
            noise = 0.0 if name in ("never", "oracle") else 0.05 * rng.normal(size=self.tasks)
            scores = np.full(self.tasks, RULES[name]) + noise
            parts.append(self._frame(setting, 0, condition, 0, scores, amount, None))
        return pd.concat(parts, ignore_index=True).assign(**{**self.about(name, setting), "trial": ""})

    def _frame(
        self,
        setting: Mapping[str, Any],
        seed: int,
        condition: int,
        k: int,
        scores: np.ndarray,
        amount: float,
        margin: float | None,
    ) -> pd.DataFrame:
        name = self.conditions[condition]
        other = sum(list(self.search[key]).index(setting[key]) for key in self.game)
        never, oracle = self.never[condition] + other, self.oracle[condition] - other
        returns = never + scores * (oracle - never)
        frequency = 1.2 + 0.3 * self.quantile[condition]
        model = (
            {}
            if margin is None
            else {
                "wm_nll_before": frequency - margin / 2,
                "wm_nll_after": frequency - margin,
                "wm_accuracy_after": 0.8,
                "wm_accuracy_frequency": 0.5,
                "wm_ece_after": 0.05,
            }
        )
        exploration = self.exploration(condition)
        return pd.DataFrame(
            {
                "seed": seed,
                "split": "validation" if name == "validation" else "test",
                "condition": name,
                "task": np.arange(self.tasks),
                "family": self.family,
                "k": k,
                "return": returns,
                "success_rate": np.clip((returns + 0.3 * amount) / self.horizon, 0, 1),
                "horizon": setting.get("environment.horizon", self.horizon),
                "interventions": amount,
                "cost": amount,
                "normalised_score": scores,
                "never_return": never,
                "oracle_return": oracle,
                "support_return": returns - 2 if k else np.nan,
                "wm_nll_before": np.nan,
                "wm_nll_after": np.nan,
                "wm_nll_uniform": np.log(10),
                "wm_nll_frequency": frequency,
                "exploration": exploration,
                **{f"param.{FAMILIES[f][0]}": np.where(self.family == f, exploration, np.nan) for f in FAMILIES},
            }
        ).assign(**model)

    def trials(self, method: str, setting: Mapping[str, Any]) -> pd.DataFrame:
        lines = []
        for seed in range(self.seeds):
            failed = (method, seed) in self.failed
            status = {"status": "failed", "error": "RunFault: the loss must be finite, got nan"} if failed else {}
            cost = {"env_steps": 1_000_000, "wall_s": 50.0, "cpu_s": 45.0, "hostname": "laptop"}
            lines.append({**self.about(method, setting), "seed": seed, "status": "done", "error": "", **cost, **status})
        return pd.DataFrame(lines)

    def progress(self, method: str, setting: Mapping[str, Any]) -> pd.DataFrame:
        effects, iteration = self.methods[method], np.arange(1, self.iterations + 1)
        learned = 1 - np.exp(-3 * iteration / self.iterations)
        parts = []
        for seed in self.seeds_of(method):
            rng = np.random.default_rng([self.seed, seed, *method.encode()])
            scores = effects.score * learned + effects.seed_sd * rng.normal() + effects.seed_offsets.get(seed, 0.0)
            rounds = iteration % max(1, self.iterations // 10) == 0
            told = {f"validation/score_k{k}": np.where(rounds, scores + effects.gain * k, np.nan) for k in self.ks}
            parts.append(
                pd.DataFrame(
                    {
                        "seed": seed,
                        "iteration": iteration,
                        "throughput/env_steps": 24_000 * iteration,
                        "principal/return": 10 + 65 * scores + rng.normal(size=self.iterations),
                        **told,
                    }
                )
            )
        return pd.concat(parts, ignore_index=True).assign(**self.about(method, setting)) if parts else pd.DataFrame()

    def calibration(self, method: str, setting: Mapping[str, Any]) -> pd.DataFrame:
        if self.methods[method].model_margin is None:
            return pd.DataFrame()
        index = np.arange(2, 15)
        parts = [
            pd.DataFrame(
                {
                    "seed": seed,
                    "split": "validation" if condition == "validation" else "test",
                    "condition": condition,
                    "k": k,
                    "family": family,
                    "bin": index,
                    "count": 100 * index,
                    "confidence": (index + 0.5) / 15,
                    "frequency": (index + 0.5) / 15 - 0.08 * (k == 0),
                }
            )
            for seed in self.seeds_of(method)
            for condition in self.conditions
            for k in self.ks
            for family in FAMILIES
        ]
        return pd.concat(parts, ignore_index=True).assign(**self.about(method, setting)) if parts else pd.DataFrame()

    def profiles(self, method: str, setting: Mapping[str, Any]) -> pd.DataFrame:
        amount = self.methods[method].interventions
        step = np.tile(np.arange(self.horizon), self.tasks)
        parts = []
        for seed, (place, condition), k in itertools.product(
            self.seeds_of(method), enumerate(self.conditions), self.ks
        ):
            until = np.repeat(amount * (0.5 + self.quantile[place]), self.horizon)
            rate = 1 / (1 + np.exp((step - until) / 3))
            parts.append(
                pd.DataFrame(
                    {
                        "seed": np.int64(seed),
                        "split": "validation" if condition == "validation" else "test",
                        "condition": condition,
                        "k": np.int64(k),
                        "family": np.repeat(self.family, self.horizon),
                        "task": np.repeat(np.arange(self.tasks), self.horizon),
                        "exploration": np.repeat(self.exploration(place), self.horizon),
                        "step": step,
                        "intervention_rate": rate,
                        "target_rate": 1 - 0.8 * rate,
                    }
                )
            )
        return pd.concat(parts, ignore_index=True).assign(**self.about(method, setting)) if parts else pd.DataFrame()


def profile_frames(
    methods: Mapping[str, Effects], search: Mapping[str, Sequence[Any]], *, seeds: int, tasks: int, settings: int
) -> Iterator[pd.DataFrame]:
    """Profiles of the first method in the first `settings` settings, at K = 1, one frame each: millions of rows."""
    name = next(iter(methods))
    writer = _Writer(methods, search, (), seeds, tasks, (1,), ("validation", "test"), HORIZON, 1, set(), 0)
    for values in itertools.islice(itertools.product(*search.values()), settings):
        yield writer.profiles(name, dict(zip(search, values, strict=True)))
