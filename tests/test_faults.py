"""What goes wrong: crashed runners, numbers that are none, kill -9, full disks, broken files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TrainedRun, tiny
from numpy.typing import NDArray
from ray.rllib.core.learner.learner_group import LearnerGroup
from safetensors.numpy import load_file, save_file

import mermaide_ray.dispatch
from mermaide_ray.algorithm import Mermaide, MermaideConfig, lost
from mermaide_ray.cli import main
from mermaide_ray.config_file import explained_yaml
from mermaide_ray.errors import InputError, RunFault, WorkersLost
from mermaide_ray.learners.learner import MermaideLearner
from mermaide_ray.rollout import LockstepEnvRunner
from mermaide_ray.storage import RunDirectory, load_principal

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray", "undrawn")]

TIMINGS = ("throughput/env_steps_per_s", "throughput/sample_s", "throughput/update_s")


def _weights_after(iterations: int) -> dict[str, NDArray[Any]]:
    """Of a run that nothing disturbs."""
    algorithm = MermaideConfig.of(tiny()).build_algo()
    try:
        for _ in range(iterations):
            algorithm.train()
        return algorithm.principal().arrays()
    finally:
        algorithm.stop()


# Runners. ------------------------------------------------------------------------------------------------------------


def test_crashed_runners_change_nothing() -> None:
    """One dies between two iterations, the other in the middle of sampling: the work is done by whoever is left."""
    algorithm = MermaideConfig.of(tiny(env_runners={"num_env_runners": 2})).build_algo()
    group = algorithm.env_runner_group

    def die(runner: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_while_sampling(runner: Any) -> None:
        runner._meet = lambda *args: os.kill(os.getpid(), signal.SIGKILL)

    def trained() -> None:
        nonlocal iterations
        algorithm.train()
        iterations += 1

    iterations = 0
    try:
        trained()
        group.foreach_env_runner(die, local_env_runner=False, remote_worker_ids=[1])
        trained()
        group.foreach_env_runner(die_while_sampling, local_env_runner=False, remote_worker_ids=[2])
        trained()
        # Ray starts them again, and they take part again.
        patience = time.monotonic() + 40
        while group.num_healthy_remote_workers() < 2 and time.monotonic() < patience:
            time.sleep(0.5)
            algorithm.restore_env_runners(group)
        assert group.num_healthy_remote_workers() == 2
        trained()
        weights = algorithm.principal().arrays()
    finally:
        algorithm.stop()
    for name, expected in _weights_after(iterations).items():
        np.testing.assert_allclose(weights[name], expected, rtol=0, atol=1e-5, err_msg=name)


def _train_twice(runner: type[LockstepEnvRunner]) -> None:
    experiment = tiny(env_runners={"num_env_runners": 1, "restarts": 1})
    algorithm = MermaideConfig.of(experiment).env_runners(env_runner_cls=runner).build_algo()
    try:
        algorithm.train()
        algorithm.train()
    finally:
        algorithm.stop()


def _fault_of(runner: type[LockstepEnvRunner]) -> str:
    """What the driver says when all runners are of this class."""
    started = time.monotonic()
    with pytest.raises(RunFault) as fault:
        _train_twice(runner)
    assert time.monotonic() - started < 60
    return str(fault.value)


def test_runner_that_always_fails_stops_the_run_with_its_own_traceback() -> None:
    class Failing(LockstepEnvRunner):
        def sample(self, **kwargs: Any) -> Any:
            raise ValueError("the dice fell off the table")

    message = _fault_of(Failing)
    assert "Traceback" in message
    assert "ValueError: the dice fell off the table" in message


def test_runner_that_cannot_start_stops_the_run_with_its_own_traceback() -> None:
    class Stillborn(LockstepEnvRunner):
        def make_module(self) -> None:
            if self.worker_index:
                raise ValueError("no such module on this machine")
            super().make_module()

    message = _fault_of(Stillborn)
    end = "ValueError: no such module on this machine"
    first, *rest = message.splitlines()
    assert first == f"the sampling actors must start, but one did not: {end}"
    assert rest[-1] == end


def test_settings_that_a_runner_refuses_stop_the_run_in_its_words() -> None:
    class Refusing(LockstepEnvRunner):
        def make_module(self) -> None:
            if self.worker_index:
                raise InputError("agent family 'my_lab:MINE' must be importable from /here")
            super().make_module()

    with pytest.raises(InputError) as refused:
        _train_twice(Refusing)
    assert str(refused.value) == (
        "sampling actors must take the settings on every node, but one does not: "
        "agent family 'my_lab:MINE' must be importable from /here"
    )


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            InputError("no 'my_lab' here"),
            "learners must take the settings on every node, but one does not: no 'my_lab' here",
        ),
        (ValueError("no luck"), "the learners must start, but one did not: ValueError: no luck"),
    ],
)
def test_learner_that_cannot_be_built_stops_the_run_in_its_words_and_is_ended_while_ray_is_up(
    raised: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLlib's group of learners ends them in its destructor: after Ray's end, it would start another Ray for that."""

    class Refusing(MermaideLearner):
        def build(self) -> None:
            raise raised

    shutdown, ended = LearnerGroup.shutdown, []
    monkeypatch.setattr(LearnerGroup, "shutdown", lambda group: (ended.append("group"), shutdown(group)))
    config = MermaideConfig.of(tiny(env_runners={"num_learners": 1})).training(learner_class=Refusing)
    with pytest.raises((InputError, RunFault)) as fault:
        config.build_algo()
    assert ended == ["group"]
    assert type(fault.value) is (InputError if isinstance(raised, InputError) else RunFault)
    assert str(fault.value).splitlines()[0] == told


