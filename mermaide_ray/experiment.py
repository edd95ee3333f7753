"""One experiment as the user writes it: sections of settings, validated before anything starts.

This module imports neither Ray nor Torch, so `mermaide config` and every config error answer at once. The defaults here
are the only home of a default; `algorithm.py` turns an `Experiment` into an RLlib `AlgorithmConfig`.
Origin of the values: `[paper]` marks what MERMAIDE (arXiv 2304.04668) reports; all else is this project's own choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mermaide_ray.errors import InputError
from mermaide_ray.registry import near

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Range = tuple[float, float]

PRESETS_DIR = Path(__file__).parent / "presets"


class Section(BaseModel):
    """A group of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Environment(Section):
    """The game (one principal, one agent, `horizon` pulls)."""

    num_arms: int = Field(10, ge=2, le=1000, description="arms of the agent's bandit, |A| [paper]")
    horizon: int = Field(100, ge=1, description="pulls per episode, T")
    reward_noise: float = Field(0.05, ge=0, description="standard deviation of the noise on the agent's reward, sigma")
    intervention: Literal["signed", "bonus", "arm", "graded"] = Field(
        "signed",
        description="signed: +delta on the target, -delta elsewhere; bonus: +delta on the target only; "
        "arm: choose the arm that gets +delta; graded: signed, in several sizes",
    )
    delta: float = Field(1.0, gt=0, description="size of the incentive, in units of the agent's reward")
    graded_sizes: tuple[float, ...] = Field(
        (0.25, 0.5, 1.0), min_length=1, description="graded only: sizes of the incentive as multiples of delta"
    )
    cost: Literal["per_intervention", "paid"] = Field(
        "per_intervention",
        description="per_intervention: 1 for each intervention (graded: its size); paid: only for incentive paid out",
    )
    cost_weight: float = Field(0.3, ge=0, description="alpha: principal reward = 1[arm = target] - alpha * cost")
    arm_labels: Literal["relative", "absolute"] = Field(
        "relative",
        description="how the principal's observation names arms: relative counts from the target (arm - target mod "
        "|A|), an exact symmetry of the game; absolute adds the target as an input",
    )

    @field_validator("graded_sizes")
    @classmethod
    def _sizes_positive(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if min(sizes) <= 0:
            raise ValueError(f"every size must be > 0, got {list(sizes)}")
        return sizes

    @property
    def num_interventions(self) -> int:
        """Actions open to the principal, "none" (0) included."""
        return {"signed": 2, "bonus": 2, "arm": self.num_arms + 1, "graded": len(self.graded_sizes) + 1}[
            self.intervention
        ]


class FamilyRanges(Section):
    """One agent family in the mixture: its weight, and per split the range of each hyperparameter."""

    weight: float = Field(1.0, gt=0, description="share of this family in the mixture, relative to the others")
    train: dict[str, Range] = Field(description="hyperparameter: [low, high], drawn uniformly")
    validation: dict[str, Range] | None = Field(None, description="as train if not given")
    test: dict[str, Range] | None = Field(None, description="as train if not given")

    @field_validator("train", "validation", "test")
    @classmethod
    def _ordered(cls, ranges: dict[str, Range] | None) -> dict[str, Range] | None:
        for name, (low, high) in (ranges or {}).items():
            if not low <= high:
                raise ValueError(f"range of {name!r} must be [low, high] with low <= high, got [{low}, {high}]")
        return ranges

    def ranges(self, split: Split) -> dict[str, Range]:
        """The ranges that hold in `split`."""
        return getattr(self, split) or self.train


class Population(Section):
    """Finite sets of agents in place of an unlimited stream [paper: 15 training agents, 10 test agents]."""

    train: int = Field(15, ge=1, description="agents in the training population")
    validation: int = Field(10, ge=1, description="agents in the validation population")
    test: int = Field(10, ge=1, description="agents in the test population")


DEFAULT_FAMILIES: dict[str, Any] = {
    "ucb": {"train": {"ucb_coefficient": (0.05, 0.5)}, "test": {"ucb_coefficient": (0.6, 1.5)}},
    "epsilon_greedy": {"train": {"epsilon": (0.02, 0.2)}, "test": {"epsilon": (0.25, 0.5)}},
}


class Agents(Section):
    """The distribution of agents (a task is one sampled agent)."""

    families: dict[str, FamilyRanges] = Field(
        default_factory=lambda: {k: FamilyRanges(**v) for k, v in DEFAULT_FAMILIES.items()},
        description="registered name or dotted path `package.module:NAME` -> weight and ranges",
        min_length=1,
    )
    base_reward: Range = Field((0.0, 1.0), description="base mean of each arm: uniform on [low, high], drawn per task")
    population: Population | None = Field(None, description="finite populations; none = an unlimited stream of tasks")
    disjoint: tuple[tuple[Split, Split], ...] = Field(
        (("train", "test"),), description="pairs of splits whose agents must not overlap; checked before a run"
    )
    seed: int = Field(0, ge=0, description="seed of the validation and test agents, shared by all training seeds")

    @model_validator(mode="after")
    def _splits_are_disjoint(self) -> Agents:
        for one, other in self.disjoint:
            if one == other:
                raise ValueError(f"`disjoint` must name two different splits, got {one!r} twice")
            # Populations of agents with drawn base rewards are compared agent by agent where they are sampled.
            if self.population is not None:
                continue
            for family, ranges in self.families.items():
                mine, theirs = ranges.ranges(one), ranges.ranges(other)
                if mine and not any(_apart(mine[key], theirs[key]) for key in mine.keys() & theirs.keys()):
                    raise ValueError(
                        f"splits {one!r} and {other!r} must not overlap (agents.disjoint), but every range of "
                        f"{family!r} does: {_plain(mine)} against {_plain(theirs)}"
                    )
        return self


def _apart(one: Range, other: Range) -> bool:
    return one[1] < other[0] or other[1] < one[0]


def _plain(ranges: dict[str, Range]) -> dict[str, list[float]]:
    return {key: list(value) for key, value in ranges.items()}


class MetaLearning(Section):
    """The inner loop: what happens between meeting an agent and steering it (MAML, arXiv 1703.03400)."""

    meta_batch_size: int = Field(48, ge=1, description="tasks per iteration, B")
    adaptation_episodes: int = Field(1, ge=0, description="K: support episodes with each task before the query")
    query_episodes: int = Field(4, ge=1, description="episodes per task sampled with the adapted parameters")
    inner_steps: int = Field(1, ge=0, description="gradient steps on the support episodes; 0 = no gradient adaptation")
    inner_lr: float = Field(0.1, ge=0, description="inner learning rate (initial value if learned)")
    learn_inner_lr: bool = Field(False, description="learn one inner rate per parameter tensor (Meta-SGD)")
    adapt: Literal["all", "heads", "policy", "world_model"] = Field(
        "all", description="which parameters the inner loop changes"
    )
    order: Literal["first", "second"] = Field("second", description="order of the meta-gradient")
    estimator: Literal["vanilla", "dice", "lvc"] = Field(
        "lvc", description="inner policy-gradient estimator: vanilla, DiCE (1802.05098), low-variance curvature (1810.06784)"
    )
    inner_policy_weight: float = Field(1.0, ge=0, description="weight of the policy-gradient loss in the inner loss")
    support_weight: float = Field(
        0.25, ge=0, description="weight of the unadapted (support) return in the outer objective, which keeps K = 0 good"
    )
    carry_state: bool = Field(
        False, description="carry the recurrent state from episode to episode of one agent (RL squared)"
    )


class WorldModel(Section):
    """The recurrent model of the agent and the policy that reads it."""

    enabled: bool = Field(True, description="train the recurrent core to predict the agent's next arm")
    hidden_size: int = Field(48, ge=1, description="units of the GRU, H")
    policy_hidden: int = Field(64, ge=1, description="units of the policy's (and the value's) hidden layer")
    loss_weight: float = Field(1.0, ge=0, description="weight of the next-arm negative log-likelihood (nats per pull)")
    policy_gradient: bool = Field(True, description="whether policy gradients flow into the recurrent core")


class Training(Section):
    """The outer loop."""

    env_steps: int = Field(20_000_000, ge=1, description="budget: environment steps, support and query together")
    meta_lr: float = Field(2e-3, gt=0, description="meta (outer) learning rate of Adam")
    final_lr_fraction: float = Field(0.05, ge=0, le=1, description="the rate falls linearly to this share of meta_lr")
    objective: Literal["reinforce", "clipped"] = Field("reinforce", description="outer policy objective")
    clip: float = Field(0.2, gt=0, description="clipped only: range of the probability ratio")
    epochs: int = Field(1, ge=1, description="clipped only: passes over each meta-batch")
    baseline: Literal["value", "leave_one_out"] = Field("value", description="baseline of the policy gradient")
    gamma: float = Field(0.99, ge=0, le=1, description="discount per pull, for training only (scores are undiscounted)")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    value_weight: float = Field(0.5, ge=0, description="weight of the squared value error")
    entropy_weight: float = Field(0.01, ge=0, description="weight of the policy's entropy (nats), falling to a tenth")
    max_grad_norm: float = Field(1.0, gt=0, description="global norm at which the meta-gradient is clipped")


class EnvRunners(Section):
    """Who does the work: never changes a result."""

    num_env_runners: int = Field(0, ge=0, description="sampling actors; 0 samples in the driver")
    num_learners: int = Field(0, ge=0, description="learner actors; 0 learns in the driver")
    restarts: int = Field(3, ge=0, description="times a crashed sampling actor is started again")


class Evaluation(Section):
    """The K-shot protocol: adapt on K support episodes, score on fresh query episodes."""

    k: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1), min_length=1, description="numbers of support episodes")
    tasks: int = Field(100, ge=1, description="agents per split (a finite population is used whole)")
    episodes: int = Field(16, ge=1, description="query episodes per task and K")
    every: float = Field(0.1, gt=0, le=1, description="validate each time this share of the budget is spent")
    validation_tasks: int = Field(48, ge=1, description="agents in a validation round during training")


