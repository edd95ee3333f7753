"""`mermaide train`, `evaluate` and `export`, from beginning to end on a tiny run."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TrainedRun, tiny
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mermaide_ray import training
from mermaide_ray.algorithm import Mermaide
from mermaide_ray.baselines import SCORED_BESIDE
from mermaide_ray.cli import main
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.experiment import variant
from mermaide_ray.metrics import METRICS, MOST_SCALARS
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.provenance import versions
from mermaide_ray.report.study import read_study
from mermaide_ray.session import Session
from mermaide_ray.storage import RunDirectory, load_principal, save_principal

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ITERATIONS = 24


_watched: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event == "pickle.find_class":
        raise AssertionError(f"unpickled {arguments}")


@pytest.fixture
def no_pickles() -> Iterator[None]:
    """Unpickling whatever might run code is an error, whoever does it: the interpreter itself watches."""
    sys.addaudithook(_watch)
    content = pickle.dumps(Path())
    _watched.append("now")
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(content)
    yield
    _watched.clear()


def test_a_run_leaves_everything_that_it_promises(trained_run: TrainedRun) -> None:
    expected = [
        ".lock",
        "baselines",
        "calibration.parquet",
        "checkpoints",
        "config.yaml",
        "figures",
        "principal",
        "profiles.parquet",
        "progress.jsonl",
        "provenance.json",
        "rows.parquet",
        "tensorboard",
    ]
    assert sorted(path.name for path in trained_run.path.iterdir()) == expected
    assert list((trained_run.path / "figures").glob("*.png"))
    run = RunDirectory.open(trained_run.path)
    assert run.experiment() == trained_run.experiment
    latest = run.latest_checkpoint()
    assert latest is not None
    assert run.check_checkpoint(latest) == ITERATIONS


def test_baseline_beside_has_the_same_game_agents_and_budget(trained_run: TrainedRun) -> None:
    beside = RunDirectory.open(trained_run.path / "baselines" / "rl2")
    assert beside.experiment() == variant(trained_run.experiment, "rl2")
    assert beside.experiment().agents == trained_run.experiment.agents
    assert len(beside.read_progress()) == ITERATIONS
    assert load_principal(beside.principal)[0].name == "rl2"


def test_rows_hold_both_methods_and_every_baseline_on_both_held_out_splits(trained_run: TrainedRun) -> None:
    rows = pd.read_parquet(trained_run.path / "rows.parquet")
    assert set(rows["method"]) == {"mermaide", "rl2", *SCORED_BESIDE}
    for method, group in rows.groupby("method"):
        ks = [0, 1] if method in ("mermaide", "rl2") else [0]
        assert len(group) == 2 * 6 * len(ks), method
        assert sorted(group["k"].unique()) == ks
    # Paired: every method met the same agents, and is measured on the same scale.
    for column in ("family", "never_return", "oracle_return", "param.epsilon", "param.ucb_coefficient"):
        assert (rows.groupby(["split", "task"])[column].nunique(dropna=False) == 1).all(), column
    profiles = pd.read_parquet(trained_run.path / "profiles.parquet")
    assert set(profiles["method"]) == set(rows["method"])
    calibration = pd.read_parquet(trained_run.path / "calibration.parquet")
    assert set(calibration["method"]) == {"mermaide"}  # rl2 has no world model


def test_progress_tells_every_iteration_in_known_metrics(trained_run: TrainedRun) -> None:
    told = [json.loads(line) for line in (trained_run.path / "progress.jsonl").read_text().splitlines()]
    assert [each["iteration"] for each in told] == list(range(1, ITERATIONS + 1))
    assert [each["throughput/env_steps"] for each in told] == [240 * n for n in range(1, ITERATIONS + 1)]
    for each in told:
        assert each.keys() - {"iteration"} <= METRICS.keys()
    validated = [each["iteration"] for each in told if "validation/score_k1" in each]
    assert validated == [*range(3, ITERATIONS, 3), ITERATIONS]  # a tenth of the budget, rounded up


def test_tensorboard_has_the_scalars_of_progress_over_env_steps(trained_run: TrainedRun) -> None:
    events = EventAccumulator(str(trained_run.path / "tensorboard")).Reload()
    told = [json.loads(line) for line in (trained_run.path / "progress.jsonl").read_text().splitlines()]
    tags = events.Tags()
    scalars = [tag for tag in tags["scalars"] if not tag.startswith("score/")]
    assert set(scalars) == {key for each in told for key in each} - {"iteration", "throughput/env_steps"}
    assert len(scalars) <= MOST_SCALARS
    returns = events.Scalars("principal/return")
    assert [event.step for event in returns] == [each["throughput/env_steps"] for each in told]
    assert [event.value for event in returns] == pytest.approx([each["principal/return"] for each in told])
    assert tags["images"]


def test_table_is_printed_with_both_splits_and_every_method(trained_run: TrainedRun) -> None:
    printed = trained_run.printed
    assert f"results in {trained_run.path}" in printed
    for expected in (
        "in distribution",
        "out of distribution",
        "mermaide",
        "rl2",
        "oracle",
        "first_n",
        "normalised score",
    ):
        assert expected in printed
    assert "Warning" not in printed
    assert "Traceback" not in printed


@pytest.mark.usefixtures("undrawn")
def test_finished_run_is_neither_trained_nor_scored_again(
    trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained_run.path, folder)
    monkeypatch.setattr(training, "meta_train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(training, "score", lambda *_: pytest.fail("scored again"))
    assert main(["train", "--resume", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "the run is already finished: nothing is trained or scored again" in printed
    tables = trained_run.printed
    assert printed.split("again\n", 1)[1].replace(str(folder), "RUN") == tables[
        tables.index("in distribution") :
    ].replace(str(trained_run.path), "RUN")


@pytest.mark.usefixtures("undrawn")
def test_damaged_scores_are_told_and_made_again_where_they_are_deleted(
    trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained_run.path, folder)
    rows = folder / "rows.parquet"
    rows.write_bytes(b"half")
    assert main(["train", "--resume", str(folder)]) == 2
    assert f"{rows} is damaged" in capsys.readouterr().err
    rows.unlink()
    # Another Ray than the checkpoint's, which would not take it: there is nothing left to go on from it for.
    meta = next((folder / "checkpoints").iterdir()) / "meta.json"
    meta.write_text(meta.read_text(encoding="utf-8").replace(versions()["ray"], "1.0"), encoding="utf-8")
    monkeypatch.setattr("mermaide_ray.cluster.join.ray_running", lambda *_: pytest.fail("started Ray"))
    assert main(["train", "--resume", str(folder)]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(rows), pd.read_parquet(trained_run.path / "rows.parquet"))


@pytest.mark.usefixtures("undrawn")
def test_a_trained_run_whose_checkpoints_are_deleted_is_only_scored(
    trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained_run.path, folder, ignore=shutil.ignore_patterns("checkpoints", "figures"))
    told = (folder / "progress.jsonl").read_bytes()
    monkeypatch.setattr("mermaide_ray.cluster.join.ray_running", lambda *_: pytest.fail("started Ray"))
    assert main(["train", "--resume", str(folder)]) == 0
    assert "already finished" in capsys.readouterr().out
    (folder / "rows.parquet").unlink()
    assert main(["train", "--out", str(folder)]) == 2
    assert f"the folder of a run (mermaide train --resume {folder} goes on with it)" in capsys.readouterr().err
    assert main(["train", "--resume", str(folder)]) == 0
    theirs = pd.read_parquet(trained_run.path / "rows.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "rows.parquet"), theirs)
    assert (folder / "progress.jsonl").read_bytes() == told
    # Nor is it trained anew with other settings.
    config = folder / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("gamma: ", "gamma: 0.5 # "), encoding="utf-8")
    assert main(["train", "--resume", str(folder)]) == 2
    assert f"`training.gamma` of {config} is not that of {folder / 'principal'}" in capsys.readouterr().err


def test_a_sweep_s_run_that_is_done_is_left_to_the_sweep(
    trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "run" / "status.json").write_text("{}", encoding="utf-8")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert "must be the folder of a run of `mermaide train`, got" in capsys.readouterr().err


def test_what_is_trained_is_not_trained_beside_what_is_not(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained_run.path, tmp_path / "main")
    main_run, trained = RunDirectory(tmp_path / "main"), RunDirectory(tmp_path / "main" / "baselines" / "rl2")
    begun = RunDirectory.create(tmp_path / "begun", tiny())
    in_this, in_others = [], []
    monkeypatch.setattr(training, "meta_train", lambda run, *_: in_this.append(run))
    monkeypatch.setattr(training._Companions, "__enter__", lambda self: in_others.extend(self._runs) or self)
    monkeypatch.setattr(training._Companions, "wait", lambda *_: None)
    console = Console(file=io.StringIO())
    training._train_side_by_side(main_run, [trained, begun], console)
    assert (in_this, in_others) == ([], [begun])
    training._train_side_by_side(begun, [trained, main_run], console)
    assert (in_this, in_others) == ([begun], [begun])


@pytest.mark.usefixtures("no_pickles")
def test_evaluate_unpickles_nothing_and_needs_no_checkpoint(
    trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "exported"
    assert main(["export", str(trained_run.path), "--out", str(exported)]) == 0
    assert sorted(path.name for path in exported.iterdir()) == ["principal.json", "principal.safetensors"]
    capsys.readouterr()
    out = tmp_path / "evaluated"
    assert main(["evaluate", str(exported), "--k", "0", "1", "2", "--out", str(out)]) == 0
    assert "out of distribution" in capsys.readouterr().out
    rows = pd.read_parquet(out / "rows.parquet")
    assert set(rows.loc[rows["method"] == "mermaide", "k"]) == {0, 1, 2}
    # The same agents, luck and weights as at the end of training: the same numbers.
    before = pd.read_parquet(trained_run.path / "rows.parquet")
    keys = ["method", "task", "k"]
    mine, theirs = (
        frame[(frame["method"] != "rl2") & (frame["split"] == "test") & (frame["k"] < 2)].sort_values(keys)
        for frame in (rows, before)
    )
    pd.testing.assert_frame_equal(mine.reset_index(drop=True), theirs.reset_index(drop=True))


def test_what_evaluate_leaves_tells_its_settings_and_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny()
    arrays = PrincipalModule(model_config={"experiment": experiment.to_dict()}).arrays()
    save_principal(tmp_path / "mine", experiment, arrays)
    command = ["evaluate", str(tmp_path / "mine"), "--tasks", "3", "--episodes", "2", "--k", "1", "0", "1"]
    for price, out in (("0.3", "same"), ("0.9", "dear")):
        code = main([*command, "--set", f"environment.cost_weight={price}", "--out", str(tmp_path / out)])
        assert code == 0
    scored = RunDirectory.open(tmp_path / "dear").experiment()
    assert scored.environment.cost_weight == 0.9
    assert (scored.evaluation.k, scored.evaluation.tasks, scored.evaluation.episodes) == ((1, 0), 3, 2)
    assert json.loads((tmp_path / "dear" / "provenance.json").read_text())["versions"] == versions()
    study = read_study([tmp_path / "same", tmp_path / "dear"])
    assert set(study.settings["environment.cost_weight"]) == {0.3, 0.9}
    # There is nothing in it to be gone on with.
    assert main(["train", "--resume", str(tmp_path / "dear")]) == 2
    assert "must be the folder of a run, with its checkpoints or its principal, got" in capsys.readouterr().err


def test_a_run_that_ended_before_its_first_checkpoint_is_called_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory.create(tmp_path / "run", tiny())
    assert main(["train", "--preset", "mermaide", "--out", str(tmp_path / "run")]) == 2
    assert "the folder of a run without a checkpoint (unless it is under way, delete it, or" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pickles")
def test_a_run_a_checkpoint_and_an_export_hold_the_same_principal(trained_run: TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(trained_run.path / "principal", tmp_path / "copied")
    latest = RunDirectory.open(trained_run.path).latest_checkpoint()
    assert latest is not None
    experiment, arrays = load_principal(trained_run.path)
    assert experiment == trained_run.experiment
    for where in (latest, tmp_path / "copied"):
        _, others = load_principal(where)
        assert others.keys() == arrays.keys()
        assert all(np.array_equal(others[name], arrays[name]) for name in arrays)


def test_an_export_deletes_nothing_of_the_folder_that_it_is_given(
    trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".git").mkdir()
    assert main(["export", str(trained_run.path), "--out", str(tmp_path)]) == 2
    assert f"--out must be a new or empty folder, got {tmp_path}, which holds .git" in capsys.readouterr().err
    assert (tmp_path / ".git").is_dir()


def test_there_must_be_room_for_all_that_are_trained_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, each might else get some of its actors and wait for the rest for ever."""
    order: list[object] = []

    @contextlib.contextmanager
    def ready(bundles: Sequence[Any], console: object, storage: str | None = None) -> Iterator[None]:
        order.append(len(bundles))
        yield

    monkeypatch.setattr("mermaide_ray.cluster.join.ray_running", ready)
    monkeypatch.setattr(training, "meta_train", lambda run, *_: order.append(run.path.name))
    monkeypatch.setattr(training._Companions, "__enter__", lambda self: order.append("others") or self)
    monkeypatch.setattr(training._Companions, "wait", lambda *_: None)
    experiment = tiny(env_runners={"num_env_runners": 3})
    runs = [RunDirectory.create(tmp_path / name, experiment) for name in ("main", "one", "two")]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    training._train_side_by_side(runs[0], runs[1:], Console(file=io.StringIO()))
    assert order == [9, "others", "main"]
    order.clear()
    for none in ("", "local", None):  # else each has a Ray of its own
        monkeypatch.delenv("RAY_ADDRESS") if none is None else monkeypatch.setenv("RAY_ADDRESS", none)
        training._train_side_by_side(runs[0], runs[1:], Console(file=io.StringIO()))
        assert order == ["others", "main"]
        order.clear()
    training._train_side_by_side(runs[0], [], Console(file=io.StringIO()))
    assert order == ["others", "main"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--out"], "--out must be a new or empty folder, got"),
        (["evaluate", "{run}", "--out"], "--out must be a new or empty folder, got"),
        (["export", "{run}", "--out"], "--out must be a new or empty folder, got"),
    ],
)
def test_folder_that_is_in_use_is_refused(
    trained_run: TrainedRun, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained_run.path.rglob("*")}
    filled = [argument.format(run=trained_run.path) for argument in arguments]
    assert main([*filled, str(trained_run.path)]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in trained_run.path.rglob("*")} == before


