"""Several folders as one study: what is paired, what is told apart, and what is said to be missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from sweep_folders import METHODS, Effects, write_sweep

from mermaide_ray.errors import InputError
from mermaide_ray.experiment import load_experiment
from mermaide_ray.report.answer import answer
from mermaide_ray.report.score_tables import score_tables
from mermaide_ray.report.sources import read_source
from mermaide_ray.report.study import read_study

QUICK: dict[str, Any] = {"curves": False, "profiles": False}


def write_run(folder: Path, seed: int = 0, name: str = "mermaide", task_seed: int = 0, **settings: Any) -> Path:
    """A plain run's folder: config.yaml, rows.parquet without condition, trial or setting columns."""
    sweep = write_sweep(folder / "made", {name: METHODS["mermaide"]}, seeds=seed + 1, seed=task_seed, **QUICK)
    rows = pd.read_parquet(sweep / "rows.parquet").drop(columns=["condition", "trial"])
    rows = rows[(rows["seed"] == seed) | (rows["method"] != name)]
    rows.to_parquet(folder / "rows.parquet")
    config = {"name": name, "seed": seed, "training": {"meta_lr": 0.002}, "evaluation": {"k": [0, 1]}, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "provenance.json").write_text(json.dumps({"commit": "abc", "command": ["mermaide", "train"]}))
    return folder


def test_runs_that_differ_in_their_seed_are_seeds_of_one_method(tmp_path: Path) -> None:
    study = read_study([write_run(tmp_path / str(seed), seed) for seed in range(3)])
    assert (study.main, study.dimensions, study.notes) == ("mermaide", [], ())
    [cell] = study.cells_of("mermaide", 1, ["test"])
    assert study.cells.seeds(cell) == [0, 1, 2]
    # Each folder has the rules' rows; they are the same and count once.
    assert study.cells.seeds(study.cells_of("first_n", 0, ["test"])[0]) == [0]
    assert (study.rows["method"] == "first_n").sum() == 2 * 20


def test_training_agents_of_several_seeds_are_refused(tmp_path: Path) -> None:
    """Each training seed has agents of its own: task 3 of one is another agent than task 3 of the other."""
    folders = [write_run(tmp_path / str(seed), seed) for seed in range(2)]
    for folder in folders:
        rows = pd.read_parquet(folder / "rows.parquet")
        rows[rows["split"] == "test"].assign(split="train").to_parquet(folder / "rows.parquet")
    read_study(folders[:1])
    with pytest.raises(InputError, match="must be of one training seed, since each has agents of its own, got 0, 1"):
        read_study(folders)


def test_runs_that_differ_in_a_setting_are_settings(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"{rate}", training={"meta_lr": rate}) for rate in (0.001, 0.002)]
    study = read_study(folders)
    assert study.dimensions == ["training.meta_lr"]
    assert list(study.settings.index) == ["meta_lr=0.001", "meta_lr=0.002"]


def test_methods_of_different_games_are_told_apart_and_not_compared(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name, name=name, task_seed=horizon, environment={"horizon": horizon})
        for name, horizon in (("mermaide", 100), ("maml", 30))
    ]
    study = read_study(folders)
    assert study.dimensions == ["environment.horizon"]
    # Each game has rules of its own.
    assert len(study.cells_of("first_n", 0, ["test"])) == 2
    found = answer(study)
    assert "Not compared, since it played no game in common: maml." in found.sentence
    assert "maml" not in {contrast.other for contrast in found.contrasts}
    # In all else methods differ by what they are.
    alike = [
        write_run(tmp_path / f"{name}2", name=name, meta_learning={"inner_lr": rate})
        for name, rate in (("mermaide", 0.1), ("maml", 0.2))
    ]
    assert read_study(alike).dimensions == []


def test_the_same_run_twice_is_told_apart_by_its_folder(tmp_path: Path) -> None:
    study = read_study([write_run(tmp_path / "one"), write_run(tmp_path / "two")])
    assert list(study.settings.index) == ["folder=one", "folder=two"]
    assert study.notes == (
        "Several folders hold the same method, settings and training seed: they are told apart by their folders.",
    )


