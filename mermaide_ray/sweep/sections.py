"""What a sweep says: one scientific question, what is varied, where it is scored, what is claimed.

Imports neither Ray nor Torch, so that every mistake is answered at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mermaide_ray.config_file import one_line
from mermaide_ray.experiment import SCORED_ELSEWHERE, override_path
from mermaide_ray.metrics import ROW_METRICS
from mermaide_ray.registry import near
from mermaide_ray.settings import Number, Range, Section, Whole, each_once

# As a dimension it multiplies nothing: every K is scored from the same checkpoint, and is a column of its own.
K_KEY = "evaluation.k"

# A label names a folder and a curve.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
# How a number is written; Python's float() takes 2_5 and nan, too.
_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
# Of `evaluation`, what only training asks for.
_OF_TRAINING = ("every", "validation_tasks")


def _seeds(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"must be a number of seeds >= 1 or a list of seeds, got {value}")
        return tuple(range(value))
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a number of seeds or a list of seeds, got {one_line(value)}")
    return value


def _label(name: str) -> str:
    if not _LABEL.fullmatch(name):
        raise ValueError(f"must be made of letters, digits and . _ + - (it names folders), got {one_line(name)}")
    return name


Label = Annotated[str, AfterValidator(_label)]
Seeds = Annotated[
    tuple[Annotated[Whole, Field(ge=0, lt=2**32)], ...], BeforeValidator(_seeds), AfterValidator(each_once)
]
Scalar = bool | int | float | str
Alternatives = dict[Label, Any] | tuple[Scalar, ...]


class Dimension(Section):
    """What one setting is varied over: exactly one of these."""

    grid: Alternatives | None = Field(
        None, description="every value; a mapping gives values that are no scalars labels"
    )
    choice: Alternatives | None = Field(None, description="one of these at random per sample")
    uniform: Range | None = Field(None, description="[low, high], drawn uniformly per sample")
    loguniform: Range | None = Field(None, description="[low, high], drawn uniformly in the logarithm per sample")
    randint: tuple[Whole, Whole] | None = Field(None, description="[low, high], a whole number, both ends included")

    @model_validator(mode="before")
    @classmethod
    def _says_how(cls, given: Any) -> Any:
        # What follows would speak of sections and types.
        if not isinstance(given, Mapping):
            kinds = ", ".join(cls.model_fields)
            raise ValueError(f"must say how it is varied, by exactly one of {kinds}, got {one_line(given)}")
        for kind in ("grid", "choice"):
            values = given.get(kind)
            listed = values if isinstance(values, list | tuple) else ()
            if wrong := [value for value in listed if isinstance(value, float) and not math.isfinite(value)]:
                raise ValueError(f"{kind} must hold finite numbers, got {one_line(wrong[0])}")
        return given

    @model_validator(mode="after")
    def _exactly_one(self) -> Dimension:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            kinds = ", ".join(type(self).model_fields)
            raise ValueError(f"must have exactly one of {kinds}, got {', '.join(given) or 'none'}")
        values = self.grid if self.grid is not None else self.choice
        if values is not None:
            labels = each_once(tuple(values if isinstance(values, dict) else map(label_of, values)))
            if len(set(map(typed, labels))) < len(labels):
                raise ValueError(f"must have labels that differ as numbers, too, got {one_line(labels)}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform must be above 0, got {one_line(self.loguniform)}")
        if self.randint is not None and self.randint[0] > self.randint[1]:
            raise ValueError(f"randint must be [low, high] with low <= high, got {one_line(self.randint)}")
        return self

    @property
    def is_random(self) -> bool:
        """Whether values are drawn rather than gone through."""
        return self.grid is None

    @property
    def alternatives(self) -> dict[str, Any] | None:
        """Label to value of a grid or a choice."""
        values = self.grid if self.grid is not None else self.choice
        if values is None or isinstance(values, dict):
            return values
        return {label_of(value): value for value in values}

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Ends of a numeric range."""
        return self.uniform or self.loguniform or self.randint


