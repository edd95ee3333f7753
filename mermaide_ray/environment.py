"""The game as the user writes it: the section `environment` of an experiment, and what follows from it.

Imports neither Ray nor Torch. The games themselves are played in `lockstep.py` and `envs/`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mermaide_ray.config_file import one_line
from mermaide_ray.points import Space
from mermaide_ray.settings import Number, Section, Switch, Whole

MoreDice = tuple[Literal["uniform", "normal"], tuple[int, ...]]
"""Law and shape per episode of luck that only some settings of the game need."""


class Sight(Section):
    """What the principal sees of the agent's pulls: each of them, as it was, before its next intervention."""

    noise: Number = Field(0.0, ge=0, le=1, description="probability that a pull seen shows a uniform arm in its place")
    delay: Whole = Field(0, ge=0, description="pulls by which each is seen late")
    share: Number = Field(
        1.0, gt=0, le=1, description="probability that a pull is seen; of the others the principal sees that it is not"
    )

    @property
    def is_lossy(self) -> bool:
        """Whether what is seen of a pull is a matter of luck."""
        return self.noise > 0 or self.share < 1


class Changes(Section):
    """What changes within an episode: nothing, unless set otherwise; base means by episode, the target by task."""

    base_drift: Number = Field(
        0.0,
        ge=0,
        le=1e4,
        description="standard deviation per pull of a random walk of each base mean, reflected into agents.base_reward",
    )
    base_switches: Whole = Field(
        0, ge=0, description="times per episode that all base means are redrawn, at random pulls"
    )
    base_switches_at: tuple[Whole, ...] = Field((), description="pulls at which they are, in place of random ones")
    target_moves: Whole = Field(
        0, ge=0, description="times that the target moves to another arm, at pulls drawn per task"
    )
    target_moves_at: tuple[Whole, ...] = Field((), description="pulls at which it does, in place of random ones")
    announced: Switch = Field(
        True,
        description="whether the principal is told at once where the target moves; if not, it is shown whether the "
        "last pull was on the target (what it was rewarded for)",
    )

    @property
    def num_switches(self) -> int:
        """Times per episode that all base means are redrawn."""
        return len(self.base_switches_at) or self.base_switches

    @property
    def of_base(self) -> bool:
        """Whether base means change."""
        return self.base_drift > 0 or self.num_switches > 0

    @property
    def of_target(self) -> bool:
        """Whether the target moves."""
        return bool(self.target_moves_at) or self.target_moves > 0

    def check(self, horizon: int) -> None:
        """Raises a ValueError on what can't be in an episode of `horizon` pulls."""
        for key in ("base_switches", "target_moves"):
            count, at, name = getattr(self, key), getattr(self, f"{key}_at"), f"environment.changes.{key}"
            if count and at:
                raise ValueError(f"`{name}` must be 0 where {key}_at says when, got {count}")
            if count >= horizon:
                raise ValueError(f"`{name}` must be < environment.horizon ({horizon}), got {count}")
            if at and (list(at) != sorted(set(at)) or at[0] < 1 or at[-1] >= horizon):
                raise ValueError(
                    f"`{name}_at` must name pulls from 1 to {horizon - 1}, each once and in order, got {one_line(at)}"
                )
        if not self.announced and not self.of_target:
            raise ValueError("`environment.changes.announced` must be true where the target never moves, got false")


