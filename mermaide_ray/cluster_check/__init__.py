"""What is wrong with a cluster's YAML, found before a machine is started: Ray's own validation, and what it misses.

Reads files only: starts neither Ray nor a machine, and asks no cloud. Files for `ray up` (`provider:`) and for KubeRay
(`apiVersion: ray.io/v1`) are understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from mermaide_ray.cluster_check.finding import PLACEHOLDER, Finding
from mermaide_ray.config_file import ConfigLoader
from mermaide_ray.errors import InputError

__all__ = ["PLACEHOLDER", "Finding", "check"]

_SECRETS = re.compile(
    r"-----BEGIN|\bAKIA[0-9A-Z]{16}\b|RAY_AUTH_TOKEN=[^$\s]|(?i:aws_secret_access_key|password|api_key)\s*[=:]\s*[^$\s]"
)


def check(path: Path) -> list[Finding]:
    """Everything that is wrong with a cluster's file.

    Args:
        path: YAML for `ray up`, or for KubeRay.

    Raises:
        InputError: It can't be read as either.
    """
    from mermaide_ray.cluster_check.kuberay import kuberay_findings
    from mermaide_ray.cluster_check.launcher import cut_commands, launcher_findings

    text, documents = _read(path)
    first = documents[0]
    findings = [*_placeholders(documents), *_secrets(documents)]
    if "provider" in first:
        more: Iterator[Finding] = chain(cut_commands(text), launcher_findings(first, _root_of(path)))
    elif str(first.get("apiVersion", "")).startswith("ray.io/"):
        more = kuberay_findings(documents, _root_of(path))
    else:
        raise InputError(
            f"a cluster's file must have `provider` (ray up) or `apiVersion: ray.io/v1` (KubeRay), got neither ({path})"
        )
    try:
        for finding in more:
            findings.append(finding)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # text where a section should be, say
        findings.append(_misshapen(error, documents))
    return list(dict.fromkeys(findings))


def _misshapen(error: Exception, documents: list[dict[str, Any]]) -> Finding:
    """Where a file isn't built as the checks take it to be, as far as the exception lets on."""
    where, got = "the file", str(error)
    if isinstance(error, KeyError):
        got = f"no {error}"
    elif isinstance(error, AttributeError):
        got = repr(error.obj)
        places = [place for document in documents for place, value in _leaves(document) if value is error.obj]
        where = places[0] if len(places) == 1 else where
    return Finding(where, f"must have sections, lists and texts where the files in cluster/ have them, got {got}")


def _read(path: Path) -> tuple[str, list[dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
        documents = list(yaml.load_all(text, ConfigLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"a cluster's file must be readable text, got {path} ({error})") from None
    except yaml.YAMLError as error:
        raise InputError(f"a cluster's file must be YAML, got {' '.join(str(error).split())} ({path})") from None
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise InputError(f"a cluster's file must be a mapping, got something else ({path})")
    return text, documents


def _root_of(path: Path) -> Path:
    """Where `constraints.txt` lies: the folder from which the cluster is started."""
    here = path.resolve().parent
    return next((folder for folder in (here, *here.parents) if (folder / "constraints.txt").is_file()), Path.cwd())


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar below a value, keys of mappings included, with its dotted path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{where}[{place}]")
    else:
        yield where, value


def _placeholders(documents: list[dict[str, Any]]) -> Iterator[Finding]:
    for document in documents:
        for where, value in _leaves(document):
            if PLACEHOLDER in str(value):
                yield Finding(where, f"must be filled in, got the placeholder {value!r} (the comment beside says how)")


def _secrets(documents: list[dict[str, Any]]) -> Iterator[Finding]:
    for document in documents:
        for where, value in _leaves(document):
            if _SECRETS.search(str(value)) or (where.rpartition(".")[2] == "RAY_AUTH_TOKEN" and value):
                yield Finding(
                    where, "must hold no secret: it would be in version control and in logs; name a file or a role"
                )
