"""What a trained principal is measured against: fixed rules and privileged oracles. A new one is a line in BASELINES.

Paths, not functions: `mermaide baselines` lists them without importing Torch. The learned variants are presets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, TypeAlias

from mermaide_ray.registry import lookup

if TYPE_CHECKING:
    from mermaide_ray.agent_settings import Split
    from mermaide_ray.agents.distribution import Tasks
    from mermaide_ray.experiment import Experiment
    from mermaide_ray.lockstep import Principal

Build: TypeAlias = "Callable[[Experiment, Split, Tasks, int], Principal]"
"""(experiment, split, tasks, episodes) -> the principal that plays `episodes` episodes of each of these tasks."""


@dataclass(frozen=True)
class Baseline:
    """A registered baseline.

    Attributes:
        path: Where its builder is.
        description: One line for `mermaide baselines`.
        privileged: Whether it sees what no principal can see (the agent's estimates, its next arm, or each single
            task's best rule): a reference to compare with, not a method.
        plans: Whether it plans on imagined agents. It is scored where a sweep names it: that takes a while, needs an
            episode with the agent, and not all agents can be imagined.
    """

    path: str
    description: str
    privileged: bool = False
    plans: bool = False


BASELINES: dict[str, Baseline] = {
    "never": Baseline("mermaide_ray.baselines.rules:never", "never intervenes"),
    "always": Baseline("mermaide_ray.baselines.rules:always", "intervenes at every pull"),
    "random": Baseline(
        "mermaide_ray.baselines.rules:random", "intervenes with probability p at each pull; p chosen on validation"
    ),
    "first_n": Baseline(
        "mermaide_ray.baselines.rules:first_n", "intervenes at the first n pulls; n chosen on validation"
    ),
    "untrained_planning": Baseline(
        "mermaide_ray.baselines.untrained_planning:untrained_planning",
        "plays an episode as first_n does, then plans on agents imagined from it, as mermaide_learner does, but has "
        "learned nothing (in sweeps whose `baselines` name it)",
        plans=True,
    ),
    "privileged_gap": Baseline(
        "mermaide_ray.baselines.oracles:gap",
        "privileged: sees the agent's estimates; in the first n pulls, intervenes while the target does not lead by m; "
        "m and n chosen on validation",
        privileged=True,
    ),
    "privileged_foresight": Baseline(
        "mermaide_ray.baselines.oracles:foresight",
        "privileged: knows the next arm; intervenes at the first n pulls where it is the target, or where it is not; "
        "which, and n, chosen on validation",
        privileged=True,
    ),
    "oracle": Baseline(
        "mermaide_ray.baselines.oracles:oracle",
        "privileged: for each single task the best rule by the clock, by the agent's estimates, or for when the target "
        "is next; 1 on the normalised scale",
        privileged=True,
    ),
}

SCORED_BESIDE = tuple(name for name, baseline in BASELINES.items() if not baseline.plans)
"""Those that are scored beside every principal, unless a sweep names others."""


def baseline_named(name: str) -> Build:
    """The builder of the baseline registered as `name`, or the user's own at a dotted path `package.module:NAME`."""
    paths = {key: baseline.path for key, baseline in BASELINES.items()}
    path = name if ":" in name else lookup(name, paths, str, "baseline")
    return lookup(path, {}, FunctionType, "baseline")
