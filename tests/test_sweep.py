"""`mermaide sweep` from beginning to end on tiny runs: what it leaves, what it does twice (nothing), what may fail."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import yaml
from conftest import SECRET, tiny
from pyarrow.fs import FileSelector, FileSystem
from ray import tune
from ray.exceptions import ActorDiedError, RayTaskError
from rich.console import Console
from sweeping import IN_TURN, held, plan_from, sorted_rows, sweep, told_by, write_sweep
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from mermaide_ray.baselines import BASELINES
from mermaide_ray.cli import main
from mermaide_ray.disk import one_process
from mermaide_ray.errors import InputError, RunFault, WorkersLost
from mermaide_ray.experiment import Experiment
from mermaide_ray.metrics import ROW_METRICS
from mermaide_ray.session import Session
from mermaide_ray.storage import load_principal
from mermaide_ray.sweep.file import dump_sweep, load_sweep
from mermaide_ray.sweep.job import _alone, _begin, _conclude, _note_other_code
from mermaide_ray.sweep.plan import Plan
from mermaide_ray.sweep.results import assemble
from mermaide_ray.sweep.run import SweepRun, line_of, origin_of
from mermaide_ray.sweep.status import read_statuses, unfinished
from mermaide_ray.sweep.store import Store
from mermaide_ray.sweep.trainable import WORST, SweepTrial

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray", "no_figures")]


@pytest.fixture(scope="module")
def swept(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep. Read it, don't change it."""
    folder = tmp_path_factory.mktemp("swept")
    assert main(["sweep", str(write_sweep(folder)), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_a_sweep_leaves_everything_that_it_promises(swept: Path) -> None:
    assert {path.name for path in swept.iterdir()} >= {
        "sweep.yaml",
        "provenance.json",
        "rows.parquet",
        "calibration.parquet",
        "profiles.parquet",
        "progress.parquet",
        "trials.parquet",
        "runs",
        "report",
    }
    names = {f"cost_weight={cost},seed={seed}" for cost in ("0.1", "1") for seed in (0, 1)}
    assert {path.name for path in (swept / "runs").iterdir()} == names
    for name in names:
        run = swept / "runs" / name
        assert not (run / "checkpoints").exists()
        assert load_principal(run)[0].environment.cost_weight == float(name.split(",")[0].split("=")[1])
        assert json.loads((run / "provenance.json").read_text())["command"] == sys.argv
        assert json.loads((run / "status.json").read_text())["trial"] == name.rpartition(",")[0]
    assert not (swept / "failures").exists()


def test_rows_hold_every_run_and_each_game_s_baselines_once(swept: Path) -> None:
    rows = sorted_rows(swept)
    assert {metric.key for metric in ROW_METRICS} <= set(rows.columns)
    # 2 conditions x 6 tasks x (2 costs x 2 seeds x 2 K + 2 costs x 2 rules).
    assert len(rows) == 2 * 6 * (8 + 4)
    key = ["trial", "method", "seed", "condition", "k", "task", "setting.environment.cost_weight"]
    assert not rows.duplicated(key).any()
    fixed = rows[rows["method"].isin(BASELINES)]
    assert set(fixed["trial"]) == {""}
    games = fixed.groupby(["method", "condition"])["setting.environment.cost_weight"].unique()
    assert all(sorted(costs) == [0.1, 1.0] for costs in games)
    assert set(rows["condition"]) == {"validation", "test"}


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_a_sweep_is_the_run_that_train_makes(swept: Path, tmp_path: Path) -> None:
    config = swept / "runs" / "cost_weight=1,seed=1" / "config.yaml"
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "run")]) == 0
    mine = pd.read_parquet(tmp_path / "run" / "rows.parquet")
    mine = mine[~mine["method"].isin(BASELINES)].reset_index(drop=True)
    theirs = pd.read_parquet(config.parent / "rows.parquet")
    # Beside rules without a world model, its columns become float64 in the run's own table.
    pd.testing.assert_frame_equal(mine, theirs, check_dtype=False)


