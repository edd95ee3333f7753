"""A sweep's YAML file: read with what it extends and at one scale, validated before anything starts, and written.

Imports neither Ray nor Torch, so that every mistake is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from mermaide_ray.config_file import dump_yaml, merge, one_line, parse_sections, read_yaml
from mermaide_ray.errors import InputError
from mermaide_ray.experiment import Experiment, with_setting
from mermaide_ray.registry import near
from mermaide_ray.settings import Section, sentence
from mermaide_ray.sweep.sections import Claim, Sweep

Scale = Literal["smoke", "laptop", "full"]
SCALES: tuple[Scale, ...] = get_args(Scale)
DEFAULT_SCALE: Scale = "laptop"
SWEEP_FILE = "sweep.yaml"

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_REPLACED_WHOLE = frozenset({"families", "grid", "choice"})


class _Claimed(Section):
    answer: Claim


def load_sweep(path: Path, scale: Scale | None = None, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """A sweep file with what it extends, at one scale.

    Args:
        path: The YAML file.
        scale: One of its `scales`; `laptop` if it has that, else the file as it stands.
        overrides: Dotted keys of *settings* (`training.env_steps`) and their values, laid over all. With any, `rows`
            no longer counts.

    Raises:
        InputError: With one sentence for the first thing that is wrong.
    """
    given, scales = _with_scales(path)
    if scale is not None and scale not in scales:
        raise InputError(
            f"--scale must be one that the sweep has ({', '.join(scales) or 'none'}), got {scale!r} ({path})"
        )
    given = _laid_over(given, scales.get(scale or DEFAULT_SCALE, {}))
    if overrides:
        given.pop("rows", None)  # those of the file as it stands; what a sweep must yield is planned anyway
    for dotted, value in (overrides or {}).items():
        settings = given.get("settings") or {}
        if isinstance(settings, Mapping):  # else validation says so
            given["settings"] = with_setting(settings, dotted, value)
    given.setdefault("name", path.stem)
    return validate_sweep(given, str(path))


def default_scale(path: Path) -> Scale | None:
    """The scale at which a sweep file runs if none is asked for; None where it has no such."""
    return DEFAULT_SCALE if DEFAULT_SCALE in _with_scales(path)[1] else None


def _with_scales(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A sweep file with what it extends, and its scales."""
    given = _extended(path, ())
    scales = given.pop("scales", None) or {}
    if not isinstance(scales, dict) or not all(isinstance(part, dict) for part in scales.values()):
        raise InputError(f"`scales` must map {', '.join(SCALES)} to partial sweeps, got {one_line(scales)} ({path})")
    for name in scales:
        if name not in SCALES:
            raise InputError(
                f"`scales` must be among {', '.join(SCALES)}, got {name!r}{near(str(name), list(SCALES))} ({path})"
            )
    return given, scales


def read_sweep(text: str, where: str) -> Sweep:
    """A resolved sweep, as `dump_sweep` wrote it."""
    return validate_sweep(parse_sections(text, where), where)


def read_claim(section: Any, where: str) -> Claim:
    """The `answer` section of a sweep alone: what else is in the file may be of an older version."""
    given = {"answer": section}
    try:
        return _Claimed.model_validate(given).answer
    except ValidationError as error:
        raise InputError(sentence(_Claimed, error, [(where, given)])) from None


def dump_sweep(sweep: Sweep) -> str:
    """The resolved sweep as YAML, nothing inherited and no scales."""
    return dump_yaml(sweep.model_dump(mode="json", exclude_unset=True))


def validate_sweep(settings: Mapping[str, Any], where: str) -> Sweep:
    """A validated sweep, or one sentence (an InputError) that says what is wrong and where."""
    try:
        return Sweep.model_validate(settings)
    except ValidationError as error:
        raise InputError(sentence(Sweep, error, [(where, settings)])) from None


def schema() -> dict[str, Any]:
    """JSON Schema of a sweep file, for editors."""
    whole = Sweep.model_json_schema()
    experiment = Experiment.model_json_schema(ref_template="#/$defs/{model}")
    whole["$defs"] |= experiment.pop("$defs")
    whole["$defs"]["Experiment"] = experiment
    properties = whole["properties"]
    properties["settings"] = {"$ref": "#/$defs/Experiment", "description": properties["settings"]["description"]}
    seeds = properties["seeds"]
    default, meaning = seeds.pop("default"), seeds.pop("description")
    number = {"type": "integer", "minimum": 1}
    properties["seeds"] = {"anyOf": [number, seeds], "default": default, "description": meaning}
    properties["extends"] = {"type": "string", "description": "a sweep file that this one is laid over"}
    whole["required"] = []  # `extends` and scales may give what is missing here
    partial = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    properties["scales"] = {
        "type": "object",
        "description": "--scale: partial sweeps laid over the rest",
        "properties": {key: {"$ref": "#/$defs/PartialSweep"} for key in SCALES},
        "additionalProperties": False,
    }
    whole["$defs"]["PartialSweep"] = partial
    standard: dict[str, Any] = _standard(whole)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **standard}


def _standard(schema: Any) -> Any:
    """A schema in which the bounds of optional numbers, too, go by JSON Schema's names (Pydantic leaves its own)."""
    if isinstance(schema, list):
        return [_standard(part) for part in schema]
    if isinstance(schema, dict):
        return {_BOUNDS.get(key, key): _standard(part) for key, part in schema.items()}
    return schema


def _extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    given = read_yaml(path)
    base = given.pop("extends", None)
    if base is None:
        return given
    if not isinstance(base, str):
        raise InputError(f"`extends` must be a path relative to the file, got {one_line(base)} ({path})")
    below = (path.parent / base).resolve()
    if below in (*seen, path.resolve()):
        raise InputError(f"`extends` must not lead back to the file itself, got {base} ({path})")
    return _laid_over(_extended(below, (*seen, path.resolve())), given)


def _laid_over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """A partial sweep over another. Dimensions and conditions are replaced whole; null takes one away."""
    result = merge(base, top, whole=_REPLACED_WHOLE)
    for section in ("search", "conditions"):
        above = top.get(section)
        if isinstance(above, Mapping) and isinstance(result.get(section), Mapping):
            result[section] = {
                key: above.get(key, value)
                for key, value in result[section].items()
                if above.get(key, value) is not None
            }
    above, below = top.get("scales"), base.get("scales")
    if isinstance(above, Mapping) and isinstance(below, Mapping):
        for key, part in above.items():
            if isinstance(part, Mapping) and isinstance(below.get(key), Mapping):
                result["scales"][key] = _laid_over(below[key], part)
    return result