@pytest.mark.parametrize("command", ["train", "stock-ppo"])
def test_a_learner_is_refused_a_gpu_that_is_not_there(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu = ["--set", "env_runners.num_gpus_per_learner=1"]
    assert main([command, *gpu, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "env_runners.num_gpus_per_learner must be 0 where Torch finds no GPU, got 1" in told
    assert not (tmp_path / "run").exists()


def test_baseline_that_changes_the_game_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), "--baseline", "paper"]) == 2
    assert "must be a preset that keeps the game and the agents" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--set", "name=never"], ["--set", "name=rl2", "--baseline", "rl2"], ["--baseline", "mermaide_learner"]],
)
def test_methods_that_the_table_could_not_tell_apart_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), *arguments]) == 2
    assert "methods must have names of their own, got" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_companion_ends_with_the_process_that_started_it(trained_run: TrainedRun, tmp_path: Path) -> None:
    """However that ended: a resumed run starts its own in the same folder."""
    run = RunDirectory.create(tmp_path / "run", trained_run.experiment)
    command = [sys.executable, "-m", "mermaide_ray.training", str(run.path), "--companion"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 1
    assert run.read_progress() == []


def test_who_interrupts_a_run_is_told_how_to_go_on_and_from_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: RunDirectory, *_: Any) -> None:
        if run.experiment().seed == 1:
            run.save_checkpoint(3, lambda _: None)
        if run.experiment().seed == 2:
            run.principal.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("mermaide_ray.training._train_side_by_side", interrupted)
    for seed, how in (
        (0, "no checkpoint is there yet (one each 60 s), so the run begins again"),
        (1, "the run goes on"),
        (2, "the run goes on"),
    ):
        run = tmp_path / f"run-{seed}"
        assert main(["train", "--seed", str(seed), "--out", str(run)]) == 130
        assert capsys.readouterr().err == f"mermaide: interrupted; {how} with: mermaide train --resume {run}\n"


