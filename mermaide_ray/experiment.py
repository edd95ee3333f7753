"""One experiment as the user writes it: sections of settings, validated before anything starts.

This module imports neither Ray nor Torch, so `mermaide config` and every config error answer at once. Its
sections, here and in `environment.py`, `agent_settings.py` and `method_settings.py`, are the only home of a default;
`algorithm.py` turns an `Experiment` into an RLlib `AlgorithmConfig`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from mermaide_ray.agent_settings import Agents, Split, check_families, check_planned, default_families
from mermaide_ray.config_file import merge, nested, one_line, read_yaml
from mermaide_ray.environment import Environment
from mermaide_ray.errors import InputError
from mermaide_ray.method_settings import MetaLearning, Training, WorldModel
from mermaide_ray.registry import near
from mermaide_ray.settings import Layer, Number, Section, Switch, Whole, each_once, sentence

# Sections of the settings that may differ where a trained principal is scored; the others decide how it is trained.
SCORED_ELSEWHERE = ("environment", "agents", "evaluation")

PRESETS_DIR = Path(__file__).parent / "presets"


def _printable(name: str) -> str:
    # It names a folder and a row of tables, in which ':' tells a rule of one's own from what was trained.
    if not name.isprintable() or "/" in name or ":" in name or not name.strip(". "):
        raise ValueError(f"must be printable text without '/' or ':', got {one_line(name)}")
    return name


class EnvRunners(Section):
    """Who does the work: changes no result but by rounding, where learners are several or on a GPU."""

    num_env_runners: Whole = Field(0, ge=0, description="sampling actors; 0 samples in the driver")
    num_learners: Whole = Field(0, ge=0, description="learner actors; 0 learns in the driver")
    num_gpus_per_learner: Number = Field(
        0, ge=0, le=1, description="1 (or a share of one, with a single learner) learns on a GPU; sampling never does"
    )
    restarts: Whole = Field(3, ge=0, description="times a crashed sampling actor is started again")

    @model_validator(mode="after")
    def _learners_share_no_gpu(self) -> EnvRunners:
        if self.num_learners > 1 and self.num_gpus_per_learner not in (0, 1):
            raise ValueError(
                "`env_runners.num_gpus_per_learner` must be 0 or 1 where learners are several, "
                f"got {self.num_gpus_per_learner}"
            )
        return self

    @property
    def learners(self) -> dict[str, float]:
        """As RLlib's `AlgorithmConfig.learners` takes them. One on a GPU has a CPU, too: RLlib would give it none."""
        return {
            "num_learners": self.num_learners,
            "num_cpus_per_learner": 1,
            "num_gpus_per_learner": self.num_gpus_per_learner,
        }

    @property
    def actors(self) -> list[dict[str, float]]:
        """What each process beside the driver takes, by Ray's names."""
        learner = {"CPU": 1.0} | ({"GPU": self.num_gpus_per_learner} if self.num_gpus_per_learner else {})
        return [{"CPU": 1.0}] * self.num_env_runners + [learner] * self.num_learners

    @property
    def driver_gpus(self) -> float:
        """GPUs of the driver, which learns itself where there are no learner actors."""
        return 0 if self.num_learners else self.num_gpus_per_learner


class Evaluation(Section):
    """The K-shot protocol: adapt on K support episodes, score on fresh query episodes."""

    k: Annotated[tuple[Annotated[Whole, Field(ge=0)], ...], AfterValidator(each_once)] = Field(
        (0, 1), description="numbers of support episodes"
    )
    tasks: Whole = Field(100, ge=1, description="agents per split; all of a population that has no more")
    episodes: Whole = Field(16, ge=1, description="query episodes per task and K")
    every: Number = Field(0.1, gt=0, le=1, description="validate each time this share of the budget is spent")
    validation_tasks: Whole = Field(48, ge=1, description="agents in a validation round during training")
    planning: Switch = Field(
        True,
        description="between support and query, rehearse the adapted policy with agents imagined from what the support "
        "told, then try it and simple rules on others, and play the best rule where it is clearly better (never in "
        "validation rounds during training); imagined are agents that learn which arm pays, whatever the world "
        "model is",
    )
    rehearsals: Whole = Field(
        30,
        ge=0,
        description="planning only: rounds in which the adapted policy is trained on with the imagined agents; 0: none",
    )

    @property
    def planned_rehearsals(self) -> int | None:
        """Rounds of rehearsal where there is planning, None where there is none."""
        return self.rehearsals if self.planning else None


