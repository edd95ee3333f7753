"""The command line: what each command calls, and how mistakes and faults end."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mermaide_ray
from mermaide_ray.agents import FAMILIES
from mermaide_ray.baselines import BASELINES
from mermaide_ray.cli import main
from mermaide_ray.config_file import explained_yaml
from mermaide_ray.envs import ENVS
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.experiment import load_experiment, preset_names
from mermaide_ray.storage import save_principal


class Calls(ModuleType):
    """Stands where the training module would, and writes down how it is called."""

    def __init__(self) -> None:
        super().__init__("mermaide_ray.training")
        self.seen: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.raises: BaseException | None = None
        for name in ("train", "evaluate", "export"):
            setattr(self, name, self._noted(name))

    def _noted(self, name: str) -> Callable[..., None]:
        def called(*args: Any, **kwargs: Any) -> None:
            self.seen.append((name, args, kwargs))
            if self.raises is not None:
                raise self.raises

        return called


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    module = Calls()
    monkeypatch.setitem(sys.modules, "mermaide_ray.training", module)
    monkeypatch.setattr(mermaide_ray, "training", module, raising=False)
    return module


@pytest.fixture
def refused(calls: Calls, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with exit code 2 and one line, before anything is called."""

    def run(*arguments: str) -> str:
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert (captured.out, calls.seen) == ("", [])
        assert captured.err.startswith("mermaide: error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


def test_train_hands_over_defaults(calls: Calls) -> None:
    assert main(["train"]) == 0
    assert calls.seen == [
        ("train", (load_experiment(),), {"out": None, "baselines": None, "resume": False, "trusted": False})
    ]


def test_train_hands_over_every_option(calls: Calls, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("training: {gamma: 0.9}\nenvironment: {horizon: 50}\n")
    arguments = ["--config", str(config), "--preset", "maml", "--set", "environment.horizon=7", "--set", "name=mine"]
    assert main(["train", *arguments, "--seed", "3", "--out", "runs/x", "--baseline", "rl2", "--baseline", "maml"]) == 0
    [(_, (experiment,), options)] = calls.seen
    assert (experiment.training.gamma, experiment.environment.horizon) == (0.9, 7)
    assert (experiment.name, experiment.seed, experiment.world_model.enabled) == ("mine", 3, False)
    assert options == {"out": Path("runs/x"), "baselines": ["rl2", "maml"], "resume": False, "trusted": False}


@pytest.mark.parametrize("arguments", [["sweep", "x.yaml", "--dry"], ["train", "--res", "x"]])
def test_flags_are_written_out(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What takes an abbreviation here is another flag to who looks for flags by name (`cluster/submit.py`)."""
    assert main(arguments) == 2
    assert arguments[-1 if arguments[-1].startswith("--") else -2] in capsys.readouterr().err


def test_address_is_where_ray_looks_for_its_cluster(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["train", "--address", "10.0.0.1:6379"]) == 0
    assert os.environ.pop("RAY_ADDRESS") == "10.0.0.1:6379"


def test_resume_takes_the_settings_of_the_run(calls: Calls, tmp_path: Path) -> None:
    experiment = load_experiment(preset="rl2", overrides={"seed": 5})
    (tmp_path / "config.yaml").write_text(explained_yaml(experiment))
    assert main(["train", "--resume", str(tmp_path)]) == 0
    assert main(["train", "--resume", str(tmp_path), "--trust-checkpoint"]) == 0
    options = {"out": tmp_path, "baselines": None, "resume": True}
    assert calls.seen == [("train", (experiment,), {**options, "trusted": trusted}) for trusted in (False, True)]


def test_a_run_from_before_models_of_learners_is_resumed_as_it_was(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: maml\nworld_model: {enabled: false}\n")
    assert main(["train", "--resume", str(tmp_path)]) == 0
    [(_, (experiment,), _)] = calls.seen
    assert (experiment.world_model.kind, experiment.evaluation.planning) == ("recurrent", False)


def test_resume_with_other_settings_or_without_a_run_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    for extra in (["--seed", "1"], ["--set", "seed=1"], ["--preset", "maml"], ["--config", "x"], ["--out", "y"]):
        message = refused("train", "--resume", str(tmp_path), *extra)
        assert f"--resume must stand without {extra[0]}" in message
    assert f"must be the folder of a run (it holds a config.yaml), got {tmp_path}" in refused(
        "train", "--resume", str(tmp_path)
    )


def test_evaluate_and_export_hand_over_their_options(calls: Calls, tmp_path: Path) -> None:
    save_principal(tmp_path, load_experiment(), {"weight": np.zeros(1)})
    here = str(tmp_path)
    assert main(["evaluate", here]) == 0
    options = ["--k", "0", "1", "5", "--split", "validation", "--tasks", "9", "--episodes", "4", "--out", "x"]
    options += ["--set", "environment.num_arms=50"]
    assert main(["evaluate", here, *options]) == 0
    assert main(["export", here, "--out", "y"]) == 0
    assert calls.seen == [
        (
            "evaluate",
            (tmp_path,),
            dict.fromkeys(("ks", "tasks", "episodes", "out")) | {"split": "test", "overrides": {}},
        ),
        (
            "evaluate",
            (tmp_path,),
            {"ks": [0, 1, 5], "split": "validation", "tasks": 9, "episodes": 4, "out": Path("x")}
            | {"overrides": {"environment.num_arms": 50}},
        ),
        ("export", (tmp_path,), {"out": Path("y")}),
    ]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", "required: COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("train --sed 1", "unrecognized arguments: --sed 1"),
        ("train --out s3://bucket/run", "--out: must be a folder on this machine, got 's3://bucket/run'"),
        ("export p --out gs://b/p", "--out: must be a folder on this machine, got 'gs://b/p'"),
        ("report s3://bucket/sweep", "DIR: must be a folder on this machine, got 's3://bucket/sweep'"),
        ("train --seed -1", "--seed: must be a whole number >= 0, got '-1'"),
        ("train --seed 1.5", "--seed: must be a whole number >= 0, got '1.5'"),
        ("train --seed 5000000000", "`seed` must be less than 4294967296, got 5000000000 (--set seed)"),
        ("train --address http://127.0.0.1:8265", "--address: must be auto, HOST:PORT or ray://HOST:PORT, got 'http:"),
        ("train --address head", "--address: must be auto, HOST:PORT or ray://HOST:PORT, got 'head'"),
        ("train --set seed", "--set must be KEY=VALUE (such as training.meta_lr=0.001), got 'seed'"),
        ("train --set =1", "--set must be KEY=VALUE"),
        ("train --set seed=[1", "--set seed must have a YAML value, got '[1'"),
        ("train --set seeed=1", "the top level has no key 'seeed' (did you mean 'seed'?)"),
        ("train --set training=1", "`training` must be a section (keys with values), got 1 (--set training)"),
        ("train --set seed.x=1", "`seed` must be a whole number, got {x: 1} (--set seed.x)"),
        ("train --set training.=1", "section `training` has no key ''"),
        ("config --set training[meta_lr]=1", "no key 'training[meta_lr]' (did you mean 'training'?)"),
        (
            "config --set environment.graded_sizes[0]=1",
            "section `environment` has no key 'graded_sizes[0]' (did you mean 'graded_sizes'?); it has game,",
        ),
        ("config --set agents.families.my[0].train.x=1", "`agents.families.my[0].train.x` must be [low, high], got 1"),
        ("stackelberg --set game[rows]=3", "the top level has no key 'game[rows]'"),
        ("train --preset papr", "got papr (did you mean 'paper'?) (--preset)"),
        ("train --baseline rl3", "got rl3 (did you mean 'rl2'?) (--baseline)"),
        ("config --config none.yaml", "must be a readable file, got none.yaml (No such file or directory)"),
        ("evaluate", "required: checkpoint"),
        ("evaluate none", "the checkpoint must exist, got none"),
        ("evaluate . --k", "--k: expected at least one argument"),
        ("evaluate . --k -1", "--k: must be a whole number >= 0, got '-1'"),
        ("evaluate . --tasks 0", "--tasks: must be a whole number >= 1, got '0'"),
        ("evaluate . --split tset", "invalid choice: 'tset'"),
        ("export none --out x", "the checkpoint must exist, got none"),
        ("train --baseline first_n", "--baseline must name a preset to train beside, got first_n, which is always sco"),
        ("export .", "required: --out"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_one_line(command: str, expected: str, refused: Callable[..., str]) -> None:
    assert expected in refused(*command.split())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "evaluate sweep",
            "must hold principal.json, got sweep, the folder of a sweep (mermaide sweep --resume sweep ",
        ),
        ("evaluate sweep", "its runs are in sweep/runs)"),
        ("evaluate empty", "a run, a checkpoint or an export must hold principal.json, got empty\n"),
        ("evaluate settings.yaml", "must hold principal.json, got settings.yaml, a file\n"),
        ("evaluate principal --out run", "new or empty folder, got run, the folder of a run (mermaide train --resume"),
        ("export sweep --out new", "must hold principal.json, got sweep, the folder of a sweep"),
        ("export principal --out settings.yaml", "--out must be a new or empty folder, got settings.yaml, a file\n"),
        ("train --resume sweep", "must be the folder of a run (it holds a config.yaml), got sweep, the folder of a sw"),
        ("train --out run", "got run, the folder of a run (mermaide train --resume run goes on with it)"),
        ("train --out scores", "--out must be a new or empty folder, got scores\n"),
        ("train --out settings.yaml", "--out must be a new or empty folder, got settings.yaml, a file\n"),
        ("stock-ppo --out settings.yaml", "--out must be a new or empty folder, got settings.yaml, a file\n"),
        ("train --config sweep.yaml", "got sweep.yaml, a sweep's (mermaide sweep sweep.yaml runs it)"),
        ("config --config sweep.yaml", "--config must be a file of settings, got sweep.yaml, a sweep's"),
        ("stackelberg --config sweep.yaml", "--config must be a file of settings, got sweep.yaml, a sweep's"),
        (
            "sweep settings.yaml",
            "got settings.yaml, a file of settings (mermaide train --config settings.yaml takes it",
        ),
        ("sweep sweep.yaml --out settings.yaml", "settings.yaml, a file\n"),
        ("sweep --resume settings.yaml", "the folder of a sweep must hold sweep.yaml, got settings.yaml\n"),
        ("report sweep --out settings.yaml", "--out must be a folder, got settings.yaml, a file\n"),
    ],
)
def test_what_is_given_in_place_of_something_else_is_named(
    command: str, expected: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("sweep/runs", "empty", "run/checkpoints/iteration_000001", "scores"):
        (tmp_path / folder).mkdir(parents=True)
    save_principal(tmp_path / "principal", load_experiment(), {"weight": np.zeros(1)})
    for name, text in (
        ("settings.yaml", "environment: {num_arms: 4}\n"),
        ("sweep.yaml", "question: Where to?\n"),
        ("sweep/sweep.yaml", "question: Where to?\n"),
        ("run/config.yaml", "seed: 1\n"),
        ("scores/config.yaml", "seed: 1\n"),
        ("scores/rows.parquet", ""),
    ):
        (tmp_path / name).write_text(text)
    assert expected in refused(*command.split())


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (InputError("the checkpoint must be whole, got half"), 2, "mermaide: error: the checkpoint must be whole"),
        (RunFault("the loss is not a number"), 1, "mermaide: error: the loss is not a number"),
        (OSError(28, "No space left on device", "runs/x"), 1, "mermaide: error: [Errno 28] No space left on device: "),
        (
            KeyboardInterrupt("the run goes on with: mermaide train --resume runs/x"),
            130,
            "mermaide: interrupted; the run goes on with: mermaide train --resume runs/x\n",
        ),
        (KeyboardInterrupt(), 130, "mermaide: interrupted\n"),
    ],
)
def test_faults_end_with_their_exit_code_and_one_line(
    raised: BaseException, code: int, line: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.raises = raised
    assert main(["train", "--out", "runs/x"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


def test_a_bug_keeps_its_traceback(calls: Calls) -> None:
    calls.raises = KeyError("bug")
    with pytest.raises(KeyError):
        main(["train"])


def test_config_prints_what_train_would_run(calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--preset", "paper", "--set", "training.meta_lr=1e-5", "--set", "agents.families.ucb.weight=2"]
    assert main(["config", *arguments]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert main(["train", *arguments]) == 0
    assert main(["train", "--config", str(printed)]) == 0
    direct, from_printed = (call[1][0] for call in calls.seen)
    assert direct == from_printed
    assert direct.training.meta_lr == 1e-5


def test_lists_name_everything_that_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    for command, names in (
        ("agents", [*FAMILIES, *(key for family in FAMILIES.values() for key in family.hyperparameters)]),
        ("envs", list(ENVS)),
        ("baselines", [*BASELINES, *preset_names()]),
    ):
        assert main([command]) == 0
        lines = capsys.readouterr().out.splitlines()
        listed = [line.strip().split(maxsplit=1) for line in lines]
        described = {words[0].rstrip(":") for words in listed if len(words) == 2 and len(words[1]) > 10}
        assert set(names) <= described


def test_version_and_help_end_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    for argument, expected in (("--version", mermaide_ray.__version__), ("--help", "meta-train a principal")):
        with pytest.raises(SystemExit) as stopped:
            main([argument])
        assert stopped.value.code == 0
        assert expected in capsys.readouterr().out


def test_reader_that_leaves_early_sees_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from mermaide_ray.cli import main; sys.exit(main(['config']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (1, "")
