"""Everything that the Stackelberg experiment depends on. Imports neither Ray nor Torch.

The paper (MERMAIDE, arXiv 2304.04668) is known to have such an experiment, not with which games, sizes or rates: every
default here is this project's own choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from mermaide_ray.config_file import merge, nested, one_line, read_yaml
from mermaide_ray.errors import InputError
from mermaide_ray.settings import Layer, Number, Section, Whole, each_once, sentence

Method = Literal["mermaide", "rl2", "scratch"]
Scale = Literal["smoke", "laptop", "full"]
LEARNED: tuple[Method, ...] = ("mermaide", "rl2")


class Game(Section):
    """The distribution of bimatrix games.

    Leader payoffs L are standard normal and known to the principal. Follower payoffs are hidden, and structured:
    F = a * L + sum of c_d * basis_d + e, with alignment a uniform on [-1, 1], tastes c_d and idiosyncrasies e normal.
    The basis is drawn once per `seed` and the same in all splits; a, c, e and L are drawn per task.
    """

    rows: Whole = Field(3, ge=2, le=6, description="the leader's actions")
    columns: Whole = Field(6, ge=2, le=20, description="the follower's actions")
    rounds: Whole = Field(4, ge=1, description="rounds per episode")
    alignment: Number = Field(1.0, ge=0, description="the alignment a is uniform on [-alignment, alignment]")
    tastes: Whole = Field(2, ge=0, description="basis matrices of the follower's payoffs")
    taste_scale: Number = Field(1.0, ge=0, description="standard deviation of the tastes c")
    idiosyncrasy: Number = Field(0.1, ge=0, description="standard deviation of the unstructured part e")
    response_noise: Number = Field(
        0.2, ge=0, le=1, description="p: the response that the principal observes is uniform with this probability"
    )
    payoff_noise: Number = Field(1.0, ge=0, description="standard deviation of the noise on the payoff it observes")
    seed: Whole = Field(0, ge=0, lt=2**32, description="seed of the basis, and of validation and test followers")


class PrincipalSettings(Section):
    """Beliefs and plans."""

    hidden_size: Whole = Field(64, ge=1, description="units of the networks' hidden layer and of the recurrent state")
    linear_factors: Whole = Field(
        2, ge=0, description="directions of a belief that are linear in the leader's payoffs (mermaide)"
    )
    inner_steps: Whole = Field(5, ge=1, description="gradient steps on all that was seen, after each episode")
    inner_lr: Number = Field(1.0, gt=0, lt=2, description="inner learning rate; 1 never overshoots")
    payoff_scale: Number = Field(
        3.0, gt=0, description="standard deviation of the follower's payoffs (in nats) that meta-training starts from"
    )
    prior_weight: Number = Field(1.0, gt=0, description="pull to the prior belief; learned from this value")
    resolution: Whole = Field(12, ge=1, description="commitments in training are multiples of 1/resolution")
    fine_resolution: Whole = Field(30, ge=1, description="likewise where a principal is scored")
    sharpness: Number = Field(4.0, gt=0, description="inverse temperature of exploration; learned from this value")


class Scratch(Section):
    """Training from scratch on each follower: the same belief and plan, with nothing learned beforehand.

    Each setting is a list; the best combination on validation followers is used (per noise level).
    """

    sharpness: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        (2.0, 8.0), min_length=1, description="inverse temperatures of exploration to try"
    )
    payoff_scale: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        (1.0, 3.0, 10.0), min_length=1, description="standard deviations, in nats, of the payoffs expected, to try"
    )
    inner_steps: Whole = Field(10, ge=1, description="gradient steps on all that was seen, after each episode")


class Training(Section):
    """Meta-training. Chosen on validation followers at noise 0 and 0.2, one training seed."""

    iterations: Whole = Field(250, ge=1, description="meta-iterations")
    tasks: Whole = Field(64, ge=1, description="followers per meta-iteration, B")
    trials: Whole = Field(2, ge=2, description="trials per follower, E: each is the others' baseline")
    episodes: Whole = Field(4, ge=1, description="episodes of a trial; the belief adapts between them")
    meta_lr: Number = Field(1e-2, gt=0, description="mermaide's learning rate of Adam; falls linearly to a tenth")
    recurrent_lr: Number = Field(3e-3, gt=0, description="rl2's, likewise")
    gamma: Number = Field(0.9, ge=0, le=1, description="discount per round of the policy gradient")
    policy_weight: Number = Field(1.0, ge=0, description="weight of the policy gradient")
    model_weight: Number = Field(10.0, ge=0, description="weight of the next response's negative log-likelihood")
    entropy_weight: Number = Field(0.1, ge=0, description="weight of the policy's entropy, falling to a tenth")
    max_grad_norm: Number = Field(10.0, gt=0, description="global norm at which the meta-gradient is clipped")


def _some_adaptation(k: tuple[int, ...]) -> tuple[int, ...]:
    if max(k) < 1:
        raise ValueError(f"must hold a number >= 1, got {one_line(k)}")
    return k


class EvaluationSettings(Section):
    """The protocol: after each of k episodes, the commitment that the principal thinks best is scored."""

    k: Annotated[
        tuple[Annotated[Whole, Field(ge=0)], ...], AfterValidator(each_once), AfterValidator(_some_adaptation)
    ] = Field((0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32), description="numbers of adaptation episodes")
    tasks: Whole = Field(100, ge=1, description="held-out followers per condition")
    trials: Whole = Field(4, ge=1, description="times that each follower is met")
    validation_tasks: Whole = Field(50, ge=1, description="validation followers on which `scratch` is tuned")
    target: Number = Field(0.25, gt=0, lt=1, description="normalised regret that counts as reached")


class Settings(Section):
    """The Stackelberg experiment: meta-learned against trained from scratch against RL squared, over observation noise.

    Nothing here is known to be the paper's.
    """

    game: Game = Field(default_factory=Game)
    principal: PrincipalSettings = Field(default_factory=PrincipalSettings)
    scratch: Scratch = Field(default_factory=Scratch)
    training: Training = Field(default_factory=Training)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    response_noises: Annotated[tuple[Annotated[Number, Field(ge=0, le=1)], ...], AfterValidator(each_once)] = Field(
        (0.0, 0.2, 0.5), description="values of game.response_noise to compare"
    )
    seeds: Whole = Field(5, ge=1, description="training seeds of each learned method and noise")

    @model_validator(mode="after")
    def _noises_are_those_to_compare(self) -> Settings:
        if self.game.response_noise != Game().response_noise:
            raise ValueError(
                "`game.response_noise` must not be set: the experiment compares those in `response_noises`, got "
                f"{self.game.response_noise:g}"
            )
        return self

    def with_noise(self, response_noise: float) -> Settings:
        """The same with this observation noise."""
        game = self.game.model_copy(update={"response_noise": response_noise})
        return self.model_copy(update={"game": game})


SCALES: dict[Scale, dict[str, Any]] = {
    "smoke": {
        "training": {"iterations": 3, "tasks": 4},
        "principal": {"hidden_size": 8, "resolution": 6, "fine_resolution": 8},
        "scratch": {"sharpness": [8.0], "payoff_scale": [3.0]},
        "evaluation": {"k": [0, 1, 2], "tasks": 5, "trials": 1, "validation_tasks": 3},
        "response_noises": [0.0, 0.5],
        "seeds": 2,
    },
    "laptop": {},
    "full": {
        "training": {"iterations": 4000, "tasks": 64, "trials": 4},
        "evaluation": {"tasks": 400, "trials": 8, "validation_tasks": 200},
        "response_noises": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        "seeds": 20,
    },
}


def load_settings(
    config: Path | None = None, scale: Scale = "laptop", overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Defaults, then the scale, then a config file, then dotted overrides.

    Raises:
        InputError: With one sentence for the first thing that is wrong.
    """
    layers: list[Layer] = [(f"--scale {scale}", SCALES[scale]), (str(config), read_yaml(config) if config else {})]
    layers += [(f"--set {key}", nested(tuple(key.split(".")), value)) for key, value in (overrides or {}).items()]
    settings: dict[str, Any] = {}
    for _, layer in layers:
        settings = merge(settings, layer)
    try:
        return Settings.model_validate(settings)
    except ValidationError as error:
        raise InputError(sentence(Settings, error, layers)) from None
