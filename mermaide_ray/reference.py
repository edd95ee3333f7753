"""Every key of settings and sweeps as Markdown tables (docs/config.md), from the same schema that checks them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mermaide_ray.agents import ALL_FAMILIES
from mermaide_ray.config_file import one_line
from mermaide_ray.sweep.file import schema

_OPENING = """\
# Every setting

Written by `mermaide schema --markdown`. Settings stand in the YAML file that `mermaide train --config` takes, in
`settings:` of a sweep, or one by one on the command line (`--set training.meta_lr=1e-3`). A file holds only what
differs from the defaults; `mermaide config` prints all of them as a run would have them. [paper] marks what MERMAIDE
(arXiv 2304.04668) reports; all else is this project's own choice.
"""
_FAMILIES = """
## Hyperparameters of the agent families

What `agents.families.NAME.train` (and `validation`, `test`) gives a range for, within the bounds in which the family is
defined.

| family | hyperparameter | allowed | meaning |
|---|---|---|---|
"""
_SWEEP = """
## A sweep file

What `mermaide sweep` takes: one question in one file.
"""
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "section",
    "null": "`null`",
}
_SCALARS = {"whole number", "number", "true or false", "text"}
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
# What the user names: a family, a searched setting, a condition.
_PLACEHOLDER = "NAME"
# Settings have tables of their own; scales are sweeps again.
_TOLD_ELSEWHERE = ("Experiment", "PartialSweep")

Schema = Mapping[str, Any]


def markdown() -> str:
    """The whole reference."""
    sweep = schema()
    definitions = sweep["$defs"]
    parts = [_OPENING, "\n## Settings\n", *_tables(definitions["Experiment"], definitions, ""), _FAMILIES]
    for name, family in ALL_FAMILIES.items():
        for key, bounds in family.hyperparameters.items():
            parts.append(_row(f"`{name}`", f"`{key}`", f"{bounds.low:g} to {bounds.high:g}", bounds.meaning))
    return "".join([*parts, _SWEEP, *_tables(sweep, definitions, "")])


def _tables(section: Schema, definitions: Schema, prefix: str) -> Iterator[str]:
    """The table of a section, then those of the sections in it."""
    inner, rows = [], []
    for key, field in section["properties"].items():
        name, below = _section_in(field), f"{prefix}{key}"
        if name is not None and name not in _TOLD_ELSEWHERE:
            inner.append((definitions[name], f"{below}.{_PLACEHOLDER}" if "additionalProperties" in field else below))
        if "$ref" not in field or name in _TOLD_ELSEWHERE:
            default = f"`{one_line(field['default'])}`" if "default" in field else ""
            if key in section.get("required", ()):
                default = "must be given"
            rows.append(_row(f"`{below}`", default, _allowed(field), field["description"]))
    if rows:
        yield "\n| key | default | allowed | meaning |\n|---|---|---|---|\n"
        yield from rows
    for definition, path in inner:
        yield f"\n### `{path}`\n\n{' '.join(definition['description'].split())}\n"
        yield from _tables(definition, definitions, f"{path}.")


def _section_in(field: Schema) -> str | None:
    """The name of the section that a field holds, itself, as an alternative to none, or by names of the user's."""
    for part in (field, field.get("additionalProperties"), *field.get("anyOf", ())):
        if isinstance(part, Mapping) and "$ref" in part:
            return str(part["$ref"]).rpartition("/")[2]
    return None


def _allowed(field: Schema) -> str:
    """What values a field takes, in words."""
    if "anyOf" in field:
        kinds = [_allowed(part) for part in field["anyOf"]]
        return "scalar" + " or `null`" * ("`null`" in kinds) if set(kinds) >= _SCALARS else " or ".join(kinds)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type", "object")
    if kind == "array":
        if "prefixItems" in field:
            first = _allowed(field["prefixItems"][0])
            return "[low, high]" if first in _SCALARS else f"pair of {first}"
        return f"list of {_allowed(field['items'])}"
    bounds = [f"{sign} {field[key]}" for key, sign in _SIGNS.items() if key in field]
    return f"{_KINDS[kind]} {', '.join(bounds)}".strip()


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
