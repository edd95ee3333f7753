"""Files for `ray up`: what Ray validates, what it would start, and where results go."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mermaide_ray.cluster_check.clouds import cloud_findings
from mermaide_ray.cluster_check.finding import HEAD_WORKS, LOOPBACK, NOT_SHARED, PLACEHOLDER, Finding
from mermaide_ray.cluster_check.versions import image_findings, version_findings

_SHARED = {"aws": "s3://", "gcp": "gs://", "azure": "abfs://"}
_START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")


def launcher_findings(config: dict[str, Any], root: Path) -> Iterator[Finding]:
    """Everything wrong with a file for `ray up` that is started from the folder `root`."""
    try:
        prepared = _prepared(config)
    except Exception as error:  # Ray raises anything from KeyError to jsonschema's ValidationError
        yield _rays(error)
        return
    yield from version_findings(root)
    yield from _start_commands(config, prepared)
    yield from _setup(config, prepared, root)
    yield from _storage(config)
    kind = config["provider"]["type"]
    if kind == "local":
        yield from _local(prepared)
    else:
        yield from cloud_findings(config)


def _prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The file with Ray's defaults, validated by Ray."""
    import logging

    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)
    # Ray warns of each file among the mounts, and of the cloud's packages that are not installed here.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    return prepared


def _rays(error: Exception) -> Finding:
    """What Ray's validation says, as one of ours."""
    place = getattr(error, "absolute_path", ())
    where = ".".join(map(str, place)) or "the top level"
    message = str(getattr(error, "message", error)).strip().splitlines()[0]
    return Finding(where, f"must pass Ray's own validation, got: {message}")


def _start_commands(config: dict[str, Any], prepared: dict[str, Any]) -> Iterator[Finding]:
    for key in _START_COMMANDS:
        commands = [command for command in prepared[key] if "ray start" in command]
        default = "" if key in config else " (Ray's default, as the file gives none)"
        for command in commands:
            if "RAY_AUTH_MODE=token" not in command:
                yield Finding(
                    key, f"must start Ray with RAY_AUTH_MODE=token{default}: else whoever reaches a port runs code"
                )
            host = _option(command, "--dashboard-host")
            if key.startswith("head") and host not in LOOPBACK:
                yield Finding(
                    key,
                    f"must start the dashboard with --dashboard-host=127.0.0.1, got {host or 'no such option'}{default}"
                    ": it runs code for whoever reaches it, and `ray dashboard` tunnels it to you",
                )
    if not any("/.ray/auth_token" in target for target in prepared["file_mounts"]):
        yield Finding(
            "file_mounts", "must bring the token to the nodes (~/.ray/auth_token: ~/.ray/auth_token), got no such entry"
        )


def _option(command: str, name: str) -> str | None:
    found = re.search(rf"{name}[= ](\S+)", command)
    return found[1] if found else None


def _setup(config: dict[str, Any], prepared: dict[str, Any], root: Path) -> Iterator[Finding]:
    commands = " ".join(str(command) for command in prepared["setup_commands"])
    if "setup_commands" not in config:
        yield Finding("setup_commands", "must be given: Ray's default installs a nightly build of Ray, got none")
    elif re.search(r"ray-wheels|nightly|3\.0\.0\.dev", commands):
        yield Finding("setup_commands", "must install released versions, got a nightly build of Ray")
    elif "pip install" in commands and "constraints.txt" not in commands:
        yield Finding("setup_commands", "must install with --constraint constraints.txt: else versions drift apart")
    if re.search(r"PYTHONPATH=", commands):
        yield Finding("setup_commands", "must set no PYTHONPATH: it would hide the one that Ray gives its workers")
    image = prepared.get("docker", {}).get("image")
    if image:
        yield from image_findings("docker.image", image, root)
    for target, source in (config.get("file_mounts") or {}).items():
        yield from _mount(f"file_mounts.{target}", Path(source).expanduser(), root)


def _mount(where: str, source: Path, root: Path) -> Iterator[Finding]:
    found = source if source.is_absolute() else root / source
    if not found.exists():
        hint = ": make it with `(umask 077; ray get-auth-token --generate)`" if found.name == "auth_token" else ""
        yield Finding(where, f"must exist on this machine, got {source}{hint}")
    elif found.name == "auth_token" and stat.S_IMODE(found.stat().st_mode) & 0o077:
        yield Finding(where, f"must be readable by you alone, got a file that others can read: chmod 600 {source}")


def _storage(config: dict[str, Any]) -> Iterator[Finding]:
    kind = config["provider"]["type"]
    results = (config.get("metadata") or {}).get("results")
    needed = f"a folder below {_SHARED[kind]}" if kind in _SHARED else "an absolute path that all nodes share"
    fits = str(results).startswith(_SHARED.get(kind, "/")) or PLACEHOLDER in str(results)
    if results is None or not fits:
        yield Finding(
            "metadata.results",
            f"must say where results go ({needed}), got {results!r}: {NOT_SHARED}",
        )


def _local(prepared: dict[str, Any]) -> Iterator[Finding]:
    for command in prepared["head_start_ray_commands"]:
        if "ray start" not in command:
            continue
        if _option(command, "--num-cpus") != "0":
            yield Finding(
                "head_start_ray_commands",
                f"must start the head with --num-cpus=0, got none or more: {HEAD_WORKS}",
            )
        if "RAY_enable_autoscaler_v2=0" not in command:
            yield Finding(
                "head_start_ray_commands",
                "must set RAY_enable_autoscaler_v2=0: version 2 starts one worker too few on machines of your own "
                "(ray 2.60)",
            )


def cut_commands(text: str) -> Iterator[Finding]:
    """Commands that YAML ends at an unquoted ` #`, which the shell then never sees."""
    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for key, commands in root.value:
        if not key.value.endswith("_commands") or not isinstance(commands, yaml.SequenceNode):
            continue
        for place, command in enumerate(commands.value):
            rest = text[command.end_mark.index :].partition("\n")[0]
            if isinstance(command, yaml.ScalarNode) and command.style is None and rest.lstrip().startswith("#"):
                yield Finding(
                    f"{key.value}[{place}]",
                    f"must be quoted where it holds ' #': YAML takes the rest for a comment, got {rest.strip()!r}",
                )