def test_progress_and_trials_tell_what_tensorboard_shows(swept: Path) -> None:
    progress, trials = sorted_progress(swept), pd.read_parquet(swept / "trials.parquet")
    per_run = progress.groupby(["trial", "seed"]).size()
    assert (per_run == 8).all()
    assert len(per_run) == len(trials) == 4
    assert {"principal/return", "validation/score_k1", "setting.environment.cost_weight"} <= set(progress.columns)
    assert set(trials["status"]) == {"done"}
    assert (trials["env_steps"] == 1920).all()
    assert (trials["cpu_s"] > 0).all()


def test_tensorboard_shows_the_question_and_what_is_swept_and_no_number_that_the_tables_lack(swept: Path) -> None:
    events = EventAccumulator(str(swept / "runs" / "cost_weight=1,seed=1")).Reload()
    tables = (pd.read_parquet(swept / f"{name}.parquet") for name in ("progress", "trials"))
    assert set(events.Tags()["scalars"]) <= {column for table in tables for column in table.columns}
    about = events.Tensors("about/text_summary")[0].tensor_proto.string_val[0].decode()
    assert about.startswith("Does a higher cost make the principal intervene less?\n")
    start = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    shown = metadata.parse_session_start_info_plugin_data(start).hparams
    # A number, so that a range of it can be asked for.
    assert shown["environment.cost_weight"].number_value == 1.0
    assert set(shown) == {"method", "environment.cost_weight", "seed"}


def sorted_progress(folder: Path) -> pd.DataFrame:
    timed = ["throughput/env_steps_per_s", "throughput/sample_s", "throughput/update_s"]
    progress = pd.read_parquet(folder / "progress.parquet").drop(columns=timed)
    return progress.sort_values(["trial", "method", "seed", "iteration"], ignore_index=True)


def test_the_same_command_again_redoes_nothing(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (swept / "runs").rglob("*") if path.is_file()}
    rows = sorted_rows(swept)
    assert sweep(swept.parent / "tiny.yaml", "--out", swept) == 0
    assert {path: path.stat().st_mtime_ns for path in (swept / "runs").rglob("*") if path.is_file()} == before
    pd.testing.assert_frame_equal(sorted_rows(swept), rows)
    assert "4 runs done, 0 failed, 0 stopped; 144 rows" in capsys.readouterr().out


