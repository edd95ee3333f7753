"""Searchers and schedulers on tiny sweeps: what they are told, what they go on from, what they leave."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray.tune.schedulers.pbt import PopulationBasedTraining, _explore
from sweeping import held, plan_from, sorted_rows, sweep, told_by, write_sweep

from mermaide_ray.errors import InputError
from mermaide_ray.sweep import tuning
from mermaide_ray.sweep.file import load_sweep
from mermaide_ray.sweep.job import _begin
from mermaide_ray.sweep.results import assemble
from mermaide_ray.sweep.run import SweepRun
from mermaide_ray.sweep.search import optuna_search, scheduler_of
from mermaide_ray.sweep.status import is_over, read_status, read_statuses, spent, unfinished
from mermaide_ray.sweep.store import Store
from mermaide_ray.sweep.trainable import WORST
from mermaide_ray.training import contender_from

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray", "no_figures")]

HALVING = {"scheduler": "asha", "asha": {"grace": 0.2}}


def test_a_scheduler_hears_of_every_milestone_of_what_has_ended(tmp_path: Path) -> None:
    plan, store = held(write_sweep(tmp_path, seeds=1, tune=HALVING, answer=None), tmp_path / "out")
    ended, stopped = plan.settings
    first = told_by(SweepRun(plan, ended, 0, store))
    assert [steps for steps, _ in first] == [240 * part for part in range(1, 9)]
    run = SweepRun(plan, stopped, 0, store)
    last = [run.advance() for _ in range(3)][-1]
    run.close()
    trial = next(trial for trial in plan.trials if trial.setting == stopped)
    tuning._stop(plan, store, trial, {**last, "env_steps": 720, "failed": None})
    outcome = assemble(plan, store)
    assert outcome.count("stopped") == 1
    assert (outcome.trials["cpu_s"] > 0).all()
    # Nothing is left to do, so nobody is asked again ...
    assert unfinished(plan, read_statuses(store)) == []
    # ... but where another trial is not done yet, the scheduler compares it with these.
    again = SweepRun(plan, ended, 0, store)
    assert (again.is_scored, again.is_over) == (True, False)
    assert told_by(again) == first
    again = SweepRun(plan, stopped, 0, store)
    assert (again.is_scored, [steps for steps, _ in told_by(again)]) == (False, [240, 480, 720])
    assert store.names(f"runs/{again.name}/checkpoints") != []


def test_a_trial_that_is_stopped_for_a_failure_is_left_to_be_tried_again(tmp_path: Path) -> None:
    plan, store = held(write_sweep(tmp_path, tune=HALVING, answer=None), tmp_path / "out")
    trial = plan.trials[0]
    one, other = (SweepRun(plan, trial.setting, seed, store) for seed in trial.seeds)
    one.advance()
    one.close()
    other.fail(ValueError("no luck"))
    other.save_to(tmp_path / "nothing")  # as Tune does after every result
    told = {"env_steps": 240, "validation/score_k1": WORST, "failed": "ValueError: no luck"}
    tuning._stop(plan, store, trial, told)
    assert [status_of(store, run) for run in (one, other)] == ["unfinished", "failed"]
    assert trial in unfinished(plan, read_statuses(store))


def status_of(store: Store, run: SweepRun) -> Any:
    status = read_status(store, run.name)
    return status and status.status


def test_optuna_goes_on_from_what_it_knows(tmp_path: Path) -> None:
    search = {
        "training.meta_lr": {"loguniform": [1e-4, 1e-2]},
        "meta_learning.meta_batch_size": {"choice": [4, 8]},
        "world_model.hidden_size": {"randint": [4, 8]},
    }
    config = write_sweep(tmp_path, search=search, seeds=2, tune={"searcher": "optuna", "samples": 5}, answer=None)
    plan, store = held(config, tmp_path / "out")
    for place, status in enumerate(("done", "stopped", "failed", "unfinished")):
        values = {"training.meta_lr": f"0.00{place + 1}", "meta_learning.meta_batch_size": "4"}
        values |= {"world_model.hidden_size": str(4 + place)}
        setting = plan.setting(values)
        for seed in plan.sweep.seeds:
            SweepRun(plan, setting, seed, store)._write_status(status, {"validation/score_k1": 0.5}, None)
    found, left = optuna_search(plan, read_statuses(store))
    assert left == 3
    few = plan_from(write_sweep(tmp_path, search=search, tune={"searcher": "optuna", "samples": 2}, answer=None))
    assert [is_over(each, read_statuses(store)) for each in (plan, few)] == [False, True]
    tried = [trial.params["drawn/world_model.hidden_size"] for trial in found._ot_study.trials if trial.params]
    assert tried == [4, 5]
    # What failed, or was under way, is tried again before anything new.
    asked = [found.suggest(name)["drawn"] for name in ("a", "b")]
    assert [one["world_model.hidden_size"] for one in asked] == [6, 7]
    assert [one["meta_learning.meta_batch_size"] for one in asked] == ["4", "4"]


def test_a_trial_with_the_settings_of_another_waits_for_it_and_takes_its_outcome(tmp_path: Path) -> None:
    """Optuna may draw a point twice at once."""
    plan, store = held(write_sweep(tmp_path, seeds=1), tmp_path / "out")
    one, twin = (SweepRun(plan, plan.settings[0], 0, store) for _ in range(2))
    one.advance()
    with ThreadPoolExecutor() as pool:
        outcome = pool.submit(twin.advance)
        assert not wait([outcome], timeout=1).done
        told_by(one)
        assert outcome.result(timeout=30)["throughput/env_steps"] == 1920
    assert (twin.is_scored, twin.is_over, twin.error) == (True, True, None)


def test_a_sweep_s_budget_counts_what_earlier_attempts_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_sweep(tmp_path, seeds=1, tune={"env_steps": 2000})
    plan, store = held(config, tmp_path / "out")
    told_by(SweepRun(plan, plan.settings[0], 0, store))
    assert spent(plan, read_statuses(store)) == 1920
    # One seed of a trial that goes on is told of again.
    both = plan_from(write_sweep(tmp_path, "both.yaml", seeds=2, tune={"env_steps": 2000}))
    assert spent(both, read_statuses(store)) == 0
    assert not tuning._Budget(2000, 1920).stop_all()
    budget = tuning._Budget(2000, 1920)
    assert [budget("new", {"env_steps": steps}) for steps in (60, 90)] == [False, True]
    monkeypatch.setattr(tuning, "spent", lambda *_: 2000)
    monkeypatch.setattr(tuning, "_fresh", lambda *given: pytest.fail("trained beyond the budget"))
    tuning.fit(plan, store, None)  # type: ignore[arg-type]
    # Where it is known beforehand, no Ray is started to hear of it.
    other = plan.settings[1].run_name(0)
    assert other not in read_statuses(store)
    less = plan_from(write_sweep(tmp_path, "less.yaml", seeds=1, tune={"env_steps": 1920}))
    assert [is_over(each, read_statuses(store)) for each in (plan, less)] == [False, True]


def test_a_finished_member_of_a_population_keeps_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune may not have heard that it is finished, and restore it from where it was before."""
    search = {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}}
    tune = {"scheduler": "pbt", "samples": 2}
    plan, store = held(write_sweep(tmp_path, search=search, seeds=1, tune=tune, answer=None), tmp_path / "out")
    drawn = [{"drawn": {"training.meta_lr": rate}} for rate in (1e-3, 2e-3)]
    member = tuning.trial_of(plan, drawn[0], "a1b2c_00000").setting
    run = SweepRun(plan, member, 0, store, changed=True)
    run.advance()
    run.close()
    monkeypatch.setattr(run, "_open", lambda: pytest.fail("built again only to be copied"))
    run.save_to(tmp_path / "kept")
    monkeypatch.undo()
    told_by(run)
    again = SweepRun(plan, member, 0, store, changed=True)
    again.load_from(tmp_path / "kept")
    assert status_of(store, again) == "done"
    assert store.read(f"runs/{again.name}/rows.parquet")
    # A finished member has nothing to copy from.
    again.save_to(tmp_path / "nothing")
    other = SweepRun(plan, tuning.trial_of(plan, drawn[1], "a1b2c_00001").setting, 0, store, changed=True)
    other.load_from(tmp_path / "nothing")
    assert other.advance()["throughput/env_steps"] == 240


