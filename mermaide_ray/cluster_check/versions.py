"""Whether image, pins, package and the Ray that starts the cluster agree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from mermaide_ray import __version__
from mermaide_ray.cluster_check.finding import Finding


def pinned_ray(root: Path) -> str | None:
    """The version of Ray in `constraints.txt`."""
    file = root / "constraints.txt"
    found = re.search(r"^ray==(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE) if file.is_file() else None
    return found[1] if found else None


def image_findings(where: str, image: str, root: Path) -> Iterator[Finding]:
    """Whether an image's versions are those of the pins, and the package's own."""
    name, _, tag = image.rpartition(":")
    if not name or "/" in tag or tag.startswith(("latest", "nightly")):
        yield Finding(where, f"must name a fixed version, got {image!r}: tomorrow it would be another one")
        return
    pinned = pinned_ray(root)
    if name.endswith("rayproject/ray"):
        version, _, rest = tag.partition("-")
        if pinned and version != pinned:
            yield Finding(where, f"must hold Ray {pinned} as constraints.txt does, got {version}: they would not talk")
        python = re.search(r"py(\d)(\d+)", rest)
        if python is None:
            yield Finding(where, f"must name its Python (…-py311-…), got {image!r}: the default changes with Ray")
        elif (int(python[1]), int(python[2])) < (3, 11):
            yield Finding(where, f"must have Python >= 3.11, got {python[1]}.{python[2]}")
        elif (int(python[1]), int(python[2])) != sys.version_info[:2]:
            mine = ".".join(map(str, sys.version_info[:2]))
            yield Finding(
                where, f"must have this machine's Python {mine}, got {python[1]}.{python[2]}: Ray refuses a mixture"
            )
    elif name.endswith("mermaide_ray") and tag != __version__:
        yield Finding(where, f"must hold this package's version {__version__}, got {tag}")


def version_findings(root: Path) -> Iterator[Finding]:
    """Whether the pins, the package's requirement and the Ray that starts the cluster agree."""
    import ray

    pinned = pinned_ray(root)
    if pinned is None:
        yield Finding("constraints.txt", f"must pin ray, got no such line in {root}")
        return
    if ray.__version__ != pinned:
        yield Finding(
            "constraints.txt",
            f"must pin the Ray that starts the cluster ({ray.__version__}), got {pinned}: laptop and nodes must agree",
        )
    wanted = next((one for one in requires("mermaide-ray") or () if one.startswith("ray[")), "")
    series = wanted.partition("==")[2].partition("*")[0]
    if not pinned.startswith(series):
        yield Finding("constraints.txt", f"must pin a Ray that the package takes ({wanted}), got {pinned}")
    dockerfile = root / "cluster" / "Dockerfile"
    if dockerfile.is_file():
        for image in re.findall(r"^FROM (\S+)", dockerfile.read_text(encoding="utf-8"), re.MULTILINE):
            yield from image_findings("cluster/Dockerfile", image, root)
