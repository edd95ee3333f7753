"""`mermaide tensorboard`: what it finds to show, and that it answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from mermaide_ray.cli import main
from mermaide_ray.monitor import _logdir, event_folders

TRIALS = ("num_arms=5,seed=3", "num_arms=20,seed=3")


def run(folder: Path, name: str = "mermaide") -> None:
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"name: {name}\n")
    write_event(folder / "tensorboard")


def sweep(folder: Path) -> None:
    for trial in TRIALS:
        write_event(folder / "runs" / trial)
    (folder / "sweep.yaml").write_text("question: How many?\n")
    (folder / "tune").mkdir()


def write_event(folder: Path) -> None:
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("principal/return", 1.0, 100)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, a baseline beside it, and a sweep; the current one."""
    run(tmp_path / "runs/one")
    run(tmp_path / "runs/one/baselines/rl2", "rl2")
    sweep(tmp_path / "runs/arms")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_a_run_is_shown_with_its_baselines_by_method(here: Path) -> None:
    assert event_folders(["runs/one"]) == {
        "one/mermaide": here / "one/tensorboard",
        "one/rl2": here / "one/baselines/rl2/tensorboard",
    }


def test_a_sweep_is_shown_whole_and_its_runs_one_by_one(here: Path) -> None:
    assert event_folders(["runs/arms"]) == {"arms": here / "arms/runs"}
    assert event_folders(["runs/arms/runs"]) == {f"runs/{trial}": here / "arms/runs" / trial for trial in TRIALS}
    assert event_folders([f"runs/arms/runs/{TRIALS[0]}"]) == {TRIALS[0]: here / "arms/runs" / TRIALS[0]}


def test_several_are_told_apart_by_their_folders(here: Path) -> None:
    run(here / "two/arms")
    assert set(event_folders(["runs/arms", "runs/two/arms"])) == {"arms", "two/arms/mermaide"}
    assert set(event_folders(["runs"])) == {"runs/one/mermaide", "runs/one/rl2", "runs/arms"}


def test_what_is_shown_as_part_of_another_is_shown_once_and_nothing_is_written_into_it(here: Path) -> None:
    before = set(here.rglob("*"))
    sources = event_folders(["runs/arms", f"runs/arms/runs/{TRIALS[0]}", "runs/one"])
    (here.parent / "scratch").mkdir()
    logdir = _logdir(sources, here.parent / "scratch")
    assert set(here.rglob("*")) == before
    assert {path.name for path in logdir.iterdir()} == {"arms", "one"}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("nowhere", "got nowhere, where there is none"),
        ("empty", "has begun, got empty, which holds no events"),
        ("s3://bucket/arms", "a folder on this machine, got s3://bucket/arms (copy it here first"),
    ],
)
def test_where_there_is_nothing_to_show_one_sentence_says_why(
    here: Path, folder: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    assert main(["tensorboard", "runs/one", folder]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_it_prints_one_line_with_the_address_and_serves_runs_by_readable_names(here: Path) -> None:
    names = ["runs/one/mermaide", "runs/one/rl2", *(f"runs/arms/{trial}" for trial in TRIALS)]
    command = [sys.executable, "-m", "mermaide_ray", "tensorboard", "runs", "--port", "0"]
    scratch = here.parent / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("TensorBoard at http://127.0.0.1:"), process.stderr.read()
            shown: list[str] = []
            # Events are read in the background.
            for _ in range(100):
                with urllib.request.urlopen(f"{line.split()[2]}data/runs", timeout=10) as answer:
                    shown = json.load(answer)
                if len(shown) == len(names):
                    break
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.1)
        finally:
            process.send_signal(signal.SIGTERM)
            rest, complaints = process.communicate(timeout=30)
    assert (sorted(shown), rest, complaints, process.returncode) == (sorted(names), "", "", 0)
    assert not list(scratch.glob("mermaide-*"))
