"""`mermaide sweep --principals`: principals that another sweep has trained are scored, and not trained again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import tiny
from rich.console import Console
from sweeping import IN_TURN, held, plan_from, sorted_rows, sweep, told_by, write_sweep

from mermaide_ray.errors import InputError
from mermaide_ray.session import Session
from mermaide_ray.sweep.adopt import adopt, trained_in
from mermaide_ray.sweep.file import SWEEP_FILE, dump_sweep
from mermaide_ray.sweep.run import SweepRun
from mermaide_ray.sweep.status import read_status, read_statuses, unfinished
from mermaide_ray.sweep.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray", "no_figures")]

RUNS = [f"cost_weight={cost},seed={seed}" for cost in ("0.1", "1") for seed in (0, 1)]


@pytest.fixture(scope="module")
def trained(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep whose runs are done. Read it, don't change it."""
    folder = tmp_path_factory.mktemp("trained")
    plan, store = held(write_sweep(folder), folder / "out")
    for setting in plan.settings:
        for seed in plan.sweep.seeds:
            told_by(SweepRun(plan, setting, seed, store))
    return folder / "out"


def provenance_of(run: Path) -> Any:
    return json.loads((run / "provenance.json").read_text(encoding="utf-8"))


def test_they_are_scored_where_this_sweep_asks_for(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conditions = {"test": {"split": "test"}, "further": {"split": "validation", "k": [0]}}
    settings = tiny(env_runners={"num_env_runners": 9}).to_dict()  # for which there is no room: scoring needs none
    del settings["name"], settings["seed"]
    out = tmp_path / "out"
    config = write_sweep(tmp_path, settings=settings, conditions=conditions, resources=IN_TURN)
    assert sweep(config, "--out", out, "--principals", trained) == 0
    printed = capsys.readouterr().out
    assert "2 done, 0 running, 0 failed of 2 trials  0 of 0 env steps" in printed
    rows = sorted_rows(out)
    assert set(rows["condition"]) == set(conditions)
    of_runs = rows[rows["trial"] != ""]
    for run in RUNS:
        assert f"{run}: principal of {trained / 'runs' / run}" in printed
        theirs = pd.read_parquet(trained / "runs" / run / "rows.parquet")
        trial, seed = run.split(",seed=")
        mine = of_runs[(of_runs["trial"] == trial) & (of_runs["seed"] == int(seed)) & (of_runs["condition"] == "test")]
        by = ["k", "task"]
        pd.testing.assert_frame_equal(
            mine[theirs.columns].sort_values(by, ignore_index=True),
            theirs[theirs["condition"] == "test"].sort_values(by, ignore_index=True),
            check_dtype=False,
        )
        assert provenance_of(out / "runs" / run)["principal"] == provenance_of(trained / "runs" / run)
        assert (out / "runs" / run / "progress.jsonl").read_text() == (
            trained / "runs" / run / "progress.jsonl"
        ).read_text()
    trials, code = pd.read_parquet(out / "trials.parquet"), provenance_of(trained / "runs" / RUNS[0])["sources"]
    assert trials["trained_sources"].tolist() == [code] * len(RUNS)


@pytest.mark.parametrize("place", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_a_trial_scores_what_was_adopted_without_training(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, request: pytest.FixtureRequest
) -> None:
    plan = plan_from(write_sweep(tmp_path))
    store = Store(str(tmp_path / "out") if place == "folder" else request.getfixturevalue(place))
    store.write(SWEEP_FILE, dump_sweep(plan.sweep).encode())
    adopt(plan, store, trained_in([trained], plan), Console())
    assert len(unfinished(plan, read_statuses(store))) == plan.num_trials
    assert set(read_statuses(store)) == set(RUNS)  # begun: steps that they did elsewhere are no measure of speed
    monkeypatch.setattr(Session, "__init__", lambda *_, **__: pytest.fail("trained again"))
    run = SweepRun(plan, plan.settings[0], 0, store)
    told = run.advance()
    assert run.is_over
    assert run.is_scored
    theirs = read_status(Store(str(trained)), run.name)
    assert theirs is not None
    assert told.items() >= theirs.metrics.items()
    left = {name.split(".")[0] for name in store.names(f"runs/{run.name}")}
    assert left >= {
        "config",
        "provenance",
        "status",
        "progress",
        "principal",
        "rows",
        "calibration",
        "profiles",
        "events",
    }
    assert not left & {"under_way", "checkpoints"}


def test_one_that_was_adopted_by_halves_is_trained(trained: Path, tmp_path: Path) -> None:
    plan, store = held(write_sweep(tmp_path), tmp_path / "out")
    adopt(plan, store, trained_in([trained], plan), Console())
    folder = tmp_path / "out" / "runs" / RUNS[0]
    shutil.rmtree(folder / "principal")
    told = told_by(SweepRun(plan, plan.settings[0], 0, store))
    assert len(told) == 8
    assert "principal" not in provenance_of(folder)


def test_those_of_other_settings_are_refused_or_left_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lr = {"training.meta_lr": {"grid": [1e-4]}}
    other = write_sweep(tmp_path, search={"environment.cost_weight": {"grid": [0.1]}} | lr)
    assert sweep(other, "--out", tmp_path / "out", "--principals", trained) == 2
    told = capsys.readouterr().err
    assert f"got {trained}, in which training.meta_lr is 0.002 there and 0.0001 here" in told
    assert not (tmp_path / "out").exists()
    # Of two settings one is there.
    config = write_sweep(tmp_path, search={"environment.cost_weight": {"grid": [0.1, 0.2]}})
    assert sweep(config, "--dry-run", "--principals", trained) == 0
    listed = capsys.readouterr().out
    assert "scored only" in listed
    assert "4 runs, 3.8k env steps" in listed
    plan = plan_from(config)
    store = Store(str(tmp_path / "out"))
    adopt(plan, store, trained_in([trained], plan), Console())
    assert store.names("runs") == ["cost_weight=0.1,seed=0", "cost_weight=0.1,seed=1"]
    assert "2 of 4 runs have none there, and are trained" in capsys.readouterr().out
    stopped = plan_from(write_sweep(tmp_path, tune={"stop": {"throughput/env_steps": 700}}))
    spent = plan_from(write_sweep(tmp_path, tune={"env_steps": 700}))
    for plan_that_ends_early in (stopped, spent):
        with pytest.raises(InputError, match=r"must stand without .*, tune\.stop or tune\.env_steps"):
            trained_in([trained], plan_that_ends_early)
    # What the members of a population end with is not what they were trained with.
    drawn = {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}}
    population = tmp_path / "population"
    population.mkdir()
    bred = plan_from(write_sweep(tmp_path, search=drawn, tune={"scheduler": "pbt", "samples": 2}, answer=None))
    (population / SWEEP_FILE).write_text(dump_sweep(bred.sweep))
    with pytest.raises(InputError, match=r"got a population, whose members change them .*sweep\.yaml, tune\.scheduler"):
        trained_in([population], plan)
