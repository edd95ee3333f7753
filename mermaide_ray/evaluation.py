"""The K-shot protocol: adapt on K support episodes with each agent, score on fresh query episodes; rows come out.

Every method meets the same agents with the same luck: dice are keyed by (agents.seed, split, "evaluation", task), not
by the method or its training seed. Needs Torch, not Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mermaide_ray.agent_settings import SPLITS, Split
from mermaide_ray.agents.distribution import AgentDistribution, Tasks
from mermaide_ray.baselines import baseline_named
from mermaide_ray.blocks import blocks_of, tasks_at_once
from mermaide_ray.calibration import calibration, frequency_floor, pooled, prediction_scores
from mermaide_ray.changes import course_of
from mermaide_ray.contender import Contender
from mermaide_ray.disk import whole_file
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.errors import InputError
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment
from mermaide_ray.imagination import NUM_IMAGINED
from mermaide_ray.kshot import QUERY, Meeting, evaluation_key
from mermaide_ray.learners.adaptation import unroll
from mermaide_ray.lockstep import Principal, deal_for, play
from mermaide_ray.models.principal import shared
from mermaide_ray.noise import Dice
from mermaide_ray.registry import near
from mermaide_ray.report.statistics import interquartile_mean
from mermaide_ray.trajectory import Trajectories
from mermaide_ray.view import view_of

TABLES = ("rows", "calibration", "profiles")
# Return per episode: below a pull's worth, the normalised score of a task would be a ratio of noise.
LEAST_SPAN = 1.0
# Games of which it is kept what the ends of the scale have played, half a megabyte each by default.
_MOST_PLAYED = 32
# Tasks evaluated at once, and floats that their query episodes may take in the networks (1 GiB): they bound memory.
_MOST_TASKS, _MOST_FLOATS = 64, 2**28


@dataclass(frozen=True)
class Bounds:
    """The two ends of the normalised scale.

    Attributes:
        never, oracle: Return per episode of each task, float [B].
    """

    never: Tensor
    oracle: Tensor

    def normalised(self, returns: Tensor) -> Tensor:
        """(R - R_never) / (R_oracle - R_never), float [B]; NaN where the oracle gains too little to be a scale."""
        span = self.oracle - self.never
        return ((returns - self.never) / span).where(span >= LEAST_SPAN, torch.full_like(span, float("nan")))


_played: dict[tuple[str, int, Split, tuple[int, ...], int], dict[str, Trajectories]] = {}
"""What `never` and `oracle` played, by game and agents, seed, split, task ids and episodes: the oracle's search takes
longer than any method's evaluation, and both are scored, too."""


@dataclass(frozen=True)
class Results:
    """What an evaluation found. Columns: see `metrics.py` (rows), and the functions below."""

    rows: pd.DataFrame
    calibration: pd.DataFrame
    profiles: pd.DataFrame

    @staticmethod
    def together(parts: Sequence[Results]) -> Results:
        """All of them in one."""
        return Results(
            rows=pd.concat([part.rows for part in parts], ignore_index=True),
            calibration=pooled([part.calibration for part in parts]),
            profiles=pd.concat([part.profiles for part in parts], ignore_index=True),
        )

    def write(self, folder: Path) -> None:
        """Writes rows.parquet, calibration.parquet and, as the last, profiles.parquet."""
        for name in TABLES:
            with whole_file(folder / f"{name}.parquet") as file:
                getattr(self, name).to_parquet(file, index=False)