def test_resume_needs_no_file(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = sorted_rows(swept)
    assert sweep("--resume", swept) == 0
    pd.testing.assert_frame_equal(sorted_rows(swept), rows)
    capsys.readouterr()
    assert sweep("--resume", tmp_path) == 2
    assert f"the folder of a sweep must hold sweep.yaml, got {tmp_path}" in capsys.readouterr().err
    assert sweep("--resume", swept, "--scale", "smoke") == 2
    assert sweep() == 2


def test_another_sweep_is_refused_the_folder(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(write_sweep(tmp_path, seeds=[1, 2]), "--out", swept) == 2
    assert "a sweep that goes on must stay the same, but `seeds` is not that of" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert sweep(write_sweep(tmp_path), "--out", tmp_path / "full") == 2
    assert "which is no sweep's" in capsys.readouterr().err


def test_a_sweep_may_go_on_with_other_resources(swept: Path, tmp_path: Path) -> None:
    config = write_sweep(tmp_path, resources={"seeds_per_trial": 1})
    rows = sorted_rows(swept)
    assert sweep(config, "--out", swept) == 0
    pd.testing.assert_frame_equal(sorted_rows(swept), rows)


def test_rules_may_change_until_a_run_is_scored_beside_them(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_sweep(tmp_path, baselines=["never", "always"])
    assert sweep(other, "--out", swept) == 2
    assert "must stay the same, but `baselines` is not that of" in capsys.readouterr().err
    plan, store = held(write_sweep(tmp_path, "before.yaml", seeds=1), tmp_path / "out")
    SweepRun(plan, plan.settings[0], 0, store)._write_status("failed", {}, "no such rule")
    store.write("baselines/game.rows.parquet", b"of other rules")
    _begin(store, load_sweep(write_sweep(tmp_path, "before.yaml", seeds=1, baselines=["never", "always"])))
    assert b"always" in (store.read("sweep.yaml") or b"")
    assert store.names("baselines") == []


def test_a_sweep_may_go_on_with_more_seeds(swept: Path, tmp_path: Path) -> None:
    out = shutil.copytree(swept, tmp_path / "out")
    rows, name = sorted_rows(out), "cost_weight=1,seed=1"
    before = (out / "runs" / name / "rows.parquet").stat().st_mtime_ns
    assert sweep(write_sweep(tmp_path, seeds=3, resources=IN_TURN), "--out", out) == 0
    grown = sorted_rows(out)
    assert set(grown["seed"]) == {0, 1, 2}
    pd.testing.assert_frame_equal(grown[grown["seed"] < 2].reset_index(drop=True), rows)
    assert (out / "runs" / name / "rows.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("earlier", "later", "goes_on"),
    [
        ({"seeds": 1}, {"seeds": 2}, True),
        ({"seeds": 2}, {"seeds": 1}, False),
        ({"tune": {"samples": 2}}, {"tune": {"samples": 3, "max_failures": 0}}, True),
        ({"tune": {"samples": 3}}, {"tune": {"samples": 2}}, False),
        ({"tune": {"env_steps": 5000}}, {"tune": {"env_steps": 9000}}, True),
        ({"tune": {"env_steps": 9000}}, {"tune": {"env_steps": 5000}}, False),
        ({"tune": {"samples": 2}}, {"tune": {"samples": 3, "seed": 1}}, False),
        # What a scheduler has compared, it has compared with all its seeds.
        ({"tune": {"scheduler": "asha"}, "seeds": 1}, {"tune": {"scheduler": "asha"}, "seeds": 2}, False),
    ],
)
def test_a_sweep_may_grow_by_what_leaves_its_runs_as_they_are(
    earlier: dict[str, Any], later: dict[str, Any], goes_on: bool, tmp_path: Path
) -> None:
    search = {"training.gamma": {"uniform": [0.9, 1.0]}}
    _, store = held(write_sweep(tmp_path, search=search, answer=None, **earlier), tmp_path / "out")
    changed = load_sweep(write_sweep(tmp_path, search=search, answer=None, **later))
    with nullcontext() if goes_on else pytest.raises(InputError, match=r"must stay the same.*`seeds`, .* may grow"):
        _begin(store, changed)


@pytest.mark.parametrize(
    ("conditions", "key", "then", "told"),
    [
        # As an older version has left it, which knew no rehearsals.
        ({"planned": {"settings": {"evaluation": {"planning": True}}}}, "evaluation.rehearsals", None, 0),
        ({"plain": {}}, "evaluation.rehearsals", None, None),  # where nothing is planned they are of no use
        ({"plain": {}}, "evaluation.episodes", 16, 16),
        ({"four": {"settings": {"evaluation": {"episodes": 4}}}}, "evaluation.episodes", 16, None),  # of each run
        ({"plain": {}}, "training.gamma", 0.5, 0.5),
        ({"plain": {}}, "env_runners.restarts", 7, None),
    ],
)
def test_no_runs_are_added_to_others_that_were_scored_otherwise(
    conditions: dict[str, Any], key: str, then: float | None, told: float | None, tmp_path: Path
) -> None:
    config = write_sweep(tmp_path, seeds=1, answer=None, conditions=conditions)
    plan, store = held(config, tmp_path / "out")
    for setting in plan.settings:
        run = SweepRun(plan, setting, 0, store)
        run._write_status("done", {}, None)
        settings, (section, name) = setting.with_seed(0).to_dict(), key.split(".")
        settings[section][name] = then
        if then is None:
            del settings[section][name]
        store.write(f"runs/{run.name}/config.yaml", yaml.safe_dump(settings).encode())
    before = store.read("sweep.yaml")
    more = load_sweep(write_sweep(tmp_path, seeds=2, answer=None, conditions=conditions))
    refused = pytest.raises(InputError, match=rf"but `{key}` was {told} \(.*\) and would be .*--out, and --principals")
    with nullcontext() if told is None else refused:
        _begin(store, more)
    assert (store.read("sweep.yaml") == before) == (told is not None)
    store.write("sweep.yaml", before or b"")
    _begin(store, plan.sweep)  # where nothing is added, nothing is mixed


def test_what_a_population_has_changed_is_no_other_setting(tmp_path: Path) -> None:
    search = {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}}
    tune = {"scheduler": "pbt", "samples": 2}
    config = write_sweep(tmp_path, seeds=1, search=search, tune=tune, answer=None)
    plan, store = held(config, tmp_path / "out")
    run = SweepRun(plan, plan.setting({"training.meta_lr": "0.001"}), 0, store)
    run._write_status("done", {}, None)
    settings = run._experiment.to_dict()
    for section, key, value in (("training", "meta_lr", 0.002), ("evaluation", "episodes", 16)):
        settings[section][key] = value
        store.write(f"runs/{run.name}/config.yaml", yaml.safe_dump(settings).encode())
        with nullcontext() if section == "training" else pytest.raises(InputError, match=r"episodes` was 16 \("):
            _begin(store, plan.sweep)


def test_who_does_the_work_may_change_in_between(tmp_path: Path) -> None:
    plan, store = held(write_sweep(tmp_path, seeds=1, answer=None), tmp_path / "out")
    run = SweepRun(plan, plan.settings[0], 0, store)
    told = [run.advance()["principal/return"]]
    run.close()
    settings = tiny(env_runners={"restarts": 7}).to_dict()
    del settings["name"], settings["seed"]
    other = write_sweep(tmp_path, seeds=1, answer=None, settings=settings)
    _begin(store, load_sweep(other))
    changed = plan_from(other)
    run = SweepRun(changed, changed.settings[0], 0, store)
    assert run.advance()["principal/return"] == told[0]  # told again
    assert run._session is not None
    assert run._session.experiment.env_runners.restarts == 7
    run.close()
    settings["training"]["gamma"] = 0.5
    longer = plan_from(write_sweep(tmp_path, seeds=1, answer=None, settings=settings))
    with pytest.raises(InputError, match=r"must keep its settings, but `training.gamma` of the sweep is not that of"):
        SweepRun(longer, longer.settings[0], 0, store).advance()


def test_going_on_with_other_code_is_put_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "out"))
    for _ in range(2):
        _begin(store, load_sweep(write_sweep(tmp_path, seeds=1)))
        _note_other_code(store)
    begun = origin_of(store)
    assert "continued" not in json.loads(store.read("provenance.json") or b"")
    monkeypatch.setattr("mermaide_ray.provenance.provenance", lambda: begun | {"sources": "other", "commit": "b"})
    for _ in range(2):
        _note_other_code(store)
    record = json.loads(store.read("provenance.json") or b"")
    assert (record["sources"], [one["commit"] for one in record["continued"]]) == (begun["sources"], ["b"])
    assert origin_of(store)["commit"] == "b"