def test_resume_refuses_a_baseline_that_the_run_does_not_have(
    trained_run: TrainedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(trained_run.path), "--baseline", "reinforce"]) == 2
    assert "one that the resumed run already has, got 'reinforce'" in capsys.readouterr().err


def test_resume_refuses_other_settings_and_keeps_what_is_there(
    trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run.path, run)
    shutil.rmtree(run / "baselines")
    before = {path.name: path.read_bytes() for path in (run / "principal").iterdir()}
    config = run / "config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace("entropy_weight: ", "entropy_weight: 1"), encoding="utf-8"
    )
    assert main(["train", "--resume", str(run)]) == 2
    assert "must keep its settings, but `training.entropy_weight` of" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (run / "principal").iterdir()} == before


def test_a_run_goes_on_with_other_runners_to_the_same_numbers(tmp_path: Path, local_ray: None) -> None:
    """Who does the work may change between its two halves."""
    told = []
    for name, runners in (("same", 0), ("other", 1)):
        run = RunDirectory.create(tmp_path / name, tiny())
        with run.alone(), Session(run, 0.0) as session:
            session.iterate()
        changed = tiny(env_runners={"num_env_runners": runners})
        run.config.write_text(yaml.safe_dump(changed.to_dict()), encoding="utf-8")
        with run.alone(), Session(run, 0.0) as session:
            assert session._algorithm.env_runner_group.num_remote_env_runners() == runners
            told.append([session.iterate()["principal/return"] for _ in range(3)])
    assert told[0] == told[1]


