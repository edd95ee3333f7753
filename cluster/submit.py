"""Runs `mermaide` on a cluster's head: the same subcommands and flags, with Ray's address and the results' place added.

    ray submit cluster/X.yaml cluster/submit.py -- train --set env_runners.num_env_runners=8

`ray submit` joins arguments by spaces, without quotes, and hands them to a shell on the head. What that tears apart is
put together again here; what a shell would take for its own (`$`, `;`, `(`, `{a,b}`) belongs in a config file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

HOME = Path("~/mermaide_ray").expanduser()
# What the YAML that made this cluster says, as Ray leaves it on the head.
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()


def together(arguments: Sequence[str]) -> list[str]:
    """Arguments as they were before spaces tore `--set KEY=VALUE` apart: all up to the next option is the value.

    But for what is a file or folder here: `--set KEY=VALUE FILE`.
    """
    whole: list[str] = []
    in_value = False
    for argument in arguments:
        if argument.startswith("--"):
            in_value = argument == "--set" or argument.startswith("--set=")
            whole.append(argument)
        elif in_value and whole[-1] != "--set" and not Path(argument).exists():
            whole[-1] += f" {argument}"
        else:
            whole.append(argument)
    return whole


def with_results(arguments: Sequence[str], results: str | None, stamp: str) -> list[str]:
    """Arguments with a place below the cluster's results, where the command leaves some and names no place itself."""
    command = arguments[0] if arguments else ""
    named = any(argument.partition("=")[0] in ("--out", "--storage", "--resume") for argument in arguments)
    if results is None or named:
        return list(arguments)
    if command == "sweep":
        return [*arguments, "--storage", results]  # the same command again goes on with it
    # A new folder for each run, but for `stackelberg`, which goes on in that of its scale.
    words = " ".join(arguments).replace("--scale=", "--scale ").split()
    scale = words[words.index("--scale") + 1] if "--scale" in words[:-1] else "laptop"
    folders = {"train": f"train-{stamp}", "stock-ppo": f"stock-ppo-{stamp}", "stackelberg": f"stackelberg-{scale}"}
    name = folders.get(command)
    if name is not None and "://" not in results:  # else to the head's own disk: `ray rsync-down` fetches it
        return [*arguments, "--out", f"{results.rstrip('/')}/{name}"]
    return list(arguments)


def results_of(bootstrap: Path) -> str | None:
    """`metadata.results` of the YAML that made this cluster."""
    from mermaide_ray.config_file import load_yaml

    if not bootstrap.is_file():
        return None
    said = (load_yaml(bootstrap.read_text(encoding="utf-8")) or {}).get("metadata") or {}
    found = said.get("results")
    return None if found is None else str(found)


def main(arguments: Sequence[str]) -> int:
    """Runs one command from where the sweeps are, in the cluster that this head leads."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ADDRESS", "auto")
    if HOME.is_dir():
        os.chdir(HOME)
    from mermaide_ray.cli import main as mermaide

    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return mermaide(with_results(together(arguments), results_of(BOOTSTRAP), stamp))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