def test_checkpoints_that_others_may_have_written_are_loaded_only_if_trusted(tmp_path: Path) -> None:
    plan, store = held(write_sweep(tmp_path, seeds=1), tmp_path / "out")
    run = SweepRun(plan, plan.settings[0], 0, store)
    run.advance()
    run.close()
    checkpoint = next((tmp_path / "out" / "runs" / run.name / "checkpoints").iterdir())
    (checkpoint / "meta.json").chmod(0o666)
    with pytest.raises(InputError, match=r"everybody may write to .*meta.json \(--trust-checkpoint"):
        SweepRun(plan, plan.settings[0], 0, store).advance()
    config = {"root": store.root, "path": [], "trial": {"values": run._setting.values, "preset": None, "seeds": [0]}}
    trial = tune.with_parameters(SweepTrial, trusted=True)(config)
    assert trial._runs[0]._trusted
    assert trial.reset_config(config)
    assert trial._runs[0]._trusted
    trusting = SweepRun(plan, plan.settings[0], 0, store, trusted=True)
    trusting.advance()
    assert trusting.env_steps == run.env_steps
    trusting.close()


def test_a_sweep_that_is_killed_before_it_is_written_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, store, write = load_sweep(write_sweep(tmp_path)), Store(str(tmp_path / "out")), Store.write

    def killed(store: Store, name: str, content: bytes) -> None:
        if any(path.name != ".lock" for path in store.path.iterdir()):
            raise KeyboardInterrupt
        write(store, name, content)

    monkeypatch.setattr(Store, "write", killed)
    with _alone(store), pytest.raises(KeyboardInterrupt):
        _begin(store, sweep)
    monkeypatch.undo()
    (tmp_path / "out" / ".sweep.yaml.x").touch()
    with _alone(store):
        _begin(store, sweep)
    assert {"sweep.yaml", "provenance.json"} <= {path.name for path in store.path.iterdir()}


