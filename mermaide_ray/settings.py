"""What a section of settings is: strict types, and one sentence for what is wrong. Knows no particular setting."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Strict, ValidationError
from pydantic_core import PydanticKnownError

from mermaide_ray.config_file import one_line
from mermaide_ray.registry import near

Layer = tuple[str, Mapping[str, Any]]
"""Where settings come from, as the user knows it, and the settings."""


class Section(BaseModel):
    """A group of settings: immutable; unknown keys, infinities and NaN refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticKnownError("int_type")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticKnownError("float_type")
    return value


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"must be [low, high], got {one_line(value)}")
    return value


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"must be [low, high] with low <= high, got {one_line(pair)}")
    return pair


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuses a list that names something twice, or nothing."""
    if len(set(values)) < len(values) or not values:
        raise ValueError(f"must name each value once, at least one, got {one_line(values)}")
    return values


# Pydantic alone takes "5" and true for 5: most likely a mistake, so both are refused. 2e7 is a whole number.
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
Switch = Annotated[bool, Strict()]
Range = Annotated[tuple[Number, Number], BeforeValidator(_pair), AfterValidator(_ordered)]

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a section (keys with values)",
    "model_type": "a section (keys with values)",
}


def sentence(model: type[Section], error: ValidationError, layers: Sequence[Layer]) -> str:
    """One sentence on the first thing wrong: what was required, what was given, and where to change it."""
    errors = error.errors()
    # Unknown keys first: a misspelt key is the commonest mistake, and may be what makes another one missing.
    first = min(errors, key=lambda error: error["type"] not in ("extra_forbidden", "invalid_key"))
    path, kind = _without_markers(tuple(str(part) for part in first["loc"]), layers), first["type"]
    key, where = ".".join(path), source(path, layers)
    if kind in ("extra_forbidden", "invalid_key"):
        *section, wrong = path
        known = _keys_of(model, section)
        place = f"section `{'.'.join(section)}`" if section else "the top level"
        return f"{place} has no key {wrong!r}{near(wrong, known)}; it has {', '.join(known)} ({where})"
    if kind == "missing":
        return f"`{key}` must be given, got nothing ({where})"
    message = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{message} ({where})" if message.startswith("`") else f"`{key}` {message} ({where})"
    if kind == "too_short":
        required = f"at least {first['ctx']['min_length']} long"
    elif kind == "too_long":
        required = f"at most {first['ctx']['max_length']} long"
    else:
        required = _KINDS.get(kind, message.removeprefix("Input should be "))
        if "[key]" in first["loc"]:
            required += " (in quotes)"
    return f"`{key}` must be {required}, got {textwrap.shorten(one_line(first['input']), 80)} ({where})"


def _without_markers(location: tuple[str, ...], layers: Sequence[Layer]) -> tuple[str, ...]:
    """Where an error is, in the user's own keys.

    Pydantic names the branch of a union, and that it is a key which is wrong, by parts with brackets; so may a key that
    was given, which is told by its being there.
    """
    path: tuple[str, ...] = ()
    for part in location:
        here = (*path, part)
        if "[" not in part or any(_reached(here, given)[0] == len(here) for _, given in layers):
            path = here
    return path


def _keys_of(section: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys of the section at `path` below `section`."""
    for part in path:
        # A part that is no field is the key of a mapping of sections: its section is known from the step before.
        if part in section.model_fields:
            section = next(_sections_in(section.model_fields[part].annotation), section)
    return list(section.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's type holds, within a mapping or an optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)


def source(path: tuple[str, ...], layers: Sequence[Layer]) -> str:
    """Where to change the setting at `path`: the last layer that gives it.

    For an error between settings (`path` is a section), all layers that set something there.
    """
    reached = [(*_reached(path, settings), name) for name, settings in layers if settings]
    if not reached:  # nothing at all was given
        return layers[-1][0]
    deepest = max(depth for depth, _, _ in reached)
    names = [name for depth, _, name in reached if depth == deepest]
    is_section = next(section for depth, section, _ in reversed(reached) if depth == deepest)
    return ", ".join(reversed(names)) if is_section else names[-1]


def _reached(path: tuple[str, ...], value: Any) -> tuple[int, bool]:
    """How many parts of `path` the settings have, and whether there is a section where they end."""
    for depth, part in enumerate(path):
        if not isinstance(value, Mapping) or part not in value:
            return depth, isinstance(value, Mapping)
        value = value[part]
    return len(path), isinstance(value, Mapping)