class Experiment(Section):
    """Everything that one training run depends on."""

    name: str = Field("mermaide", min_length=1, description="name of the method in tables and figures")
    seed: int = Field(0, ge=0, description="training seed: initialisation, training agents and their luck")
    environment: Environment = Field(default_factory=Environment)
    agents: Agents = Field(default_factory=Agents)
    meta_learning: MetaLearning = Field(default_factory=MetaLearning)
    world_model: WorldModel = Field(default_factory=WorldModel)
    training: Training = Field(default_factory=Training)
    env_runners: EnvRunners = Field(default_factory=EnvRunners)
    evaluation: Evaluation = Field(default_factory=Evaluation)

    @model_validator(mode="after")
    def _sections_agree(self) -> Experiment:
        meta, training = self.meta_learning, self.training
        if meta.inner_steps and not meta.adaptation_episodes:
            raise ValueError(
                "`meta_learning.adaptation_episodes` must be >= 1 where `meta_learning.inner_steps` is "
                f"{meta.inner_steps}, got 0 (set inner_steps to 0 for no adaptation)"
            )
        if training.baseline == "leave_one_out" and meta.query_episodes < 2:
            raise ValueError(
                "`meta_learning.query_episodes` must be >= 2 for training.baseline = leave_one_out, "
                f"got {meta.query_episodes}"
            )
        if training.baseline == "leave_one_out" and meta.adaptation_episodes == 1:
            raise ValueError(
                "`meta_learning.adaptation_episodes` must be 0 or >= 2 for training.baseline = leave_one_out, got 1"
            )
        if not self.world_model.enabled and meta.adapt == "world_model":
            raise ValueError(
                "`meta_learning.adapt` = world_model needs `world_model.enabled` = true, got false"
            )
        if not self.world_model.enabled and not self.world_model.policy_gradient:
            raise ValueError(
                "`world_model.policy_gradient` must be true where `world_model.enabled` is false: nothing else would "
                "train the recurrent core, got false"
            )
        learners = self.env_runners.num_learners
        if learners > 1 and meta.meta_batch_size % learners:
            raise ValueError(
                f"`meta_learning.meta_batch_size` must be a multiple of env_runners.num_learners ({learners}), "
                f"got {meta.meta_batch_size}"
            )
        return self

    @property
    def env_steps_per_iteration(self) -> int:
        """Environment steps of one meta-iteration: B * (K + query episodes) * T."""
        meta = self.meta_learning
        return meta.meta_batch_size * (meta.adaptation_episodes + meta.query_episodes) * self.environment.horizon

    @property
    def num_iterations(self) -> int:
        """Meta-iterations that spend `training.env_steps` (at least one)."""
        return max(1, round(self.training.env_steps / self.env_steps_per_iteration))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for YAML or JSON."""
        return self.model_dump(mode="json")


def preset_names() -> list[str]:
    """Names that `preset:` and `--preset` take."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """The settings in which a preset differs from the defaults."""
    if name not in preset_names():
        raise InputError(f"`preset` must be one of {', '.join(preset_names())}, got {name!r}{near(name, preset_names())}")
    return _read_yaml(PRESETS_DIR / f"{name}.yaml")


def load_experiment(
    config: Path | None = None, preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Experiment:
    """Defaults, then the preset, then the config file, then dotted overrides.

    Args:
        config: A YAML file; its key `preset` names the preset to start from unless `preset` is given.
        preset: A name of `preset_names()`.
        overrides: `{"training.meta_lr": 1e-3, …}`, as given by `--set`.

    Raises:
        InputError: With one sentence for the first thing that is wrong.
    """
    given = _read_yaml(config) if config else {}
    named = given.pop("preset", None)
    base = preset or named
    settings = merge(load_preset(base) if base else {}, given)
    for dotted, value in (overrides or {}).items():
        settings = merge(settings, nested(dotted, value))
    return validate(settings, where=str(config) if config else "--set / --preset")


def validate(settings: Mapping[str, Any], where: str = "config") -> Experiment:
    """A validated experiment, or one sentence that says what is wrong and where."""
    _refuse_unknown(Experiment, settings, (), where)
    try:
        experiment = Experiment.model_validate(settings)
    except ValidationError as error:
        raise InputError(_first_sentence(error, where)) from None
    _check_families(experiment, where)
    return experiment


def _check_families(experiment: Experiment, where: str) -> None:
    """Every hyperparameter named in a range exists, none is missing, and ranges stay where the family is defined."""
    from mermaide_ray.agents import family_named

    for name, family in experiment.agents.families.items():
        known = family_named(name).hyperparameters
        for split in SPLITS:
            ranges = family.ranges(split)
            key = f"agents.families.{name}.{split}"
            for wrong in ranges.keys() - known.keys():
                raise InputError(
                    f"`{key}` must name hyperparameters of {name} ({', '.join(known) or 'it has none'}), "
                    f"got {wrong!r}{near(wrong, list(known))} ({where})"
                )
            for missing in known.keys() - ranges.keys():
                raise InputError(f"`{key}` must give a range for {missing!r}, got only {sorted(ranges)} ({where})")
            for hyperparameter, (low, high) in ranges.items():
                least, most = known[hyperparameter].low, known[hyperparameter].high
                if low < least or high > most:
                    raise InputError(
                        f"`{key}.{hyperparameter}` must lie in [{least:g}, {most:g}], got [{low:g}, {high:g}] ({where})"
                    )


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, section by section; `agents.families` is replaced whole, since it is one mixture."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and key != "families":
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """`nested("a.b", 1)` is `{"a": {"b": 1}}`."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    result: dict[str, Any] = value
    return result