def test_failed_runs_are_told_beside_the_report_and_without_one(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mermaide_ray.report.document.pictures", lambda *_: ())
    claim = {"compare": "environment.cost_weight", "value": "1"}
    shutil.copytree(swept, tmp_path / "out")
    plan, store = held(write_sweep(tmp_path, answer=claim), tmp_path / "out")
    for seed in plan.sweep.seeds:
        SweepRun(plan, plan.settings[1], seed, store).fail(ValueError("no luck"))
    with pytest.raises(RunFault, match=r"2 of 4 runs failed, .*ValueError: no luck.*tries them again\)$"):
        _conclude(plan, store, Console(), with_report=True)
    assert "Not judged, since no run with environment.cost_weight = 1 is finished." in capsys.readouterr().out
    monkeypatch.setattr("mermaide_ray.report.document.read_study", Mock(side_effect=InputError("nothing to tell")))
    with pytest.raises(RunFault, match=r"2 of 4 runs failed, .*ValueError: no luck.*no report: nothing to tell$"):
        _conclude(plan, store, Console(), with_report=True)


def finish(plan: Plan, store: Store, stops: Iterator[int]) -> None:
    """Advances every run, giving up after each next number of milestones as a killed process does, until it is done."""
    for setting in plan.settings:
        for seed in plan.sweep.seeds:
            while True:
                run = SweepRun(plan, setting, seed, store)
                for _ in range(next(stops)):
                    if run.is_scored:
                        break
                    run.advance()
                if run.is_scored:
                    break
                run.close()


def test_interrupted_runs_end_as_if_they_had_not_been(swept: Path, tmp_path: Path) -> None:
    config = write_sweep(tmp_path)
    store = Store(str(tmp_path / "out"))
    store.write("sweep.yaml", (swept / "sweep.yaml").read_bytes())
    dice = random.Random(0)
    finish(plan_from(config), store, iter(lambda: dice.randint(1, 12), None))
    outcome = assemble(plan_from(config), store)
    assert outcome.count("done") == 4
    pd.testing.assert_frame_equal(sorted_rows(tmp_path / "out"), sorted_rows(swept))
    pd.testing.assert_frame_equal(sorted_progress(tmp_path / "out"), sorted_progress(swept))


def test_a_run_told_again_tells_the_same_milestones(tmp_path: Path) -> None:
    config = write_sweep(tmp_path, seeds=1)
    plan, store = plan_from(config), Store(str(tmp_path / "out"))
    first = SweepRun(plan, plan.settings[0], 0, store)
    told = [first.advance() for _ in range(3)]
    first.close()
    again = SweepRun(plan, plan.settings[0], 0, store)
    assert [again.advance()["validation/score_k1"] for _ in range(3)] == [part["validation/score_k1"] for part in told]
    again.close()


def test_a_milestone_without_a_score_is_one_of_a_trial_that_has_ended_too(tmp_path: Path) -> None:
    """Agents on which the oracle gains nothing have no score. A scheduler counts milestones."""
    config = write_sweep(tmp_path, seeds=1, answer=None, tune={"scheduler": "asha"})
    plan, store = held(config, tmp_path / "out")
    run = SweepRun(plan, plan.settings[0], 0, store)
    milestones = [{"iteration": n, "throughput/env_steps": 240.0 * n} for n in (1, 2, 3)]
    milestones[0]["validation/score_k1"] = milestones[2]["validation/score_k1"] = 0.5
    lines = "".join(json.dumps(told) + "\n" for told in milestones)
    store.write(f"runs/{run.name}/progress.jsonl", lines.encode())
    run.stop(milestones[-1])
    again = SweepRun(plan, plan.settings[0], 0, store)
    assert [again.advance() for _ in milestones] == milestones
    assert again.is_over


def test_a_milestone_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, store = held(write_sweep(tmp_path, seeds=1), tmp_path / "out")
    saved, save = [], Session.save
    monkeypatch.setattr(Session, "save", lambda session: (saved.append(session.iteration), save(session)))
    told_by(SweepRun(plan, plan.settings[0], 0, store))
    assert saved == list(range(1, 9))


def test_a_failing_trial_is_on_record_and_takes_no_other_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_sweep(tmp_path, search={"training.meta_lr": {"grid": [1e-3, 1e30]}}, seeds=1, answer=None)
    out = tmp_path / "out"
    assert sweep(config, "--out", out) == 1
    told = capsys.readouterr()
    assert "1 runs done, 1 failed, 0 stopped" in told.out
    assert "1 of 2 runs failed, the first with: RunFault: " in told.err
    report = (out / "failures" / "meta_lr=1e+30,seed=0.txt").read_text(encoding="utf-8")
    assert "Traceback" in report
    assert "meta_lr: 1.0e+30" in report
    trials = pd.read_parquet(out / "trials.parquet").set_index("trial")
    assert dict(trials["status"]) == {"meta_lr=0.001": "done", "meta_lr=1e+30": "failed"}
    assert set(sorted_rows(out)["trial"]) == {"", "meta_lr=0.001"}
    # The same command tries it again, and it alone: a cause outside the settings may be gone.
    plan = plan_from(config)
    assert unfinished(plan, read_statuses(Store(str(out)))) == [plan.trials[1]]


def test_one_seed_s_failure_leaves_the_others_of_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_sweep(tmp_path)
    store = Store(str(tmp_path / "out"))
    store.write("sweep.yaml", dump_sweep(load_sweep(config)).encode())
    advance = SweepRun.advance

    def failing(run: SweepRun) -> dict[str, float]:
        if run.seed == 1:
            raise ValueError("no luck\nat all")
        return advance(run)

    monkeypatch.setattr(SweepRun, "advance", failing)
    planned = {"values": {"environment.cost_weight": "1"}, "preset": None, "seeds": [0, 1]}
    trial = SweepTrial({"root": str(tmp_path / "out"), "path": [], "trial": planned})
    told = [trial.step() for _ in range(8)]
    assert [part["done"] for part in told] == [False] * 7 + [True]
    assert {part["failed"] for part in told} == {"ValueError: no luck"}
    assert {part["validation/score_k1"] for part in told} == {WORST}
    outcome = assemble(plan_from(config), store)
    assert (outcome.count("done"), outcome.count("failed"), outcome.count("unfinished")) == (1, 1, 2)


def test_runs_of_a_trial_take_turns_with_their_actors(tmp_path: Path) -> None:
    """Tune gives a trial room for those of one run: those of two would wait for each other for ever."""
    settings = tiny(env_runners={"num_env_runners": 1}, evaluation={"every": 0.5}).to_dict()
    del settings["name"], settings["seed"]
    config = write_sweep(tmp_path, settings=settings, search={}, answer=None)
    held(config, tmp_path / "out")
    trial = SweepTrial(
        {"root": str(tmp_path / "out"), "path": [], "trial": {"values": {}, "preset": None, "seeds": [0, 1]}}
    )
    told = []
    while not told or not told[-1]["done"]:
        told.append(trial.step())
        assert [run._session for run in trial._runs] == [None, None]
    assert [part["throughput/env_steps"] for part in told] == [960, 1920]
    assert (tmp_path / "out" / "runs" / "seed=1" / "rows.parquet").is_file()


def test_run_whose_workers_are_lost_is_left_to_tune_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has not failed: what it needs is elsewhere."""
    store = Store(str(tmp_path / "out"))
    store.write("sweep.yaml", dump_sweep(load_sweep(write_sweep(tmp_path))).encode())

    def lost(run: SweepRun) -> dict[str, float]:
        raise WorkersLost("one of 4 sampling actors must bring what it sampled")

    monkeypatch.setattr(SweepRun, "advance", lost)
    planned = {"values": {"environment.cost_weight": "1"}, "preset": None, "seeds": [0, 1]}
    trial = SweepTrial({"root": str(tmp_path / "out"), "path": [], "trial": planned})
    with pytest.raises(WorkersLost):
        trial.step()
    assert store.names("failures") == []


OWN = """
from mermaide_ray.agents.base import Family, Hyperparameter, sample_mean_init, sample_mean_learn

MINE = Family(
    name="mine", description="mine", reference="mine", init=sample_mean_init, learn=sample_mean_learn,
    act=lambda state, params, step, draws: state["mean"].argmax(-1),
    hyperparameters={"heat": Hyperparameter("temperature", 0.0, 1.0)},
)
"""


@pytest.fixture
def elsewhere_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Settings with agents that this process can import, and workers, which know where it looked before, can't."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "lab_of_this_process.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    families = {"lab_of_this_process:MINE": {"train": {"heat": [0.1, 0.5]}}}
    settings = tiny(agents={"disjoint": [], "families": families}).to_dict()
    del settings["name"], settings["seed"]
    yield settings
    sys.modules.pop("lab_of_this_process", None)


NOT_THERE = "InputError: `agents.families`: agent family 'lab_of_this_process:MINE' must be importable from"


def test_what_a_worker_refuses_is_told_in_its_words_and_not_tried_again(
    elsewhere_unknown: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_sweep(tmp_path, settings=elsewhere_unknown, resources=IN_TURN)
    assert sweep(config, "--out", tmp_path / "out") == 1
    told = capsys.readouterr()
    assert told.out.count(f"failed: cost_weight=1: {NOT_THERE}") == 1
    assert f"4 of 4 runs failed, the first with: {NOT_THERE}" in told.err
    statuses = read_statuses(Store(str(tmp_path / "out")))
    assert {(status.status, str(status.error).startswith(NOT_THERE)) for status in statuses.values()} == {
        ("failed", True)
    }
    assert not list((tmp_path / "out" / "tune").rglob("error.txt"))  # Tune's, of what it would start again


@pytest.mark.slow
def test_a_population_whose_workers_refuse_all_ends_at_once_and_can_be_begun_again(
    elsewhere_unknown: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}}
    tune = {"scheduler": "pbt", "samples": 1}
    config = write_sweep(tmp_path, settings=elsewhere_unknown, search=search, seeds=1, tune=tune, answer=None)
    for _ in range(2):
        assert sweep(config, "--out", tmp_path / "out") == 1
        told = capsys.readouterr()
        assert told.out.count(f"failed: member=0: {NOT_THERE}") == 1
        assert f"1 of 1 runs failed, the first with: {NOT_THERE}" in told.err
        assert not list((tmp_path / "out" / "tune").rglob("error.txt"))


def test_what_a_process_died_of_is_told_without_ray_s_frames() -> None:
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1\nmermaide_ray.errors.InputError: so it is'
    raised = RayTaskError("SweepTrial.__init__", trace, InputError("so it is"), pid=5, ip="10.0.0.2")
    assert line_of(raised) == line_of(ActorDiedError(raised)) == "mermaide_ray.errors.InputError: so it is"
    assert line_of(ActorDiedError()) == "ActorDiedError: The actor died unexpectedly before finishing this task."
    assert line_of(ValueError("no luck\nat all")) == "ValueError: no luck"


def test_a_good_enough_run_is_scored_at_once(tmp_path: Path) -> None:
    config = write_sweep(tmp_path, seeds=1, tune={"stop": {"throughput/env_steps": 700}})
    plan, store = plan_from(config), Store(str(tmp_path / "out"))
    finish(plan, store, iter(lambda: 10, None))
    outcome = assemble(plan, store)
    # The first milestone at or after 700 steps: each iteration is one here, of 240 steps.
    assert set(outcome.trials["env_steps"]) == {720}
    assert outcome.num_rows > 0


def test_a_damaged_file_is_named_with_what_to_do(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept, tmp_path / "out")
    plan, store = held(write_sweep(tmp_path), tmp_path / "out")
    for name in ("rows.parquet", "status.json"):
        store.write(f"runs/cost_weight=0.1,seed=0/{name}", b"half")
        with pytest.raises(InputError, match=rf"{name} is damaged .* delete {tmp_path / 'out'}/runs/cost_weight=0\.1"):
            assemble(plan, store)


def test_two_sweeps_do_not_work_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held(write_sweep(tmp_path), tmp_path / "out")
    with one_process(tmp_path / "out"):
        assert sweep(tmp_path / "tiny.yaml", "--out", tmp_path / "out") == 2
    assert "must be worked in by one process at a time, and one does already" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.slow
def test_interrupted_runs_in_a_bucket_end_as_those_in_a_folder(swept: Path, bucket: str, tmp_path: Path) -> None:
    config = write_sweep(tmp_path)
    store = Store(bucket)
    dice = random.Random(1)
    finish(plan_from(config), store, iter(lambda: dice.randint(1, 12), None))
    assert assemble(plan_from(config), store).count("done") == 4
    for name in ("rows", "progress"):
        (tmp_path / f"{name}.parquet").write_bytes(store.read(f"{name}.parquet") or b"")
    pd.testing.assert_frame_equal(sorted_rows(tmp_path), sorted_rows(swept))
    pd.testing.assert_frame_equal(sorted_progress(tmp_path), sorted_progress(swept))
    assert "under_way.tar" not in store.names("runs/cost_weight=1,seed=1")
    assert store.read("nothing") is None


# Where the tests run in the background of a shell, they and what they start would ignore Ctrl-C.
FOREGROUND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mermaide_ray.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(config: Path, out: Path | str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", FOREGROUND, "sweep", str(config), "--out", str(out), "--no-report"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "MERMAIDE_CHECKPOINT_SECONDS": "0.5"}
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


@pytest.mark.slow
def test_a_whole_sweep_runs_in_a_bucket(swept: Path, bucket: str, tmp_path: Path) -> None:
    place, _, query = bucket.partition("?")
    process = start(write_sweep(tmp_path), f"{place}/whole?{query}", tmp_path / "log.txt")
    assert process.wait(timeout=300) == 0, (tmp_path / "log.txt").read_text(encoding="utf-8")
    store = Store(f"{place}/whole?{query}")
    (tmp_path / "rows.parquet").write_bytes(store.read("rows.parquet") or b"")
    pd.testing.assert_frame_equal(sorted_rows(tmp_path), sorted_rows(swept))
    # Who may write there is in the environment, and in nothing that the sweep leaves.
    files, base = FileSystem.from_uri(store.root)
    left = [info.path for info in files.get_file_info(FileSelector(base, recursive=True)) if info.is_file]
    assert any(path.endswith("status.json") for path in left)
    assert not [path for path in left if SECRET.encode() in files.open_input_stream(path).read()]
    assert SECRET not in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_sweep_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = longer().to_dict()
    del settings["name"], settings["seed"]
    config = write_sweep(tmp_path, settings=settings)
    log, dice = tmp_path / "log.txt", random.Random(0)
    kills, ended = 0, None
    while ended is None:
        process = start(config, tmp_path / "killed", log)
        if kills < 20:
            # Mostly while runs are under way, now and then while the sweep is still starting.
            if dice.random() < 0.8:
                wait_for_progress(tmp_path / "killed", process)
            time.sleep(dice.uniform(0, 4))
            how = dice.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
            # A terminal's Ctrl-C and a lost machine hit all processes, a scheduler's SIGTERM the one that it started.
            (os.kill if how == signal.SIGTERM else os.killpg)(process.pid, how)
            process.wait(timeout=180)
            kills += 1
        else:
            ended = process.wait(timeout=900)
    assert ended == 0, log.read_text(encoding="utf-8")[-3000:]
    undisturbed = start(config, tmp_path / "undisturbed", log)
    assert undisturbed.wait(timeout=900) == 0
    pd.testing.assert_frame_equal(sorted_rows(tmp_path / "killed"), sorted_rows(tmp_path / "undisturbed"))
    pd.testing.assert_frame_equal(sorted_progress(tmp_path / "killed"), sorted_progress(tmp_path / "undisturbed"))


def wait_for_progress(sweep: Path, process: subprocess.Popen[bytes]) -> None:
    """Until some run has gone on, or the sweep has ended."""

    def told() -> int:
        return sum(path.stat().st_size for path in sweep.glob("runs/*/progress.jsonl"))

    before = told()
    # Less, not more: what a kill leaves behind its last checkpoint is told again.
    while told() == before and process.poll() is None:
        time.sleep(0.1)


def longer() -> Experiment:
    """Runs long enough that twenty kills, each seconds apart, fall into them."""
    evaluation = {"tasks": 6, "episodes": 2, "validation_tasks": 4, "every": 0.02}
    return tiny(training={"env_steps": 240_000}, evaluation=evaluation)