def test_methods_of_different_folders_are_paired_where_tasks_agree(tmp_path: Path) -> None:
    mine = write_run(tmp_path / "mine")
    same, other = write_run(tmp_path / "same", name="maml"), write_run(tmp_path / "other", name="maml", task_seed=1)
    paired, unpaired = (
        next(one for one in answer(read_study([mine, folder])).contrasts if one.other == "maml")
        for folder in (same, other)
    )
    assert paired.probability is not None
    assert unpaired.probability is None


def test_sweeps_with_and_without_a_searched_setting_are_laid_side_by_side(tmp_path: Path) -> None:
    searched = write_sweep(tmp_path / "searched", search={"training.meta_lr": [0.001, 0.01]}, **QUICK)
    plain = write_sweep(tmp_path / "plain", {"maml": Effects()}, **QUICK)
    study = read_study([searched, plain])
    assert set(study.settings["training.meta_lr"]) == {0.001, 0.01, 0.002}  # the last by default
    assert set(study.methods) >= {"mermaide", "rl2", "maml", "first_n", "oracle"}


def later(folder: Path, **changes: Any) -> Path:
    """A sweep whose training seeds are others than those of `write_sweep`, and whose file has changes."""
    write_sweep(folder, seeds=3, **QUICK)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.assign(seed=rows["seed"] + 3 * rows["method"].isin(METHODS)).to_parquet(folder / "rows.parquet")
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "seeds": [3, 4, 5], **changes}))
    return folder


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, []),
        ({"training": {"env_steps": 10_000_000}}, []),  # by default
        ({"env_runners": {"num_env_runners": 2}, "evaluation": {"tasks": 20, "episodes": 4, "every": 0.5}}, []),
        ({"training": {"env_steps": 1000}}, ["training.env_steps"]),
        ({"agents": {"seed": 7}}, ["agents.seed"]),
    ],
)
def test_sweeps_that_trained_with_other_settings_are_told_apart(
    settings: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    horizon = {"environment": {"horizon": 100}}
    folders = [write_sweep(tmp_path / "one", seeds=3, **QUICK), later(tmp_path / "two", settings=horizon | settings)]
    study = read_study(folders)
    note = "Folders differ in {}: figures over all of them are over several settings."
    assert (study.dimensions, list(study.notes)) == (told, [note.format(key) for key in told])
    seeds = [study.cells.seeds(cell) for cell in study.cells_of("mermaide", 1, ["test"])]
    assert seeds == ([[0, 1, 2], [3, 4, 5]] if told else [[0, 1, 2, 3, 4, 5]])
    # Rules know only the game.
    assert len(study.cells_of("first_n", 0, ["test"])) == 1 + (told == ["agents.seed"])


def test_a_run_that_was_trained_otherwise_is_no_seed_of_a_sweep(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"mermaide": METHODS["mermaide"]}, seeds=3, **QUICK)
    trained = load_experiment(preset="mermaide").to_dict()
    del trained["name"], trained["seed"]
    other = trained | {"training": trained["training"] | {"env_steps": 1000}}
    alike, apart = write_run(tmp_path / "alike", 3, **trained), write_run(tmp_path / "apart", 3, **other)
    assert read_study([sweep, alike]).dimensions == []
    study = read_study([sweep, apart])
    assert list(study.settings.index) == ["env_steps=1e+07", "env_steps=1000"]
    # What another method is trained with is its own matter.
    stock = write_run(tmp_path / "stock", name="stock_ppo_lstm", **other)
    assert read_study([sweep, stock]).dimensions == []


def test_runs_that_plan_are_no_seeds_of_those_that_do_not(tmp_path: Path) -> None:
    planned, unplanned = (
        write_run(tmp_path / str(planning), seed, evaluation={"k": [0, 1], "planning": planning})
        for seed, planning in enumerate((True, False))
    )
    assert read_study([planned, unplanned]).dimensions == ["evaluation.planning"]