class Environment(Section):
    """The game (one principal, one agent, `horizon` pulls)."""

    game: Literal["arms", "continuous"] = Field(
        "arms",
        description="arms: the agent pulls one of num_arms arms; continuous: it chooses a point of [0, 1]^dimensions, "
        "whose base reward is smooth",
    )
    num_arms: Whole = Field(10, ge=2, le=1000, description="arms of the agent's bandit, |A| [paper]")
    dimensions: Whole = Field(1, ge=1, le=2, description="continuous only: coordinates of a point, d")
    base_length: Number = Field(
        0.15, ge=0.03, le=10, description="continuous only: length scale of the base reward; a coordinate spans 1"
    )
    target_width: Number = Field(
        0.1,
        ge=1e-3,
        le=10,
        description="continuous only: w, how far the target reaches; nearness is exp(-distance^2 / 2 w^2), a pull "
        "within w a success",
    )
    horizon: Whole = Field(100, ge=1, description="pulls per episode, T")
    reward_noise: Number = Field(
        0.05, ge=0, le=1e4, description="standard deviation of the noise on the agent's reward, sigma"
    )
    intervention: Literal["signed", "bonus", "arm", "graded"] = Field(
        "signed",
        description="signed: +delta on the target, -delta elsewhere; bonus: +delta on the target only; "
        "arm: choose the arm that gets +delta; graded: signed, in several sizes (continuous: in between by nearness)",
    )
    delta: Number = Field(1.0, gt=0, le=1e4, description="size of the incentive, in units of the agent's reward")
    graded_sizes: tuple[Number, ...] = Field(
        (0.25, 0.5, 1.0), min_length=1, description="graded only: sizes of the incentive as multiples of delta"
    )
    cost: Literal["per_intervention", "paid"] = Field(
        "per_intervention",
        description="per_intervention: 1 for each intervention (graded: its size); paid: only for incentive paid out",
    )
    cost_weight: Number = Field(
        0.3,
        ge=0,
        le=1e4,
        description="alpha: principal reward = 1[arm = target] (continuous: nearness) - alpha * cost",
    )
    arm_labels: Literal["relative", "absolute"] = Field(
        "relative",
        description="how the principal's observation names arms: relative counts from the target (arm - target mod "
        "|A|), an exact symmetry of the game; absolute adds the target as an input",
    )
    sight: Sight = Field(default_factory=Sight)
    changes: Changes = Field(default_factory=Changes)

    @field_validator("graded_sizes")
    @classmethod
    def _sizes_positive(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if min(sizes) <= 0 or max(sizes) > 10:
            raise ValueError(f"must hold sizes > 0 and <= 10, got {one_line(sizes)}")
        return sizes

    @model_validator(mode="after")
    def _sections_fit(self) -> Environment:
        self.changes.check(self.horizon)
        if not self.changes.announced and self.sight != Sight():
            raise ValueError(
                "`environment.changes.announced` must be true where environment.sight is partial (being shown what it "
                "is rewarded for would tell the principal what it can't see), got false"
            )
        if self.sight.delay >= self.horizon:
            raise ValueError(
                f"`environment.sight.delay` must be < environment.horizon ({self.horizon}), got {self.sight.delay}"
            )
        return self

    @model_validator(mode="after")
    def _game_has_its_interventions(self) -> Environment:
        if self.game == "continuous" and self.intervention == "arm":
            raise ValueError(
                "`environment.intervention` must be signed, bonus or graded where `environment.game` is continuous, "
                "got 'arm'"
            )
        if self.game == "continuous" and (self.changes.of_base or self.changes.of_target):
            raise ValueError("`environment.changes` must be none where `environment.game` is continuous, got some")
        return self

    @property
    def space(self) -> Space | None:
        """Where the agent's points lie; None where it pulls arms."""
        return Space(self.dimensions) if self.game == "continuous" else None

    @property
    def num_actions(self) -> int:
        """Actions open to the agent: arms, or points on the lattice."""
        return self.num_arms if self.space is None else self.space.size

    @property
    def num_candidates(self) -> int:
        """Actions that an agent tells apart when it breaks ties: arms, or the points among which it chooses."""
        return self.num_arms if self.space is None else self.space.num_candidates

    @property
    def num_interventions(self) -> int:
        """Actions open to the principal, "none" (0) included."""
        return {"signed": 2, "bonus": 2, "arm": self.num_arms + 1, "graded": len(self.graded_sizes) + 1}[
            self.intervention
        ]

    @property
    def sizes(self) -> tuple[float, ...]:
        """The size of each intervention but "none", in units of delta."""
        return self.graded_sizes if self.intervention == "graded" else (1.0,) * (self.num_interventions - 1)

    @property
    def incentives(self) -> tuple[tuple[float, float], ...]:
        """What each intervention adds to the agent's reward, on a hit (the target, or the chosen arm) and on a miss."""
        penalty = -1.0 if self.intervention in ("signed", "graded") else 0.0
        return ((0.0, 0.0), *((self.delta * size, self.delta * size * penalty) for size in self.sizes))

    @property
    def num_symbols(self) -> int:
        """What a pull may look like to the principal: an arm or, where not all pulls are seen, nothing."""
        return self.num_actions + (self.sight.share < 1)

    @property
    def num_blank_symbols(self) -> int:
        """How many symbols are no arms: one where a pull may look like nothing, else none."""
        return self.num_symbols - self.num_actions

    @property
    def more_dice(self) -> dict[str, MoreDice]:
        """The luck that these settings need beyond what every game does, by name: law and shape, per episode."""
        changes, dice = self.changes, dict[str, MoreDice]()
        if self.sight.is_lossy:
            dice["sight"] = ("uniform", (self.horizon, 2))
        if changes.base_drift:
            dice["drift"] = ("normal", (self.horizon, self.num_arms))
        if changes.num_switches:
            dice["switched_means"] = ("uniform", (changes.num_switches, self.num_arms))
        if changes.base_switches:
            dice["switch_times"] = ("uniform", (self.horizon - 1,))
        return dice

    @property
    def num_news(self) -> int:
        """Inputs that tell the principal of a moving target: where the old one is now, or whether the last pull hit."""
        if not self.changes.of_target:
            return 0
        if not self.changes.announced:
            return 1
        return self.num_arms if self.arm_labels == "relative" else 0
