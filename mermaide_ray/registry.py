"""Names that users write: registered ones, or a dotted path to their own code outside this package."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mermaide_ray.errors import InputError

T = TypeVar("T")


def lookup(name: str, registered: Mapping[str, T], kind: type[T], what: str) -> T:
    """The object registered as `name`, or the one that a dotted path `package.module:NAME` names.

    Modules are also looked for in the current folder, so that a file beside the config is enough.

    Raises:
        InputError: Unknown name, nothing there to import, or an object that is no `kind`.
    """
    if ":" not in name:
        if name not in registered:
            known = list(registered)
            raise InputError(
                f"{what} must be one of {', '.join(known)}, or a dotted path `package.module:NAME`, "
                f"got {name!r}{near(name, known)}"
            )
        return registered[name]
    found = _import_dotted(name, what)
    if not isinstance(found, kind):
        wanted = "a class" if kind is type else f"of type {kind.__name__}"
        raise InputError(f"{what} {name!r} must be {wanted}, got {type(found).__name__}")
    return found


def near(wrong: str, known: list[str]) -> str:
    """' (did you mean …?)', or nothing."""
    matches = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _import_dotted(path: str, what: str) -> Any:
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise InputError(f"{what} must be a dotted path `package.module:NAME`, got {path!r}")
    if module_name not in sys.modules and module_name.partition(".")[0] != __name__.partition(".")[0]:
        # A config that somebody else wrote runs code from here on: say which.
        print(f"importing {path} ({what})", file=sys.stderr)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code may raise anything while it is imported
        raise InputError(
            f"{what} {path!r} must be importable from {here} or as an installed package, "
            f"got {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise InputError(
            f"{what} {path!r} must exist, but {module_name!r} has no {attribute!r}{near(attribute, dir(module))}"
        )
    return getattr(module, attribute)
