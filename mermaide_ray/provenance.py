"""Where and from what results came: code, versions, machine, command, without anybody's secrets."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mermaide_ray
from mermaide_ray import __version__
from mermaide_ray.errors import InputError


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"mermaide_ray": __version__, "python": platform.python_version()}
    for package in ("ray", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def provenance() -> dict[str, Any]:
    """Where and from what a run was started."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    # Installed into somebody's project, the package lies in a repository that is not its own.
    is_ours = git("rev-parse", "--show-toplevel") == str(here.parent)
    changes = git("status", "--porcelain") if is_ours else None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [without_credentials(argument) for argument in sys.argv],
        "commit": git("rev-parse", "HEAD") if is_ours else None,
        "sources": sources_digest(),
        "uncommitted_changes": None if changes is None else bool(changes),
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
    }


def gone_on(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of provenance, and beneath `continued` this process, if it goes on with other code or versions."""
    now, before = provenance(), latest(record)
    if all(before.get(key) == now[key] for key in ("sources", "versions")):
        return dict(record)
    return {**record, "continued": [*record.get("continued", []), now]}


def latest(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a record of provenance, what was last begun or gone on with."""
    found: Mapping[str, Any] = (record.get("continued") or [record])[-1]
    return found


def sources_digest() -> str:
    """What tells this package's code, presets included, from any other: where no .git came along there is no commit."""
    digest, root = hashlib.sha256(), Path(str(mermaide_ray.__file__)).resolve().parent
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        if path.is_file() and not path.name.startswith("."):  # an editor's lock leads nowhere
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def without_credentials(text: str) -> str:
    """A text with `user:password@` and the query of each address in it left out: provenance is shared."""
    return re.sub(
        r"(\w+://)([^/\s@:]*:(?!\d+(?:[/?#]|$))[^\s@?#]*@)?([^\s?]*)(\?\S*)?", lambda found: found[1] + found[3], text
    )


def refuse_secrets(uri: str) -> None:
    """Refuses a URI with credentials in it: it would be in logs, results and process lists.

    Raises:
        InputError: It has some.
    """
    address, _, query = uri.partition("?")
    if without_credentials(address) != address or re.search(r"(access|secret)_key|token", query):
        raise InputError(
            f"the place of results must hold no secret, got one around {without_credentials(uri)} (a role of the "
            "machines, or AWS_PROFILE, keeps it out of logs and process lists)"
        )