def test_a_member_that_copies_another_learns_and_is_scored_with_rates_of_its_own(tmp_path: Path) -> None:
    search = {"meta_learning.inner_lr": {"choice": [0.05, 0.5]}}
    tune = {"scheduler": "pbt", "samples": 2}
    plan, store = held(write_sweep(tmp_path, search=search, seeds=1, tune=tune, answer=None), tmp_path / "out")
    drawn = [{"drawn": {"meta_learning.inner_lr": label}} for label in ("0.05", "0.5")]
    one, other = (tuning.trial_of(plan, config, f"a1b2c_0000{i}").setting for i, config in enumerate(drawn))
    donor = SweepRun(plan, one, 0, store, changed=True)
    donor.advance()
    donor.save_to(tmp_path / "kept")
    donor.close()
    heir = SweepRun(plan, other, 0, store, changed=True)
    heir.load_from(tmp_path / "kept")
    heir.advance()
    assert heir._session is not None
    assert heir.env_steps == 2 * donor.env_steps
    principal = heir._session._algorithm.principal()
    assert {round(float(rate), 6) for rate in principal.inner_rates().values()} == {0.5}
    told_by(heir)
    contender, _ = contender_from(tmp_path / "out" / "runs" / heir.name / "principal")
    assert {round(float(rate), 6) for rate in contender.inner_rates.values()} == {0.5}