class Experiment(Section):
    """Everything that one training run depends on.

    [paper] marks what MERMAIDE (arXiv 2304.04668) reports; all else is this project's own choice.
    """

    name: Annotated[str, AfterValidator(_printable)] = Field(
        "mermaide_learner", description="name of the method in tables, figures and folders"
    )
    seed: Whole = Field(
        0, ge=0, lt=2**32, description="training seed: initialisation, training agents and all random draws in training"
    )
    environment: Environment = Field(default_factory=Environment)
    agents: Agents = Field(default_factory=Agents)
    meta_learning: MetaLearning = Field(default_factory=MetaLearning)
    world_model: WorldModel = Field(default_factory=WorldModel)
    training: Training = Field(default_factory=Training)
    env_runners: EnvRunners = Field(default_factory=EnvRunners)
    evaluation: Evaluation = Field(default_factory=Evaluation)

    @model_validator(mode="before")
    @classmethod
    def _default_agents_play_the_game(cls, settings: Any) -> Any:
        # What is no mapping is refused by the section itself.
        if not isinstance(settings, Mapping) or not isinstance(settings.get("agents", {}), Mapping):
            return settings
        return {**settings, "agents": {"families": default_families(settings), **settings.get("agents", {})}}

    @model_validator(mode="after")
    def _inner_step_has_something_to_do(self) -> Experiment:
        meta = self.meta_learning
        if meta.inner_steps and not meta.adaptation_episodes:
            raise ValueError(
                "`meta_learning.adaptation_episodes` must be >= 1 where `meta_learning.inner_steps` is "
                f"{meta.inner_steps}, got 0 (set inner_steps to 0 for no adaptation)"
            )
        if meta.inner_steps and not meta.inner_policy_weight and not self.world_model.enabled:
            raise ValueError(
                "`meta_learning.inner_policy_weight` must be > 0 where world_model.enabled is false: the inner step "
                "would have no loss, got 0"
            )
        if meta.inner_steps and not meta.inner_policy_weight and not self.world_model.loss_weight:
            raise ValueError(
                "`meta_learning.inner_policy_weight` must be > 0 where world_model.loss_weight is 0: the inner step "
                "would have no loss, got 0"
            )
        if meta.inner_steps and not meta.inner_policy_weight and meta.adapt == "policy":
            raise ValueError(
                "`meta_learning.inner_policy_weight` must be > 0 where meta_learning.adapt is policy: nothing else "
                "would move it, got 0"
            )
        if meta.inner_steps and meta.learn_inner_lr and not meta.inner_lr:
            raise ValueError(
                "`meta_learning.inner_lr` must be > 0 where meta_learning.learn_inner_lr is true: a rate that starts "
                "at 0 is never learned, got 0"
            )
        return self

    @model_validator(mode="after")
    def _baseline_has_episodes(self) -> Experiment:
        meta, training = self.meta_learning, self.training
        if training.baseline == "leave_one_out" and meta.carry_state and meta.adaptation_episodes:
            raise ValueError(
                "`training.baseline` must be value where the state is carried over (meta_learning.carry_state): what "
                "a support episode is worth to later ones takes a value, got leave_one_out"
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
        return self

    @model_validator(mode="after")
    def _networks_play_the_game(self) -> Experiment:
        meta = self.meta_learning
        if self.world_model.arms == "equivariant" and self.environment.space is not None:
            raise ValueError(
                "`world_model.arms` must be flat where `environment.game` is continuous, got 'equivariant'"
            )
        if not self.world_model.enabled and meta.adapt == "world_model":
            raise ValueError("`meta_learning.adapt` = world_model needs `world_model.enabled` = true, got false")
        if not self.world_model.policy_gradient and not (self.world_model.enabled and self.world_model.loss_weight):
            raise ValueError(
                "`world_model.policy_gradient` must be true where world_model.enabled is false or "
                "world_model.loss_weight 0: nothing else would train the recurrent core, got false"
            )
        if self.world_model.arms == "equivariant" and self.environment.changes.of_target:
            raise ValueError(
                "`world_model.arms` must be flat where the target moves (environment.changes), got equivariant"
            )
        if self.world_model.kind == "learner":
            self._check_learner_model()
        if self.evaluation.planning:
            self._check_game_of_learners("evaluation.planning is true, which imagines agents", "does not plan")
        return self

    @model_validator(mode="after")
    def _base_means_can_change(self) -> Experiment:
        if self.environment.changes.of_base and self.agents.base_reward[0] == self.agents.base_reward[1]:
            raise ValueError(
                "`agents.base_reward` must be [low, high] with low < high where base means change "
                f"(environment.changes), got {one_line(self.agents.base_reward)}"
            )
        return self

    @model_validator(mode="after")
    def _arms_differ(self) -> Experiment:
        if not self.environment.reward_noise and self.agents.base_reward[0] == self.agents.base_reward[1]:
            raise ValueError(
                "`environment.reward_noise` must be > 0 where agents.base_reward is one number: arms would be worth "
                "the same to the last bit, and agents would go by their order, got 0 (1e-6 will do)"
            )
        return self

    @model_validator(mode="after")
    def _meta_batch_divides(self) -> Experiment:
        meta, training = self.meta_learning, self.training
        learners, minibatches = max(1, self.env_runners.num_learners), training.num_minibatches
        if meta.meta_batch_size < minibatches:
            raise ValueError(
                f"`meta_learning.meta_batch_size` must be >= training.minibatches ({minibatches}), "
                f"got {meta.meta_batch_size}"
            )
        if learners > 1 and meta.meta_batch_size % (learners * minibatches):
            raise ValueError(
                f"`meta_learning.meta_batch_size` must be a multiple of env_runners.num_learners ({learners}) times "
                f"training.minibatches ({minibatches}), got {meta.meta_batch_size}"
            )
        return self

    def _check_learner_model(self) -> None:
        for key, required, given in (
            ("world_model.enabled", True, self.world_model.enabled),
            ("world_model.arms", "flat", self.world_model.arms),
            ("meta_learning.carry_state", False, self.meta_learning.carry_state),
        ):
            if given != required:
                raise ValueError(
                    f"`{key}` must be {one_line(required)} where world_model.kind is learner, got {one_line(given)} "
                    "(or --preset mermaide, which has no such model)"
                )
        self._check_game_of_learners("world_model.kind is learner", "has no such model")

    def _check_game_of_learners(self, where: str, instead: str) -> None:
        """Refuses games that the model of learners does not describe (`models/learner_model.py`)."""
        environment, sight = self.environment, self.environment.sight
        for key, required, given in (
            ("game", "arms", environment.game),
            ("arm_labels", "relative", environment.arm_labels),
            ("changes.target_moves", 0, environment.changes.target_moves),
            ("changes.target_moves_at", (), environment.changes.target_moves_at),
            ("sight.delay", 0, sight.delay),
            ("sight.noise", 0, sight.noise),
            ("sight.share", 1, sight.share),
        ):
            if given != required:
                raise ValueError(
                    f"`environment.{key}` must be {one_line(required)} where {where}: the model of learners keeps "
                    f"account of what each arm pays, got {one_line(given)} (or --preset mermaide, which {instead})"
                )
        if environment.intervention == "arm":
            raise ValueError(
                f"`environment.intervention` must be signed, bonus or graded where {where}: of the arms, only the "
                f"target is told from the others, got arm (or --preset mermaide, which {instead})"
            )

    @property
    def env_steps_per_iteration(self) -> int:
        """Environment steps of one meta-iteration: B * (K + query episodes) * T."""
        meta = self.meta_learning
        return meta.meta_batch_size * (meta.adaptation_episodes + meta.query_episodes) * self.environment.horizon

    @property
    def num_iterations(self) -> int:
        """Meta-iterations that spend `training.env_steps` (at least one)."""
        return max(1, round(self.training.env_steps / self.env_steps_per_iteration))

    @property
    def iterations_per_validation(self) -> int:
        """Meta-iterations from one validation to the next: those that spend `evaluation.every` of the budget."""
        return max(1, math.ceil(self.evaluation.every * self.num_iterations))

    def is_milestone(self, iteration: int) -> bool:
        """Whether an iteration is validated: each `evaluation.every` of the budget, and the last.

        Not whether it has a score: agents on which the oracle gains nothing have none.
        """
        return iteration >= self.num_iterations or iteration % self.iterations_per_validation == 0

    def seed_of(self, split: Split) -> int:
        """Whose agents and luck: training's belong to the training seed, held-out ones are the same for all of them."""
        return self.seed if split == "train" else self.agents.seed

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for YAML or JSON."""
        return self.model_dump(mode="json")

    def what_is_done(self) -> dict[str, Any]:
        """All settings that count, but who does it: these may change between two halves of a run."""
        idle = set() if self.evaluation.planning else {"rehearsals"}
        return self.model_dump(exclude={"env_runners": True, "evaluation": idle})


def preset_names() -> list[str]:
    """Names that `preset:` and `--preset` take."""
    return sorted(path.stem for path in PRESETS_DIR.glob("*.yaml"))


def load_preset(name: str, where: str = "--preset") -> dict[str, Any]:
    """The settings in which a preset differs from the defaults."""
    known = preset_names()
    if name not in known:
        raise InputError(
            f"`preset` must be one of {', '.join(known)}, got {one_line(name)}{near(str(name), known)} ({where})"
        )
    return read_yaml(PRESETS_DIR / f"{name}.yaml")


def preset_description(name: str) -> str:
    """One line on a preset: the comment at the top of its file."""
    first, *_ = (PRESETS_DIR / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return first.removeprefix("# ")


def load_experiment(
    config: str | Path | None = None, preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Experiment:
    """Defaults, then the preset, then the config file, then dotted overrides.

    Args:
        config: A YAML file; its key `preset` names the preset to start from unless `preset` is given.
        preset: A name of `preset_names()`.
        overrides: `{"training.meta_lr": 1e-3, …}`, as given by `--set`.

    Raises:
        InputError: With one sentence for the first thing that is wrong.
    """
    given = read_yaml(Path(config)) if config else {}
    named = given.pop("preset", None)
    base = preset if preset is not None else named
    where = str(config) if preset is None else "--preset"
    layers = [(f"preset {base}", load_preset(base, where) if base is not None else {}), (str(config), given)]
    # An override, other than a file, may change one setting of a mixture.
    settings = overlaid(layers[0][1], given)
    for dotted, value in (overrides or {}).items():
        layers.append((f"--set {dotted}", nested(override_path(dotted), value)))
        settings = with_setting(settings, dotted, value)
    return _validated(settings, layers)


def validate(settings: Mapping[str, Any], where: str = "config") -> Experiment:
    """A validated experiment, or one sentence (an InputError) that says what is wrong and where."""
    return _validated(settings, [(where, settings)])


def variant(experiment: Experiment, preset: str, where: str = "--preset") -> Experiment:
    """The experiment with a preset's method: same agents, game, budget and number of episodes per task.

    Args:
        experiment: What all methods share.
        preset: A name of `preset_names()`.
        where: Who named it, for error messages.
    """
    layers = [("the experiment", experiment.to_dict()), (f"preset {preset}", load_preset(preset, where))]
    return _validated(varied(experiment, layers[1][1]), layers)


def varied(experiment: Experiment, method: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `variant`, of which the families are still to be checked, from those of a preset."""
    settings = overlaid(experiment.to_dict(), method)
    mine, theirs = experiment.meta_learning, settings["meta_learning"]
    # Support episodes are of use only to a method that adapts or remembers.
    support = max(1, mine.adaptation_episodes) if theirs["adaptation_episodes"] else 0
    query = max(1, mine.adaptation_episodes + mine.query_episodes - support)
    return merge(settings, {"meta_learning": {"adaptation_episodes": support, "query_episodes": query}})


def elsewhere(trained: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """The settings of a trained principal, with other agents or another game to score it with.

    Args:
        trained: The settings that it was trained with.
        overrides: Dotted keys and values, as given by `--set`.

    Raises:
        InputError: One of them is about training, or its networks can't be used in this game.
    """
    settings, layers = trained.to_dict(), [("the principal's settings", trained.to_dict())]
    for dotted, value in overrides.items():
        if dotted.partition(".")[0] not in SCORED_ELSEWHERE:
            raise InputError(
                f"--set must name a setting of {', '.join(SCORED_ELSEWHERE)} (a trained principal is only scored), "
                f"got {dotted!r}"
            )
        layers.append((f"--set {dotted}", nested(override_path(dotted), value)))
        settings = with_setting(settings, dotted, value)
    experiment = _validated(settings, layers)
    check_game(trained, experiment.environment, "environment", "--set environment")
    return experiment


def check_game(trained: Experiment, game: Environment, place: str, where: str) -> None:
    """Refuses a game in which the networks of a trained principal can't be used.

    Args:
        trained: The settings that it was trained with.
        game: The game in which it is to be scored.
        place: The section that sets this game, as the user knows it.
        where: Where to change it.
    """
    own, kept = trained.environment, ["arm_labels", "num_interventions", "num_arms", "num_symbols", "num_news"]
    if own.space is not None:
        kept = ["num_interventions", "dimensions"]
    if trained.world_model.arms == "equivariant":
        # Where an intervention chooses an arm, there are as many as there are arms.
        chooses = "arm" in (own.intervention, game.intervention)
        kept = ["arm_labels", "intervention" if chooses else "num_interventions", "num_blank_symbols", "num_news"]
    for key in ("game", *kept):
        required, given = getattr(own, key), getattr(game, key)
        if required != given:
            hint = ""
            if key == "num_arms":
                hint = "; one trained with preset mermaide and world_model.arms = equivariant can be used with any"
            raise InputError(
                f"`{place}` must keep the {key} that the principal was trained with ({required}), got {given}{hint} "
                f"({where})"
            )


def check_imaginable(experiment: Experiment, where: str) -> None:
    """Refuses a game, or agents, in which no principal may plan.

    Raises:
        InputError: With the sentence with which a principal that plans is refused.
    """
    validate(merge(experiment.to_dict(), {"evaluation": {"planning": True}}), where)


def overlaid(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others laid over them, key by key; `agents.families`, being one mixture, is replaced whole."""
    return merge(settings, given, whole=frozenset({"families"}))


def with_setting(settings: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """The settings with one changed, by its dotted key: a mixture whole; of a family in it, that setting alone."""
    path = override_path(dotted)
    if path[:2] == ("agents", "families") and len(path) > 2:
        default = {"agents": {"families": default_families(settings)}}
        return merge(overlaid(default, settings), nested(path, value))
    return overlaid(settings, nested(path, value))


def override_path(dotted: str) -> tuple[str, ...]:
    """`a.b` as ("a", "b"); the user's own family, `agents.families.my_lab.agents:Softmax`, is one key."""
    parts = dotted.split(".")
    if parts[:2] == ["agents", "families"]:
        for end, part in enumerate(parts):
            if ":" in part:
                return (*parts[:2], ".".join(parts[2 : end + 1]), *parts[end + 1 :])
    return tuple(parts)


def _validated(settings: Mapping[str, Any], layers: Sequence[Layer]) -> Experiment:
    try:
        experiment = Experiment.model_validate(settings)
    except ValidationError as error:
        raise InputError(sentence(Experiment, error, layers)) from None
    check_families(experiment.agents, experiment.environment, layers)
    if experiment.evaluation.planning:
        check_planned(experiment.agents, experiment.environment, layers)
    return experiment