def test_runner_that_always_crashes_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mermaide_ray.dispatch, "REVIVAL_SECONDS", 5.0)

    class Crashing(LockstepEnvRunner):
        def sample(self, **kwargs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    message = _fault_of(Crashing)
    assert "one of 1 sampling actors must bring what it sampled" in message
    assert "s none did" in message


def test_learner_that_dies_stops_the_run_with_one_sentence() -> None:
    """The second of two: what is heard first is that the first one's connection to it broke."""
    algorithm = MermaideConfig.of(tiny(env_runners={"num_learners": 2})).build_algo()

    def die_in_the_next_update(learner: Any) -> None:
        learner._meta_update = lambda *args: os.kill(os.getpid(), signal.SIGKILL)

    try:
        algorithm.train()
        algorithm.learner_group.foreach_learner(die_in_the_next_update, remote_actor_ids=[1])
        with pytest.raises(WorkersLost, match="every actor must answer, but one is gone") as fault:
            algorithm.train()
        assert "\n" not in str(fault.value)
        with pytest.raises(WorkersLost, match="a learner that failed before"):  # not with half of the tasks
            algorithm.train()
    finally:
        algorithm.stop()


@pytest.mark.parametrize(
    ("gone", "told"), [(RuntimeError(), "RuntimeError"), (RuntimeError("\n no word\nat all"), "no word")]
)
def test_an_actor_that_is_gone_without_a_word_is_told_all_the_same(gone: Exception, told: str) -> None:
    assert str(lost(gone)).startswith(f"every actor must answer, but one is gone: {told} (a run goes on")


def test_checkpoint_without_a_learner_s_part_is_none(tmp_path: Path) -> None:
    algorithm = MermaideConfig.of(tiny(env_runners={"num_learners": 1})).build_algo()

    def save_nothing(learner: Any) -> None:
        learner.save_to_path = lambda **given: None

    try:
        algorithm.learner_group.foreach_learner(save_nothing)
        with pytest.raises(WorkersLost, match="a checkpoint must be whole, but a learner wrote no "):
            algorithm.save_to_path(str(tmp_path / "checkpoint"))
    finally:
        algorithm.stop()


def test_sample_from_old_weights_stops_the_run() -> None:
    class Stubborn(LockstepEnvRunner):
        def set_state(self, state: dict[str, Any]) -> None:
            if not self.worker_index:
                super().set_state(state)

    assert "must sample with the weights that it is given, version" in _fault_of(Stubborn)


# Numbers. ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learners", [0, 1])
def test_loss_that_is_no_number_stops_the_run_before_a_step_is_taken(learners: int) -> None:
    algorithm = MermaideConfig.of(tiny(env_runners={"num_learners": learners})).build_algo()

    def spoil(learner: Any) -> None:
        learner.module["principal"].unwrapped().weights()["core_bias"].data[0] = float("nan")

    try:
        algorithm.train()
        algorithm.learner_group.foreach_learner(spoil)
        algorithm._sync_weights()
        before = algorithm.principal().arrays()
        with pytest.raises(RunFault) as fault:
            algorithm.train()
        message = str(fault.value)
        assert "the meta-gradient must be finite, got nan" in message
        assert "this step was not taken" in message
        assert "\n" not in message
        if not learners:  # with actors, RLlib takes the one that failed out of service
            algorithm._sync_weights()
            after = algorithm.principal().arrays()
            assert np.isnan(before["core_bias"]).sum() == 1
            for name, value in before.items():
                np.testing.assert_array_equal(after[name], value)
    finally:
        algorithm.stop()


def test_run_that_diverges_ends_with_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = _config(tmp_path, training={"meta_lr": 1e30, "env_steps": 1920})
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "run")]) == 1
    assert _last_line(capfd).startswith("mermaide: error: the meta-gradient must be finite, got")
    assert not (tmp_path / "run" / "principal").exists()
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]