def label_of(value: Any) -> str:
    """A scalar as it stands in names and tables: numbers with four significant digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool | int):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return _label(str(value))


def typed(label: str) -> Any:
    """A label as a number where it is one: what a column of numbers is sorted and plotted by."""
    if not _NUMBER.fullmatch(label) or not math.isfinite(float(label)):
        return label
    return int(label) if label.removeprefix("-").isdigit() else float(label)


class Condition(Section):
    """Where trained principals are scored. Costs no retraining."""

    split: Literal["validation", "test"] = Field(
        "test", description="whose agents (and ranges); each training seed has training agents of its own"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description=f"laid over the trial's for scoring only: {', '.join(SCORED_ELSEWHERE)}"
    )
    k: Annotated[tuple[Annotated[Whole, Field(ge=0)], ...], AfterValidator(each_once)] | None = Field(
        None, description="as evaluation.k if not given"
    )

    @model_validator(mode="after")
    def _only_where_it_is_scored(self) -> Condition:
        for section in self.settings:
            if section not in SCORED_ELSEWHERE:
                raise ValueError(
                    f"settings must be of {', '.join(SCORED_ELSEWHERE)} (a condition does not train), got {section!r}"
                )
        evaluation = self.settings.get("evaluation")
        given = evaluation if isinstance(evaluation, Mapping) else {}  # else validation says so
        for key in _OF_TRAINING:
            if key in given:
                raise ValueError(
                    f"settings must leave out evaluation.{key} (a condition does not train), got {given[key]}"
                )
        if self.k is not None and "k" in given:
            raise ValueError(
                f"k must be given once, got {one_line(self.k)} and settings.evaluation.k = {one_line(given['k'])}"
            )
        return self


class Asha(Section):
    """Asynchronous successive halving (Li et al., arXiv 1810.05934)."""

    reduction_factor: Whole = Field(3, ge=2, description="of the trials at a rung, one in so many goes on")
    grace: Number = Field(0.1, gt=0, le=1, description="share of the budget that every trial may spend")


class Pbt(Section):
    """Population based training (Jaderberg et al., arXiv 1711.09846)."""

    interval: Number = Field(0.2, gt=0, le=1, description="share of the budget between two perturbations")
    quantile: Number = Field(0.25, gt=0, le=0.5, description="the worst share copies from the best share")


class Tuning(Section):
    """How trials are chosen and stopped."""

    samples: Whole = Field(1, ge=1, description="draws of the random dimensions (of the population, for pbt)")
    seed: Whole = Field(0, ge=0, lt=2**32, description="of the draws")
    searcher: Literal["random", "optuna"] = Field("random", description="optuna: models what was found (TPE)")
    scheduler: Literal["none", "asha", "pbt"] = Field("none", description="stops bad trials early, or breeds good ones")
    metric: str | None = Field(
        None, description="what search and scheduler maximise, mean over seeds; validation/score_k<largest K>"
    )
    stop: dict[str, Number] = Field(
        default_factory=dict,
        description="metric: value from which upwards a run is good enough and is scored at once",
    )
    env_steps: Whole | None = Field(
        None, ge=1, description="budget of the whole sweep (of a population: of each attempt); running trials then stop"
    )
    max_failures: Whole = Field(3, ge=0, description="times that a trial whose process died is started again")
    asha: Asha = Field(default_factory=Asha)
    pbt: Pbt = Field(default_factory=Pbt)


class Resources(Section):
    """What a trial takes; env runners and learners that its settings ask for come on top. Changes no result."""

    cpus: Number = Field(1, gt=0, description="of the trial's own process, which samples and learns")
    gpus: Number = Field(
        0,
        ge=0,
        description="of that process; at the least what its learner takes (env_runners.num_gpus_per_learner)",
    )
    concurrent: Whole | None = Field(
        None, ge=1, description="trials at the same time, at most; as many as there is room for if not given"
    )
    seeds_per_trial: Whole = Field(
        1,
        ge=1,
        description="training seeds of one setting that share a process (all of them under a scheduler) and take turns "
        "in it, each with actors of its own",
    )

    @field_validator("gpus")
    @classmethod
    def _several_are_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != round(gpus):
            raise ValueError(f"must be a whole number where it is more than 1, got {gpus:g}")
        return gpus


class Claim(Section):
    """The claim that the report answers with a verdict."""

    compare: str = Field("method", description="method, k, condition, or a search key: what the claim is about")
    value: Scalar | None = Field(
        None,
        description="the one claimed to be better; if not given the main method, the largest k, the lowest number, the "
        "first of other values",
    )
    against: tuple[Scalar, ...] | None = Field(None, description="all others that are not privileged, if not given")
    measure: str = Field("normalised_score", description="a row metric")
    better: Literal["higher", "lower"] = Field("higher", description="which of the measure's values is better")
    conditions: tuple[str, ...] | None = Field(None, description="all if not given")
    k: Whole | None = Field(None, ge=0, description="the largest if not given")

    @model_validator(mode="after")
    def _measure_is_known(self) -> Claim:
        known = [metric.key for metric in ROW_METRICS]
        if self.measure not in known:
            raise ValueError(
                f"`answer.measure` must be one of {', '.join(known)}, got {self.measure!r}{near(self.measure, known)}"
            )
        return self

    def claimed(self, compared: Sequence[Any]) -> Any:
        """What is claimed to be better: `value`; else the largest K, the lowest number, the first that is compared."""
        if self.value is not None:
            return self.value
        if self.compare == "k":
            return max(compared)
        return min(compared) if all(isinstance(value, int | float) for value in compared) else compared[0]


class Sweep(Section):
    """One scientific question: what is varied, on which seeds, where it is scored, what is claimed."""

    question: str = Field(min_length=1, description="in one sentence, here or in a file that this one extends")
    name: Label = Field(description="the file's stem if not given")
    preset: str | None = Field(None, description="as in a train config")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="what differs from the defaults, as in a train config"
    )
    methods: tuple[Label, ...] = Field((), description="presets as a dimension: same game, agents and budget for each")
    search: dict[str, Dimension] = Field(
        default_factory=dict, description="dotted key of a setting: what it is varied over"
    )
    seeds: Seeds = Field((0,), description="training seeds: how many, or which")
    conditions: dict[Label, Condition] = Field(
        default_factory=lambda: {"validation": Condition(split="validation"), "test": Condition(split="test")},
        min_length=1,
        description="name: where trained principals are scored",
    )
    baselines: tuple[str, ...] | None = Field(
        None, description="fixed rules and oracles scored beside; all but untrained_planning if not given"
    )
    tune: Tuning = Field(default_factory=Tuning)
    resources: Resources = Field(default_factory=Resources)
    answer: Claim | None = Field(None, description="the claim that the report answers with a verdict")
    rows: Whole | None = Field(None, ge=1, description="rows that the sweep must yield, as a check")

    @model_validator(mode="after")
    def _sections_agree(self) -> Sweep:
        for section, named in (("methods", self.methods), ("baselines", self.baselines or ())):
            if len(set(named)) < len(named):
                raise ValueError(f"`{section}` must name each {section.removesuffix('s')} once, got {one_line(named)}")
        self._check_keys()
        drawn = [key for key, dimension in self.search.items() if dimension.is_random]
        if self.tune.samples > 1 and not drawn:
            raise ValueError(
                f"`tune.samples` must be 1 where no dimension of `search` is drawn, got {self.tune.samples} "
                "(seeds are given by `seeds`)"
            )
        for adaptive in ("searcher", "scheduler"):
            kind = getattr(self.tune, adaptive)
            if kind in ("optuna", "pbt") and (self.methods or len(drawn) < len(self.search) or not drawn):
                grids = [key for key in self.search if key not in drawn]
                found = "methods" if self.methods else f"a grid of {grids[0]}" if grids else "none"
                raise ValueError(
                    f"`tune.{adaptive}` = {kind} needs `search` dimensions that are all drawn, and no methods, "
                    f"got {found}"
                )
        if self.tune.searcher == "optuna" and self.tune.scheduler == "pbt":
            raise ValueError("`tune.searcher` must be random for tune.scheduler = pbt, got optuna")
        if self.answer is not None:
            _check_answer(self, self.answer)
        return self

    def _check_keys(self) -> None:
        """Refuses what another key of `search` would override without a word."""
        paths = {key: override_path(key) for key in self.search}
        for (key, path), (other, below) in permutations(paths.items(), 2):
            if below[: len(path)] == path:
                raise ValueError(f"`search` must hold no key that lies within another, got {other} within {key}")
        if K_KEY not in self.search:
            return
        if self.search[K_KEY].is_random:
            raise ValueError(
                f"`search.{K_KEY}` must be a grid (the same principal is scored at every K), got one that is drawn"
            )
        evaluation = self.settings.get("evaluation")
        given = evaluation.get("k") if isinstance(evaluation, Mapping) else None
        if given is not None:
            raise ValueError(
                f"`settings.{K_KEY}` (or --set) must be left out beside `search.{K_KEY}`, got {one_line(given)}"
            )

    @property
    def is_enumerated(self) -> bool:
        """Whether all trials are known beforehand: Optuna finds them as it goes, Tune draws those of a population."""
        return self.tune.searcher == "random" and self.tune.scheduler != "pbt"


def _check_answer(sweep: Sweep, answer: Claim) -> None:
    # Methods and K are looked up in the plan, which knows all that is scored.
    known: dict[str, list[str] | None] = {"method": None, "k": None, "condition": list(sweep.conditions)}
    searched = {key: dimension for key, dimension in sweep.search.items() if key != K_KEY}
    known |= {key: list(d.alternatives) if d.alternatives else None for key, d in searched.items()}
    if answer.compare not in known:
        raise ValueError(
            f"`answer.compare` must be one of {', '.join(known)}, got {answer.compare!r}"
            f"{near(answer.compare, list(known))}"
        )
    for name in answer.conditions or ():
        if name not in sweep.conditions:
            raise ValueError(f"`answer.conditions` must be among {', '.join(sweep.conditions)}, got {name!r}")
    values = known[answer.compare]
    for value in (answer.value, *(answer.against or ())):
        if values is not None and value is not None and label_of(value) not in values:
            raise ValueError(f"`answer` must compare values of {answer.compare} ({', '.join(values)}), got {value!r}")
    if answer.against == ():
        raise ValueError("`answer.against` must name something to compare with, got []")