def test_what_the_budget_stopped_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    def sized(env_steps: int) -> Path:
        return write_sweep(tmp_path, seeds=1, tune={"env_steps": env_steps})

    plan, store = held(sized(480), tmp_path / "out")
    run = SweepRun(plan, plan.settings[0], 0, store)
    told = [run.advance() for _ in range(2)]
    run.close()
    by_budget, by_scheduler = plan.trials
    tuning._stop(plan, store, by_budget, {**told[-1], "env_steps": 480, "failed": None}, by_budget=True)
    SweepRun(plan, by_scheduler.setting, 0, store).stop({"throughput/env_steps": 240.0})
    assert unfinished(plan, read_statuses(store)) == []
    _begin(store, load_sweep(sized(480)))
    assert unfinished(plan, read_statuses(store)) == []
    larger = sized(4000)
    _begin(store, load_sweep(larger))
    grown = plan_from(larger)
    assert unfinished(grown, read_statuses(store)) == [grown.trials[0]]
    assert spent(grown, read_statuses(store)) == 240
    again = told_by(SweepRun(grown, grown.settings[0], 0, store))
    assert [steps for steps, _ in again] == [240 * part for part in range(1, 9)]
    assert [score for _, score in again[:2]] == [part["validation/score_k1"] for part in told]


def test_a_population_s_choice_is_perturbed_to_its_neighbours(tmp_path: Path) -> None:
    search = {"training.minibatches": {"choice": [1, 2, 4]}, "training.epochs": {"randint": [4, 8]}}
    tune = {"scheduler": "pbt", "samples": 2}
    scheduler = scheduler_of(plan_from(write_sweep(tmp_path, search=search, tune=tune, answer=None)))
    assert isinstance(scheduler, PopulationBasedTraining)
    config = {"drawn": {"training.minibatches": "2", "training.epochs": 6}}
    found = [_explore(config, scheduler._hyperparam_mutations, 0.0, (1.2, 0.8), None)[0]["drawn"] for _ in range(40)]
    assert {one["training.minibatches"] for one in found} == {"1", "4"}
    assert {one["training.epochs"] for one in found} == {5, 7}


