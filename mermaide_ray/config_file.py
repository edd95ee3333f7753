"""YAML in and out: reading a config strictly, laying one over another, and writing one that explains itself.

Knows no particular setting, and imports neither Ray nor Torch.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import textwrap
from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mermaide_ray.errors import InputError

LINE = 120


class ConfigLoader(yaml.SafeLoader):
    """Safe YAML, but 1e-3 is a number (YAML 1.1 wants 1.0e-3), and a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See base."""
        named = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in named]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                again = named[position].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", again)
        return super().construct_mapping(node, deep)


class _ConfigDumper(yaml.SafeDumper):
    """What `ConfigLoader` reads back: text that it would take for a number goes in quotes."""


for _kind in (ConfigLoader, _ConfigDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        InputError: Not a readable file, not UTF-8, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the config must be a readable file, got {path} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"the config must be UTF-8 text, got byte {error.object[error.start]:#04x} at offset {error.start} ({path})"
        ) from None
    return parse_sections(text, str(path))


def parse_sections(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML text says; an empty text is an empty mapping.

    Raises:
        InputError: Not YAML, or not a mapping.
    """
    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"the config must be YAML, got {_yaml_problem(error)} ({where})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"the config must be a mapping of sections, got a {type(content).__name__} ({where})")
    return content


def load_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, ConfigLoader)


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML that `load_yaml` reads back, keys in their order."""
    text: str = yaml.dump(dict(settings), Dumper=_ConfigDumper, sort_keys=False)
    return text


def parse_override(text: str) -> tuple[str, Any]:
    """`training.meta_lr=1e-3` as (dotted key, value); the value is read as YAML."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set must be KEY=VALUE (such as training.meta_lr=0.001), got {text!r}")
    try:
        return key, load_yaml(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {key} must have a YAML value, got {value!r}: {_yaml_problem(error)}") from None


def merge(base: Mapping[str, Any], top: Mapping[str, Any], whole: frozenset[str] = frozenset()) -> dict[str, Any]:
    """`top` laid over `base`, mapping by mapping; the keys in `whole` are replaced rather than merged."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and key not in whole:
            merged[key] = merge(below, value, whole)
        else:
            merged[key] = value
    return merged


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """`nested(("a", "b"), 1)` is `{"a": {"b": 1}}`."""
    for key in reversed(path):
        value = {key: value}
    result: dict[str, Any] = value
    return result


def flat(settings: Mapping[str, Any], whole: Container[str] = (), prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each setting; mappings at keys called as in `whole` are values."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and key not in whole:
            yield from flat(value, whole, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole where two would be the same."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def explained_yaml(settings: BaseModel) -> str:
    """Settings as YAML that loads back to the same settings, with the meaning and bounds of each in a comment."""
    return "\n".join([*_comment(_summary(settings), ""), *_explained(settings, "")]) + "\n"


def _explained(settings: BaseModel, indent: str) -> Iterator[str]:
    plain = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if not indent and isinstance(value, BaseModel):
            yield ""
        yield from _comment((field.description or _summary(value)) + _bounds(field), indent)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _explained(value, indent + "  ")
        elif isinstance(value, Mapping) and value and all(isinstance(inner, BaseModel) for inner in value.values()):
            yield f"{indent}{name}:"
            for key, inner in value.items():
                yield f"{indent}  {one_line(key)}:"
                yield from _explained(inner, indent + "    ")
        else:
            yield f"{indent}{name}: {one_line(plain[name])}"


def _summary(value: Any) -> str:
    """What an object's docstring says, on one line."""
    return " ".join((inspect.getdoc(value) or "").split())


def _bounds(field: FieldInfo) -> str:
    """' (>= 1)' or ' (one of a, b)', as far as the field's type says so."""
    if get_origin(field.annotation) is Literal:
        return f" (one of {', '.join(map(str, get_args(field.annotation)))})"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(limit, key)}"
        for key, sign in signs.items()
        for limit in field.metadata
        if hasattr(limit, key)
    ]
    return f" ({', '.join(bounds)})" if bounds else ""


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(text, LINE, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def one_line(value: Any) -> str:
    """A value as YAML on one line; plain words go without quotes where they stay words."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{one_line(key)}: {one_line(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(one_line, value))}]"
    if isinstance(value, float):
        # YAML 1.1 wants a point before an exponent, and one before nan and inf.
        text = repr(value) if math.isfinite(value) else repr(value).replace("inf", ".inf").replace("nan", ".nan")
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, str) and value.isidentifier() and load_yaml(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _yaml_problem(error: yaml.YAMLError) -> str:
    """One line: what is wrong, and in which line of the file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())