@pytest.mark.parametrize(("planning", "expected"), [(False, []), (True, ["evaluation.rehearsals"])])
def test_what_is_from_before_rehearsals_is_as_without_them(tmp_path: Path, planning: bool, expected: list[str]) -> None:
    before, since = (
        write_run(tmp_path / str(seed), seed, evaluation={"k": [0, 1], "planning": planning, **rehearsals})
        for seed, rehearsals in enumerate(({}, {"rehearsals": 30}))
    )
    assert read_study([before, since]).dimensions == expected


def test_a_sweep_from_before_rehearsals_was_scored_without_them(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "old", **QUICK)
    (folder / "runs" / "one").mkdir(parents=True)
    config = folder / "runs" / "one" / "config.yaml"
    for evaluation, expected in (({"planning": True}, 0), ({"planning": True, "rehearsals": 30}, 30)):
        config.write_text(yaml.safe_dump({"evaluation": evaluation}))
        [told] = {told["evaluation"]["rehearsals"] for told in read_source(folder).configs.values()}
        assert told == expected


def test_what_was_trained_under_a_name_with_a_colon_is_read_and_told_of(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", name="mine:v2")
    sweep = write_sweep(tmp_path / "sweep", {"mine:v2": Effects()}, seeds=1, **QUICK)
    told = yaml.safe_load((sweep / "sweep.yaml").read_text())
    del told["methods"]
    (sweep / "sweep.yaml").write_text(yaml.safe_dump({**told, "settings": {"name": "mine:v2"}}))
    for folder in (run, sweep):
        study = read_study([folder])
        assert study.main == "mine:v2"
        assert study.notes == (
            f"{folder.name}: mine:v2 was trained, but is taken for a rule, which has no training seeds: there is a ':' "
            "in its name.",
        )
        assert answer(study).sentence.startswith("mine:v2 reaches")


def test_conditions_of_one_name_that_are_different_ones_are_told_apart(tmp_path: Path) -> None:
    one = write_sweep(tmp_path / "one", seeds=3, **QUICK)
    split = {name: {"split": name} for name in ("validation", "test")}
    same = later(tmp_path / "same", conditions=split | {"test": {"settings": {"evaluation": {"planning": False}}}})
    assert read_study([one, same]).notes == ()
    other = later(tmp_path / "other", conditions=split | {"test": {"settings": {"evaluation": {"planning": True}}}})
    study = read_study([one, other])
    assert list(study.settings.index) == ["folder=one", "folder=other"]
    assert study.notes[0] == (
        "Folders score mermaide in different conditions called test (evaluation.planning): "
        "they are told apart by their folders."
    )


def test_a_report_imports_no_families_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = {"agents": {"families": {"my_lab.agents:Mine": {"weight": 1}}}}
    folders = [later(tmp_path / str(steps), settings=family | {"training": {"env_steps": steps}}) for steps in (1, 2)]
    assert read_study(folders).dimensions == ["training.env_steps"]
    assert capsys.readouterr().err == ""


def test_a_sweep_that_is_still_running_is_reported_with_what_is_missing(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", search={"training.meta_lr": [0.001, 0.01]}, seeds=2, **QUICK)
    rows = pd.read_parquet(folder / "rows.parquet").drop(columns=["trial", "setting.training.meta_lr"])
    (folder / "rows.parquet").unlink()
    for rate, seed in ((0.001, 0), (0.001, 1), (0.01, 0)):
        run = folder / "runs" / f"meta_lr={rate},seed={seed}"
        run.mkdir(parents=True)
        chosen = rows[(rows["method"] == "mermaide") & (rows["seed"] == seed)]
        chosen.drop_duplicates(["condition", "k", "task"]).to_parquet(run / "rows.parquet")
    trials = pd.read_parquet(folder / "trials.parquet")[:5]
    trials.assign(status=["done"] * 3 + ["failed", "running"]).to_parquet(folder / "trials.parquet")
    study = read_study([folder])
    assert list(study.settings.index) == ["meta_lr=0.001", "meta_lr=0.01"]
    told = " ".join(study.notes)
    assert "the sweep has not ended (no rows.parquet); this report covers the 3 training runs" in told
    assert "1 of 5 training runs failed" in told
    assert "1 of 5 training runs were stopped, or have not come to their end" in told
    assert "3 of 8 planned training runs have not begun" in told


@pytest.mark.parametrize("done", [4, 3, 2])
def test_a_sweep_that_goes_on_with_more_seeds_is_reported_as_far_as_it_is(done: int, tmp_path: Path) -> None:
    """Its tables are of two seeds; two more are planned and begun."""
    whole = write_sweep(tmp_path / "whole", {"mermaide": Effects()}, seeds=4, **QUICK)
    folder = write_sweep(tmp_path / "sweep", {"mermaide": Effects()}, seeds=2, **QUICK)
    (folder / "sweep.yaml").write_text((whole / "sweep.yaml").read_text())
    rows = pd.read_parquet(whole / "rows.parquet")
    for seed in range(4):
        run = folder / "runs" / f"method=mermaide,seed={seed}"
        run.mkdir(parents=True)
        status = {"trial": "method=mermaide", "method": "mermaide", "seed": seed, "status": "unfinished"}
        if seed < done:
            rows[(rows["method"] == "mermaide") & (rows["seed"] == seed)].to_parquet(run / "rows.parquet")
            status["status"] = "done"
        (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
    study = read_study([folder])
    [cell] = study.cells_of("mermaide", 1, ["test"])
    assert study.cells.seeds(cell) == list(range(done))
    assert study.cells_of("first_n", 0, ["test"])
    told, *left = study.notes
    assert f"this report covers the {done} training runs that are finished, of 4 planned." in told
    unfinished = f"sweep: {4 - done} of 4 training runs were stopped, or have not come to their end"
    assert [note.partition(";")[0] for note in left] == [unfinished] * (done < 4)


@pytest.mark.parametrize(
    ("tune", "methods", "planned"),
    [
        ({"samples": 6}, True, 24),
        ({"samples": 6, "searcher": "optuna"}, False, None),  # it may ask for the same settings twice
        ({"samples": 4, "scheduler": "pbt"}, False, 8),
    ],
)
def test_runs_that_are_drawn_are_counted_as_planned(
    tune: dict[str, Any], methods: bool, planned: int | None, tmp_path: Path
) -> None:
    folder = write_sweep(tmp_path / "sweep", seeds=2, **QUICK)
    path = folder / "sweep.yaml"
    sweep = yaml.safe_load(path.read_text()) | {"search": {"training.meta_lr": {"loguniform": [1e-4, 1e-1]}}}
    path.write_text(yaml.safe_dump({**sweep, "tune": tune, "methods": sweep["methods"] if methods else []}))
    notes = " ".join(read_study([folder]).notes)
    if planned is None:
        assert "have not begun" not in notes
    else:
        assert f"{planned - 4} of {planned} planned training runs have not begun" in notes
    # What an older version wrote is reported all the same.
    path.write_text(yaml.safe_dump({**sweep, "tune": tune, "older": True}))
    assert read_study([folder]).notes == ()


def test_a_condition_has_the_title_of_a_split_only_if_its_agents_are_of_it(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", seeds=2, **QUICK)
    assert read_study([folder]).title("test") == "out of distribution (test agents)"
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.assign(split="validation").to_parquet(folder / "rows.parquet")
    study = read_study([folder])
    assert (study.title("test"), study.title("validation")) == ("test", "in distribution (validation agents)")
    assert [table.title for table in score_tables(study)] == [
        "Scores, in distribution (validation agents)",
        "Scores, test",
    ]


def test_fewer_rows_than_expected_are_told(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", **QUICK)
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "rows": 1200}))
    assert read_study([folder]).notes == ("sweep: 960 rows, where sweep.yaml expects 1,200.",)


def test_a_horizon_is_found_where_it_stands(tmp_path: Path) -> None:
    study = read_study([write_sweep(tmp_path / "set", horizon=60, **QUICK)])
    assert study.horizon(study.cells_of("mermaide", 1, ["test"])[0]) == 60
    searched = write_sweep(tmp_path / "searched", search={"environment.horizon": [50, 80]}, **QUICK)
    study = read_study([searched])
    assert [study.horizon(cell) for cell in study.cells_of("mermaide", 1, ["test"])] == [50, 80]
    # Rows from before they told it, beside others that do.
    for folder in (tmp_path / "set", searched):
        rows = pd.read_parquet(folder / "rows.parquet").drop(columns="horizon")
        rows.to_parquet(folder / "rows.parquet")
    new = write_sweep(tmp_path / "new", {"maml": Effects()}, horizon=30, **QUICK)
    study = read_study([tmp_path / "set", new])
    assert study.horizon(study.cells_of("mermaide", 1, ["test"])[0]) == 60  # as `always` intervenes
    assert study.horizon(study.cells_of("maml", 1, ["test"])[0]) == 30
    study = read_study([searched])
    assert [study.horizon(cell) for cell in study.cells_of("mermaide", 1, ["test"])] == [50, 80]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({}, "a report needs rows.parquet .* or sweep.yaml .*, got neither in"),
        (
            {"config.yaml": b"seed: 1", "progress.jsonl": b"{}"},
            r"got neither in .*, the folder of a run without a checkpoint \(unless .* mermaide train --resume",
        ),
        (
            {"config.yaml": b"seed: 1", "provenance.json": b'{"trained_by": "mermaide stock-ppo"}'},
            r"an unfinished run of mermaide stock-ppo, .* delete it and run mermaide stock-ppo again\)$",
        ),
        ({"sweep.yaml": b"question: Why?"}, "a report needs at least one finished trial, got none yet in"),
        ({"sweep.yaml": b"- 1"}, "must be a mapping of sections, got a list"),
        ({"rows.parquet": b"none"}, "rows.parquet is damaged .*: delete it, and go on with its run"),
    ],
)
def test_what_is_no_report_to_be_is_refused_in_a_sentence(
    damage: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    for name, content in damage.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_study([tmp_path])


@pytest.mark.parametrize("is_over", [True, False])
def test_members_of_a_population_that_end_with_the_same_settings_are_told_apart(tmp_path: Path, is_over: bool) -> None:
    folder = write_sweep(
        tmp_path / "sweep", {"mermaide": Effects()}, search={"training.meta_lr": [0.001, 0.01]}, **QUICK
    )
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))
    search = {"training.meta_lr": {"loguniform": [1e-4, 1e-1]}}
    tune = {"scheduler": "pbt", "samples": 2}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "search": search, "tune": tune}), encoding="utf-8")
    rows = pd.read_parquet(folder / "rows.parquet")
    trained = rows["method"] == "mermaide"
    member = rows["setting.training.meta_lr"].map({0.001: "member=0", 0.01: "member=1"})
    rows = rows.assign(trial=member.where(trained, ""), **{"setting.training.meta_lr": 0.001}).drop_duplicates()
    rows.to_parquet(folder / "rows.parquet")
    if not is_over:
        (folder / "rows.parquet").unlink()
        for (name, seed), own in rows[trained.loc[rows.index]].groupby(["trial", "seed"]):
            run = folder / "runs" / f"{name},seed={seed}"
            run.mkdir(parents=True)
            own.drop(columns=["trial", "setting.training.meta_lr"]).to_parquet(run / "rows.parquet")
            (run / "status.json").write_text(json.dumps({"values": {"training.meta_lr": "0.001"}}), encoding="utf-8")
    study = read_study([folder])
    assert study.dimensions == ["member"]
    assert len(study.cells_of("mermaide", 1, ["test"])) == 2
    assert set(study.settings["training.meta_lr"]) == {0.001}