def test_a_population_s_finished_members_are_neither_begun_again_nor_deleted(tmp_path: Path) -> None:
    search = {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}}
    config = write_sweep(tmp_path, search=search, seeds=1, tune={"scheduler": "pbt", "samples": 2}, answer=None)
    plan, store = held(config, tmp_path / "out")
    members = [tuning.trial_of(plan, {"drawn": {"training.meta_lr": 1e-3}}, f"a1b2c_0000{i}").setting for i in (0, 1)]
    runs = [SweepRun(plan, member, 0, store, changed=True) for member in members]
    runs[0]._write_status("done", {}, None)
    assert not is_over(plan, read_statuses(store))
    with pytest.raises(InputError, match=r"a population must go on from .*/tune, which is gone, and some .* are done"):
        tuning.fit(plan, store, None)  # type: ignore[arg-type]
    assert store.names("runs") == ["member=0,seed=0"]
    runs[1]._write_status("done", {}, None)
    assert is_over(plan, read_statuses(store))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tune", "search"),
    [
        (
            {"searcher": "optuna", "samples": 3},
            {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}, "meta_learning.meta_batch_size": {"choice": [4, 8]}},
        ),
        (
            {"searcher": "optuna", "samples": 5, "scheduler": "asha", "asha": {"grace": 0.2, "reduction_factor": 2}},
            {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}},
        ),
        (
            {"scheduler": "asha", "samples": 6, "asha": {"grace": 0.2, "reduction_factor": 2}},
            {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}},
        ),
        (
            {"scheduler": "pbt", "samples": 4, "pbt": {"interval": 0.25, "quantile": 0.25}},
            {"training.meta_lr": {"loguniform": [1e-4, 1e-2]}, "training.entropy_weight": {"choice": [0.0, 0.05, 0.1]}},
        ),
    ],
)
def test_searchers_and_schedulers(tune: dict[str, Any], search: dict[str, Any], tmp_path: Path) -> None:
    config = write_sweep(tmp_path, search=search, tune=tune, answer=None)
    out = tmp_path / "out"
    assert sweep(config, "--out", out) == 0
    trials = pd.read_parquet(out / "trials.parquet")
    done = trials[trials["status"] == "done"]
    assert trials["trial"].nunique() == tune["samples"]
    assert 1 <= done["trial"].nunique() <= tune["samples"]
    if tune.get("scheduler") != "asha":
        assert len(done) == len(trials)
    assert done.groupby("trial")["seed"].nunique().eq(2).all()
    assert (done["setting.training.meta_lr"].between(1e-4, 1e-2)).all()
    if tune.get("scheduler") == "asha":
        assert set(trials["status"]) <= {"done", "stopped"}
    rows = sorted_rows(out)
    again = sweep(config, "--out", out)
    assert again == 0
    pd.testing.assert_frame_equal(sorted_rows(out), rows)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "trials.parquet"), trials)


def test_population_s_record_that_others_may_have_written_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a pickle of Tune's."""
    store, record = Store(str(tmp_path)), tmp_path / tuning.TUNE_FOLDER
    record.mkdir()
    monkeypatch.setattr(tuning.tune.Tuner, "can_restore", lambda path: True)
    monkeypatch.setattr(tuning.tune.Tuner, "restore", lambda *given, **options: "restored")
    record.chmod(0o777)
    with pytest.raises(InputError, match=r"holds pickles.* must be yours alone to write, but everybody may write to"):
        tuning._restored(store, None)
    record.chmod(0o755)
    assert tuning._restored(store, None) == "restored"