# kill -9. ------------------------------------------------------------------------------------------------------------


def _config(folder: Path, **sections: Any) -> Path:
    config = folder / "tiny.yaml"
    config.write_text(explained_yaml(tiny(**sections)), encoding="utf-8")
    return config


def _last_line(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


def _progress(run: Path) -> list[dict[str, float]]:
    told = RunDirectory(run).read_progress()
    return [{key: value for key, value in each.items() if key not in TIMINGS} for each in told]


def test_run_killed_and_resumed_ends_like_one_that_was_not(trained_run: TrainedRun, tmp_path: Path) -> None:
    """kill -9 of the driver between two of many checkpoints; then --resume."""
    config, run = _config(tmp_path, training={"env_steps": 24 * 240}), tmp_path / "run"
    command = [sys.executable, "-m", "mermaide_ray", "train", "--config", str(config), "--out", str(run)]
    environment = {**os.environ, "MERMAIDE_CHECKPOINT_SECONDS": "0.3", "OMP_NUM_THREADS": "1"}
    total = trained_run.experiment.num_iterations
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        patience = time.monotonic() + 120
        while len(_progress(run)) < 5 or RunDirectory(run).latest_checkpoint() is None:
            assert process.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    latest = RunDirectory(run).latest_checkpoint()
    assert latest is not None
    reached = RunDirectory(run).check_checkpoint(latest)
    assert 0 < reached < total
    assert not (run / "principal").exists()

    assert main(["train", "--resume", str(run)]) == 0
    assert len(_progress(run)) == total
    assert _progress(run) == _progress(trained_run.path)
    _, mine = load_principal(run)
    _, theirs = load_principal(trained_run.path)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    rows = [pd.read_parquet(each / "rows.parquet") for each in (run, trained_run.path)]
    mine_rows, their_rows = (each[each["method"] == "mermaide"].reset_index(drop=True) for each in rows)
    pd.testing.assert_frame_equal(mine_rows, their_rows)


def test_interval_of_checkpoints_must_be_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERMAIDE_CHECKPOINT_SECONDS", "often")
    assert main(["train", "--config", str(_config(tmp_path)), "--out", str(tmp_path / "run")]) == 2
    assert "MERMAIDE_CHECKPOINT_SECONDS must be a number of seconds >= 0, got 'often'" in capsys.readouterr().err


# Disks. --------------------------------------------------------------------------------------------------------------


def test_unwritable_folder_is_one_sentence(
    trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below a regular file nobody can write, not even root."""
    (tmp_path / "file").write_text("")
    below, run = str(tmp_path / "file" / "run"), str(trained_run.path)
    for arguments in (["train"], ["export", run], ["evaluate", run, "--tasks", "2", "--episodes", "1", "--k", "0"]):
        assert main([*arguments, "--out", below]) == 1
        error = capsys.readouterr().err
        assert error.startswith("mermaide: error: ")
        assert str(tmp_path / "file") in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk_leaves_whole_checkpoints_to_resume_from(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint finds no room, half-way: the first stays, nothing else does, and the run says so."""
    config, run = _config(tmp_path), tmp_path / "run"
    monkeypatch.setenv("MERMAIDE_CHECKPOINT_SECONDS", "0")
    save, saved = Mermaide.save_to_path, []

    def full(self: Mermaide, path: str) -> Any:
        if saved:
            (Path(path) / "learner_group").mkdir(parents=True)
            (Path(path) / "learner_group" / "half").write_text("x")
            raise OSError(28, "No space left on device", path)
        saved.append(path)
        return save(self, path)

    monkeypatch.setattr(Mermaide, "save_to_path", full)
    assert main(["train", "--config", str(config), "--out", str(run)]) == 1
    assert _last_line(capfd).startswith("mermaide: error: [Errno 28] No space left on device")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["iteration_000001"]
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]
    assert not (run / "principal").exists()
    monkeypatch.setattr(Mermaide, "save_to_path", save)
    assert main(["train", "--resume", str(run)]) == 0
    assert len(_progress(run)) == tiny().num_iterations


# Broken files. -------------------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _set(path: Path, section: str, key: str, value: Any) -> None:
    settings = yaml.safe_load(path.read_text())
    settings[section][key] = value
    path.write_text(yaml.safe_dump(settings))


def _latest(run: Path) -> Path:
    latest = RunDirectory(run).latest_checkpoint()
    assert latest is not None
    return latest


LEARNER = "rllib/learner_group/learner"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda run: _truncate(_latest(run) / LEARNER / "rl_module/principal/module_state.pkl"),
            "must be complete, got",
        ),
        (lambda run: _truncate(_latest(run) / LEARNER / "state.pkl"), "must be complete, got"),
        (lambda run: _truncate(_latest(run) / "rllib/algorithm_state.pkl"), "must be complete, got"),
        (lambda run: shutil.rmtree(_latest(run) / "rllib"), "must be complete, got"),
        (lambda run: _truncate(_latest(run) / "meta.json"), "must hold a complete meta.json"),
        (lambda run: (_latest(run) / "meta.json").unlink(), "must hold meta.json"),
        (lambda run: _edit(_latest(run) / "meta.json", format=2), "must have format 1, got 2"),
        (lambda run: _edit(_latest(run) / "meta.json", versions={"ray": "1.0"}), "with the ray that wrote it (1.0)"),
        (lambda run: _set(run / "config.yaml", "training", "gamma", 0.5), "settings, but `training.gamma` of"),
        (lambda run: (run / "config.yaml").write_text("seeed: 1"), "has no key 'seeed' (did you mean 'seed'?)"),
    ],
)
def test_broken_run_is_not_resumed(
    trained_run: TrainedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Any],
    expected: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run.path, run, ignore=shutil.ignore_patterns("baselines", "figures", "*.parquet"))
    shutil.rmtree(run / "principal")  # with it, nothing would be left to train
    spoil(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(run)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mermaide: error: ")
    assert expected in error
    assert str(run) in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def _other_size(principal: Path) -> None:
    about = json.loads((principal / "principal.json").read_text())
    about["experiment"]["world_model"]["hidden_size"] += 1
    (principal / "principal.json").write_text(json.dumps(about))


def _without_a_rate(principal: Path) -> None:
    arrays = load_file(principal / "principal.safetensors")
    del arrays["log_inner_lr_core_bias"]
    save_file(arrays, principal / "principal.safetensors")


def _other_setting(principal: Path) -> None:
    about = json.loads((principal / "principal.json").read_text())
    about["experiment"]["world_model"]["layers"] = 2
    (principal / "principal.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: _truncate(folder / "principal.safetensors"), "must be a complete safetensors file"),
        (lambda folder: (folder / "principal.safetensors").unlink(), "must be a complete safetensors file"),
        (lambda folder: _truncate(folder / "principal.json"), "must hold a complete principal.json"),
        (lambda folder: _edit(folder / "principal.json", format=2), "must have format 1, got 2"),
        (_other_size, "arrays must fit its settings: core_bias must have shape (27,), got (24,)"),
        (_without_a_rate, "arrays must fit its settings: log_inner_lr_core_bias must have shape (), got none"),
        (_other_setting, "section `world_model` has no key 'layers'"),
    ],
)
def test_broken_principal_is_not_scored(
    trained_run: TrainedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Any],
    expected: str,
) -> None:
    principal = tmp_path / "principal"
    shutil.copytree(trained_run.path / "principal", principal)
    spoil(principal)
    assert main(["evaluate", str(principal), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mermaide: error: ")
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