def test_a_checkpoint_is_not_blamed_for_what_cannot_start(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny())
    with run.alone(), Session(run, 0.0) as session:
        session.iterate()

    def failing(algorithm: Mermaide, path: str) -> None:
        raise RunFault("the sampling actors must start, but one did not")

    monkeypatch.setattr(Mermaide, "restore_from_path", failing)
    with run.alone(), pytest.raises(RunFault, match="the sampling actors must start"):
        Session(run, 0.0)


@pytest.mark.parametrize("fails", ["progress", "board"])
def test_a_session_that_cannot_begin_leaves_no_algorithm_behind(
    fails: str, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of a sweep goes on with other runs in the same process, which may want its actors' places."""
    run = RunDirectory.create(tmp_path / "run", tiny())
    if fails == "progress":
        run.progress.write_text("half\n", encoding="utf-8")
        error: type[Exception] = InputError
    else:
        full = OSError(28, "No space left on device")
        monkeypatch.setattr("mermaide_ray.tensorboard.Board.begin", Mock(side_effect=full))
        error = OSError
    stop, ended = Mermaide.stop, []
    monkeypatch.setattr(Mermaide, "stop", lambda algorithm: (ended.append("algorithm"), stop(algorithm)))
    with run.alone(), pytest.raises(error):
        Session(run, 0.0)
    assert ended == ["algorithm"]