def parse_override(text: str) -> tuple[str, Any]:
    """`training.meta_lr=1e-3` as (dotted key, value); the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set must be KEY=VALUE (such as training.meta_lr=0.001), got {text!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {key} must have a YAML value, got {value!r}") from None
    # YAML 1.1 reads 1e-3 (no dot) as text.
    if isinstance(parsed, str):
        try:
            parsed = float(parsed)
        except ValueError:
            pass
    return key, parsed


def describe(experiment: Experiment) -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value, meaning) of every setting, in order."""
    for key, field in type(experiment).model_fields.items():
        value = getattr(experiment, key)
        if isinstance(value, Section):
            for name, inner in type(value).model_fields.items():
                yield f"{key}.{name}", value.model_dump(mode="json")[name], inner.description or ""
        else:
            yield key, value, field.description or ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the config must be a readable file, got {path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the config must be YAML, got {path}: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"the config must be a mapping of sections, got {type(content).__name__} ({path})")
    return content


def _refuse_unknown(model: type[BaseModel], settings: Any, path: tuple[str, ...], where: str) -> None:
    """Unknown keys first, with the nearest known one: a misspelt key is the commonest mistake."""
    if not isinstance(settings, Mapping):
        return
    known = list(model.model_fields)
    for key, value in settings.items():
        if key not in known:
            place = f"section `{'.'.join(path)}`" if path else "the top level"
            raise InputError(f"{place} has no key {key!r}{near(str(key), known)}; it has {', '.join(known)} ({where})")
        inner = model.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            _refuse_unknown(inner, value, (*path, str(key)), where)


def _first_sentence(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{f'`{key}`: ' if key and '`' not in message else ''}{message} ({where})"
    message = message.removeprefix("Input should be ")
    return f"`{key}` must be {message}, got {first['input']!r} ({where})"