class Evaluation:
    """One split's agents and luck, ready to score any number of methods.

    Args:
        experiment: The game, the agents and the evaluation settings.
        split: Where the agents come from.
        num_tasks: Agents; `evaluation.tasks` if not given.
        episodes: Query episodes per task; `evaluation.episodes` if not given.
        condition: What the rows call these agents and this game; the split's name if not given.
    """

    def __init__(
        self,
        experiment: Experiment,
        split: Split,
        num_tasks: int | None = None,
        episodes: int | None = None,
        condition: str | None = None,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}{near(split, list(SPLITS))}")
        for name, given in (("num_tasks", num_tasks), ("episodes", episodes)):
            if given is not None and given < 1:
                raise InputError(f"{name} must be >= 1, got {given}")
        self.experiment, self.split, self.condition = experiment, split, condition or split
        self.episodes = episodes or experiment.evaluation.episodes
        tasks = AgentDistribution(experiment).held_out(split, num_tasks or experiment.evaluation.tasks)
        self.tasks = tasks.select(torch.argsort(tasks.family, stable=True))
        self.key = evaluation_key(experiment, split)
        self._incentives, self._space = incentives_of(experiment.environment), experiment.environment.space

    @cached_property
    def bounds(self) -> Bounds:
        """Returns of no intervention and of the privileged oracle on the same luck."""
        return Bounds(self._returns(self._ends["never"]), self._returns(self._ends["oracle"]))

    @cached_property
    def _ends(self) -> dict[str, Trajectories]:
        """What no intervention and the oracle play, found once per process."""
        # What the principal sees changes neither.
        game = self.experiment.model_dump_json(include={"environment", "agents"}, exclude={"environment": {"sight"}})
        key = (game, self.experiment.seed_of(self.split), self.split, self.tasks.ids, self.episodes)
        if key not in _played:
            if len(_played) >= _MOST_PLAYED:
                del _played[next(iter(_played))]  # the oldest
            _played[key] = {name: self._played_by_rule(name) for name in ("never", "oracle")}
        return _played[key]

    def baseline(self, name: str) -> Results:
        """Scores a fixed rule or an oracle, by its registered name or dotted path. K means nothing to it: 0."""
        played = self._ends[name] if name in self._ends else self._played_by_rule(name)
        return self._results(self._origin(name, 0), 0, slice(None), played)

    def principal(self, name: str, seed: int, principal: Principal) -> Results:
        """Scores whoever plays the lockstep game without adapting: K = 0.

        Args:
            name: Its name in the rows.
            seed: Its training seed; 0 for what is not trained.
            principal: The player of all tasks x `episodes` at once.
        """
        return self._results(self._origin(name, seed), 0, slice(None), self._play(self.tasks, principal))

    def contender(self, contender: Contender, ks: Sequence[int]) -> Results:
        """Scores a trained principal after each number of support episodes.

        Plans if the principal does, whatever this experiment says: see `Contender.at`.

        Raises:
            InputError: It can't be used in this game or with these agents, or a number of episodes is negative.
        """
        if not ks or min(ks) < 0:
            raise InputError(f"numbers of support episodes must be one or more, each >= 0, got {list(ks)}")
        contender = contender.in_game_of(self.experiment)
        at_once = max(1, min(_MOST_TASKS, _MOST_FLOATS // self._floats_of(contender, max(ks))))
        chunks = [slice(start, start + at_once) for start in range(0, len(self.tasks), at_once)]
        return Results.together([self._meet(contender, k, chunk) for k in ks for chunk in chunks])

    def _floats_of(self, contender: Contender, k: int) -> int:
        """Roughly what one task takes while the networks are unrolled over its episodes."""
        environment, architecture = self.experiment.environment, contender.kshot.method.architecture
        # Measured: gates and hidden layers of a pull; of equivariant networks, the encoder and its pools of an arm.
        per_arm = 3 * architecture.per_arm.encoder_size if architecture.per_arm else 4
        per_pull = 8 * architecture.hidden_size + environment.num_arms * per_arm
        # What the support takes stays until its gradient is taken; rehearsed is one episode with each imagined agent.
        rehearsed = NUM_IMAGINED if contender.kshot.rehearsals else 0
        return max(self.episodes, 2 * k, rehearsed) * environment.horizon * per_pull

    def scores(self, contender: Contender, ks: Sequence[int]) -> dict[int, float]:
        """Normalised score (interquartile mean over tasks) after each number of support episodes, NaN if none."""
        rows = self.contender(contender, ks).rows.dropna(subset="normalised_score")
        by_k = {k: rows.loc[rows["k"] == k, "normalised_score"].to_numpy() for k in ks}
        return {k: interquartile_mean(scores[None]) if len(scores) else float("nan") for k, scores in by_k.items()}

    def _meet(self, contender: Contender, k: int, chunk: slice) -> Results:
        """Scores a trained principal on some of the tasks, after k support episodes."""
        tasks = self._some(chunk)
        meeting = contender.kshot.meet(tasks, contender.weights, contender.inner_rates, k, self.episodes, self.key)
        origin = self._origin(contender.name, contender.seed)
        results = self._results(origin, k, chunk, meeting.query)
        scores, calibration = self._predictions(contender, meeting, tasks)
        if meeting.support is not None:
            scores["support_return"] = self._returns(meeting.support).numpy()
        if (choice := meeting.prepared.choice) is not None:
            scores["planned"] = choice.by_rule.double().numpy()
        return replace(results, rows=results.rows.assign(**scores), calibration=calibration.assign(**origin, k=k))

    def _predictions(self, contender: Contender, meeting: Meeting, tasks: Tasks) -> tuple[dict[str, Any], pd.DataFrame]:
        """The world model's columns of the rows, and its reliability curve; empty where there is none."""
        method = contender.kshot.method
        if not method.architecture.world_model:
            return {}, pd.DataFrame()
        history = experience_of(contender.kshot.environment, meeting.query).history
        labels = view_of(contender.kshot.environment).labels(meeting.query)
        with torch.no_grad():
            before = after = unroll(method, shared(contender.weights, len(tasks)), history).prediction
            if (adaptation := meeting.adaptation) is not None:
                after = unroll(method, adaptation.weights, history, adaptation.state).prediction
        assert before is not None
        assert after is not None
        scores: dict[str, Any] = {}
        head, predicted = method.architecture.head, self._predicted(labels)
        for when, logits in (("before", before), ("after", after)):
            found = prediction_scores(head, logits, predicted)
            scores |= {f"wm_{key}_{when}": value for key, value in found.items()}
        return scores, calibration(head, after, predicted, tasks.family_names())

    def _origin(self, method: str, seed: int) -> dict[str, Any]:
        """What all tables say first of a method."""
        return {"method": method, "seed": seed, "split": self.split, "condition": self.condition}

    def _results(self, origin: dict[str, Any], k: int, chunk: slice, played: Trajectories) -> Results:
        """What there is to say of any method's query episodes with some of the tasks."""
        rows, profiles = self._rows(origin, k, chunk, played), self._profiles(origin, k, chunk, played)
        return Results(rows, pd.DataFrame(), profiles)

    def _some(self, chunk: slice) -> Tasks:
        return self.tasks.select(torch.arange(len(self.tasks))[chunk])

    def _played_by_rule(self, name: str) -> Trajectories:
        """What a fixed rule or an oracle plays, of some tasks at a time."""
        build, parts = baseline_named(name), []
        # Sorted by family as they are, blocks come in their order.
        for block in blocks_of(self.tasks, tasks_at_once(self.experiment.environment, self.tasks, self.episodes)):
            some = self.tasks.select(block)
            parts.append(self._play(some, build(self.experiment, self.split, some, self.episodes)))
        return Trajectories.together(parts)

    def _play(self, tasks: Tasks, principal: Principal) -> Trajectories:
        return play(self.experiment.environment, tasks, self.episodes, self._dice(tasks), principal)

    def _dice(self, tasks: Tasks) -> Dice:
        """The dice of the query episodes of some tasks."""
        return deal_for(self.experiment.environment, self.key.within(QUERY), tasks, self.episodes)

    def _base_means(self, tasks: Tasks) -> Tensor:
        """Base means in the query episodes, float [B, E, T, A], or [B, 1, 1, A] where they do not change."""
        environment = self.experiment.environment
        if not environment.changes.of_base:
            return tasks.base[:, None, None]
        base = course_of(environment, tasks, self.episodes, self._dice(tasks)).base
        return base.view(environment.horizon, len(tasks), self.episodes, -1).permute(1, 2, 0, 3)

    def _returns(self, played: Trajectories) -> Tensor:
        """Mean return per episode, float [B]."""
        return self._incentives.rewards_of(played).sum(2).mean(1)

    def _rows(self, origin: dict[str, Any], k: int, chunk: slice, played: Trajectories) -> pd.DataFrame:
        """One row per task, without what only some methods have."""
        tasks, horizon = self._some(chunk), played.arms.shape[2]
        bounds = Bounds(self.bounds.never[chunk], self.bounds.oracle[chunk])
        returns = self._returns(played)
        agent_rewards = self._incentives.agent_rewards_of(played, self._base_means(tasks))
        return pd.DataFrame(
            {
                **origin,
                "task": list(tasks.ids),
                "family": tasks.family_names(),
                "k": k,
                "horizon": horizon,
                "return": returns.numpy(),
                "success_rate": self._incentives.successes_of(played).float().mean((1, 2)).numpy(),
                "interventions": (played.interventions > 0).float().mean((1, 2)).numpy() * horizon,
                "cost": self._incentives.costs_of(played).mean((1, 2)).numpy() * horizon,
                "agent_return": agent_rewards.sum(2).mean(1).numpy(),
                "normalised_score": bounds.normalised(returns).numpy(),
                "never_return": bounds.never.numpy(),
                "oracle_return": bounds.oracle.numpy(),
                "support_return": np.nan,
                "planned": np.nan,
                **{f"wm_{key}_{when}": np.nan for when in ("before", "after") for key in ("nll", "accuracy", "ece")},
                **self._floors(played.arms.transpose(1, 2).long()),
                "exploration": _exploration(tasks),
                **{f"param.{name}": value.numpy() for name, value in tasks.params.items()},
            }
        )

    def _predicted(self, labels: Tensor) -> Tensor:
        """What the world model predicts: labels, or the points that they name."""
        return labels if self._space is None else self._space.point(labels)

    def _floors(self, arms: Tensor) -> dict[str, Any]:
        """Predictions that know nothing of the agent: uniform, and its own running frequencies.

        Of points, frequencies are those of the candidates' cells, as a density; they guess no point.
        """
        if self._space is None:
            num_arms = self.experiment.environment.num_arms
            return {"wm_nll_uniform": float(np.log(num_arms)), **frequency_floor(arms, num_arms)}
        cells = self._space.num_candidates
        nll = frequency_floor(self._space.candidate(arms), cells)["wm_nll_frequency"] - float(np.log(cells))
        return {"wm_nll_uniform": 0.0, "wm_nll_frequency": nll, "wm_accuracy_frequency": np.nan}

    def _profiles(self, origin: dict[str, Any], k: int, chunk: slice, played: Trajectories) -> pd.DataFrame:
        """Per task and step, the shares of episodes with an intervention and with the target pulled."""
        tasks, horizon = self._some(chunk), played.arms.shape[2]
        successes = self._incentives.successes_of(played).float().mean(1)
        return pd.DataFrame(
            {
                **origin,
                "k": k,
                "family": np.repeat(tasks.family_names(), horizon),
                "task": np.repeat(list(tasks.ids), horizon),
                "exploration": np.repeat(_exploration(tasks), horizon),
                "step": np.tile(np.arange(horizon), len(tasks)),
                "intervention_rate": (played.interventions > 0).float().mean(1).flatten().numpy(),
                "target_rate": successes.flatten().numpy(),
            }
        )


def _exploration(tasks: Tasks) -> list[float]:
    """What figures sort agents by: the first hyperparameter that a family declares, [B]; NaN where it has none."""
    names = [next(iter(tasks.families[i].hyperparameters), None) for i in tasks.family.tolist()]
    return [float(tasks.params[name][row]) if name else np.nan for row, name in enumerate(names)]
