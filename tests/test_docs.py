"""What the documents promise: links lead somewhere, snippets are accepted, the tutorial's commands do what it says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import tiny

from mermaide_ray.config_file import load_yaml
from mermaide_ray.experiment import validate
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.reference import markdown
from mermaide_ray.storage import save_principal
from mermaide_ray.sweep.file import validate_sweep
from mermaide_ray.sweep.plan import Plan
from mermaide_ray.sweep.sections import Sweep

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/*.md")])
TUTORIAL = ROOT / "docs/tutorial.md"

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is to be saved as: named in a comment in its first line."""
        named = re.match(r"# (\S+\.\w+)\n", self.text)
        return named[1] if named else None


def blocks(document: Path) -> list[Block]:
    found = _BLOCK.findall(document.read_text(encoding="utf-8"))
    return [Block(language, textwrap.dedent(text)) for _, language, text in found]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(document: Path) -> set[str]:
    """What GitHub makes of a document's headings."""
    text = _BLOCK.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.findall(_BLOCK.sub("", document.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), f"{link} in {document.name}"
        assert not anchor or anchor in anchors(target), f"{link} in {document.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_table_has_rows_of_its_columns(document: Path) -> None:
    text = _BLOCK.sub("", document.read_text(encoding="utf-8"))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = table.splitlines()
        assert len(lines) > 2, table
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {lines[1].count("|")}, table


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    listed = set(_LINK.findall(index.read_text(encoding="utf-8")))
    assert {str(path.relative_to(index.parent)) for path in ROOT.glob("docs/**/*.md")} - listed == {"README.md"}


def test_the_reference_of_settings_is_up_to_date() -> None:
    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == markdown(), (
        "run: mermaide schema --markdown > docs/config.md"
    )


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the tutorial's reader has, as the current one."""
    for block in blocks(TUTORIAL):
        if block.file:
            path = tmp_path / block.file
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in ("my_lab", "my_lab.agents"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("document", sorted((ROOT / "docs").rglob("*.md")), ids=name_of)
def test_snippets_are_accepted(document: Path, lab: Path) -> None:
    for block in blocks(document):
        if block.language == "python":
            compile(block.text, document.name, "exec")
        elif block.language == "yaml":
            settings = load_yaml(block.text)
            if settings.keys() & (Sweep.model_fields.keys() - {"name", "preset"}):
                settings.pop("scales", None)
                Plan(validate_sweep({"question": "?", "name": "snippet", **settings}, document.name), document.name)
            else:
                settings.pop("preset", None)
                validate(settings, document.name)


PYTHON = {block.file: block.text for block in blocks(ROOT / "docs/how-to/python.md") if block.file}


@pytest.mark.parametrize(
    "script", [pytest.param("own_algorithm.py", marks=[pytest.mark.slow, pytest.mark.ray]), "play.py"]
)
def test_the_scripts_run_as_they_stand(script: str, tmp_path: Path) -> None:
    experiment = tiny(environment={"num_arms": 5, "horizon": 10})
    arrays = PrincipalModule(model_config={"experiment": experiment.to_dict()}).arrays()
    save_principal(tmp_path / "mine_principal", experiment, arrays)
    (tmp_path / script).write_text(PYTHON[script], encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "normalised_score" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_the_tutorials_commands_do_what_it_says(lab: Path) -> None:
    commands = [line for block in blocks(TUTORIAL) if block.language == "sh" for line in block.text.splitlines()]
    assert len(commands) > 5
    script = lab / "bin/mermaide"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m mermaide_ray "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command in commands:
        if command.startswith("mermaide tensorboard "):
            watch(command, environment)
            continue
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    for promised in re.findall(r"`(runs/[\w./-]+)`", TUTORIAL.read_text(encoding="utf-8")):
        assert (lab / promised).exists(), promised


def watch(command: str, environment: dict[str, str]) -> None:
    """Starts a server, looks at its page, ends it."""
    with subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            with urllib.request.urlopen(process.stdout.readline().split()[2], timeout=30) as answer:
                assert b"TensorBoard" in answer.read()
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
