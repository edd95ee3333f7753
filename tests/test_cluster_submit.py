"""What `ray submit` does to arguments, and how cluster/submit.py undoes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "cluster"))
    import submit

    return submit


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--set", "agents.families.ucb={train: {ucb_coefficient: [0, 1]}}", "--seed", "3"],
        ["train", "--set", "name=three plain words", "--set", "seed=1", "--out", "x"],
        ["train", "--set", "evaluation.k=[0, 1, 5]"],
        ["train", "--set=evaluation.k=[0, 1, 5]", "--seed", "3"],
        ["sweep", "--set", "name=two words", __file__],
        ["evaluate", "--set", "environment.cost_weight=0.3", str(REPOSITORY)],
        ["evaluate", "runs/x", "--k", "0", "1", "5", "--tasks", "3"],
        ["train"],
        [],
    ],
)
def test_arguments_torn_apart_at_spaces_are_put_together_again(submit: ModuleType, arguments: list[str]) -> None:
    joined = " ".join(arguments)  # as `ray submit` does
    assert submit.together(joined.split()) == arguments


@pytest.mark.parametrize(
    ("arguments", "results", "added"),
    [
        (["train"], "/shared", ["--out", "/shared/train-T"]),
        (["train", "--seed", "1"], "/shared/", ["--out", "/shared/train-T"]),
        (["sweep", "tune_configs/agents.yaml"], "/shared", ["--storage", "/shared"]),
        (["sweep", "tune_configs/agents.yaml"], "s3://bucket/x", ["--storage", "s3://bucket/x"]),
        (["stock-ppo", "--seed", "1"], "/shared", ["--out", "/shared/stock-ppo-T"]),
        (["stackelberg"], "/shared", ["--out", "/shared/stackelberg-laptop"]),
        (["stackelberg", "--scale", "full"], "/shared", ["--out", "/shared/stackelberg-full"]),
        (["stackelberg", "--scale=smoke"], "/shared", ["--out", "/shared/stackelberg-smoke"]),
        # A single run can't write to a bucket; what names its own place keeps it; the rest leaves no results.
        (["train"], "s3://bucket/x", []),
        (["train", "--out", "y"], "/shared", []),
        (["sweep", "x.yaml", "--storage", "y"], "/shared", []),
        (["train", "--out=y"], "/shared", []),
        (["train", "--resume", "y"], "/shared", []),
        (["evaluate", "y"], "/shared", []),
        (["--help"], "/shared", []),
        (["train"], None, []),
    ],
)
def test_results_go_where_the_cluster_s_file_says(
    submit: ModuleType, arguments: list[str], results: str | None, added: list[str]
) -> None:
    assert submit.with_results(arguments, results, "T") == [*arguments, *added]


def test_place_of_results_is_read_from_what_ray_leaves_on_the_head(submit: ModuleType, tmp_path: Path) -> None:
    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    assert submit.results_of(bootstrap) is None
    bootstrap.write_text('{"cluster_name": "x", "metadata": {"results": "/shared"}}')
    assert submit.results_of(bootstrap) == "/shared"
    bootstrap.write_text('{"cluster_name": "x"}')
    assert submit.results_of(bootstrap) is None


def test_script_runs_the_command_with_the_cluster_s_address_and_token_mode(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "cluster" / "submit.py"), *["config", "--set", "name=two", "words"]]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert 'name: "two words"' in done.stdout
    refused = subprocess.run([*command, "--st", "x"], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
