"""What reports call measures, methods and conditions. Knows no data."""

from __future__ import annotations

from mermaide_ray.baselines import BASELINES

SCORE = "normalised_score"
# With fewer training seeds, 95% intervals cover less than they say.
SEEDS_FOR_AN_INTERVAL = 5
SPLIT_TITLES = {
    "train": "training agents",
    "validation": "in distribution (validation agents)",
    "test": "out of distribution (test agents)",
}
# Losses of predicting the next pull without having learned anything before the episode.
FLOORS = {"wm_nll_uniform": "uniform prediction", "wm_nll_frequency": "running frequencies"}
_MEASURE_NAMES = {SCORE: "normalised score", "wm_nll_after": "world-model loss after adaptation"}


def is_trained(method: str) -> bool:
    """Whether a method was trained (and so has training seeds), rather than a fixed rule or an oracle."""
    return method not in BASELINES and ":" not in method


def is_privileged(method: str) -> bool:
    """Whether a method sees what no principal can see. Of a rule of one's own (a dotted path) the name tells."""
    if method in BASELINES:
        return BASELINES[method].privileged
    return ":" in method and any(word in method.lower() for word in ("oracle", "privileged"))


def label(method: str) -> str:
    """The method's name as tables and figures print it."""
    return f"{method} (privileged)" if is_privileged(method) and "privileged" not in method.lower() else method


def measure_name(measure: str) -> str:
    """A measure as sentences and figures call it."""
    return _MEASURE_NAMES.get(measure, measure.replace("_", " "))


def condition_title(condition: str, split: str) -> str:
    """What a condition is called in headings: by whose agents it has, if it is named after them."""
    return SPLIT_TITLES.get(condition, condition) if condition == split else condition
