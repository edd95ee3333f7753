"""Each failure signature is found where it was planted, with its numbers, and nothing is found on a healthy sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sweep_folders import METHODS, Effects, write_sweep

from mermaide_ray.report.diagnostics import CHECKS, SERIOUS, Finding, diagnose
from mermaide_ray.report.study import read_study


def findings(folder: Path, **options: Any) -> list[Finding]:
    return diagnose(read_study([write_sweep(folder, curves=False, profiles=False, **options)]))


def test_a_healthy_sweep_is_silent(tmp_path: Path) -> None:
    assert findings(tmp_path / "sweep", search={"training.meta_lr": [0.001, 0.01]}) == []


PLANTED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no world model": ("world_model_floor", {"model_margin": -0.1}, SERIOUS, "no better than the running frequencies"),
    "hurts": ("adaptation", {"gain": -0.05}, SERIOUS, "K = 1 is worse than K = 0, by -0.0"),
    "no help": ("adaptation", {"gain": 0.0}, "note", "not for sure better than K = 0"),
    "hurts a family": ("adaptation", {"gain": 0.1, "gain_of": {"ucb": -0.15}}, SERIOUS, "adapting to ucb agents hurts"),
    "too dear": ("cost", {"score": -0.2, "gain": 0.05}, SERIOUS, "for 100% of the agents they cost more"),
    "seeds": ("seeds_disagree", {"seed_offsets": {3: -0.4}}, SERIOUS, "(seed 3) to"),
    "never": ("collapse", {"seed_interventions": {2: 0.0}}, SERIOUS, "1 of 5 trained principals never intervene"),
    "always": ("collapse", {"interventions": 100.0}, SERIOUS, "5 of 5 trained principals always intervene"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_failure_is_found_and_nothing_else(planted: str, tmp_path: Path) -> None:
    check, effects, severity, text = PLANTED[planted]
    found = findings(tmp_path / "sweep", methods={**METHODS, "mermaide": Effects(**effects)})
    assert {finding.check for finding in found} == {check}
    assert all(finding.text.startswith("mermaide, ") for finding in found)
    matching = [finding for finding in found if text in finding.text]
    assert matching
    assert {finding.severity for finding in matching} == {severity}


def test_failed_runs_and_few_seeds_are_told(tmp_path: Path) -> None:
    found = findings(tmp_path / "sweep", failed=[("rl2", 1)])
    assert {(finding.check, finding.severity) for finding in found} == {
        ("failed_trials", SERIOUS),
        ("few_seeds", "note"),
    }
    assert "1 of 10 training runs failed (method=rl2, seed 1)" in found[0].text
    [single] = findings(tmp_path / "single", methods={"mermaide": Effects()}, seeds=1)
    assert single.text == "mermaide has 1 training seed in some setting: its intervals are over tasks only."


def test_a_gain_without_some_seeds_is_told_whoever_asked_for_it(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", curves=False, profiles=False)
    rows = pd.read_parquet(folder / "rows.parquet")
    lacking = (rows["method"] == "rl2") & (rows["seed"] == 4) & (rows["k"] == 1) & (rows["condition"] == "test")
    rows[~lacking].to_parquet(folder / "rows.parquet")
    assert "rl2 at K = 1 against K = 0, test: compared without 1 training seed(s) that only one of them has." in [
        finding.text for finding in diagnose(read_study([folder])) if finding.check == "failed_trials"
    ]


def test_seeds_disagree_within_one_setting_among_others(tmp_path: Path) -> None:
    search = {"training.meta_lr": [0.001, 0.01]}
    methods = {"mermaide": Effects(seed_offsets={0: -0.5}, noise_sd=0.05)}
    found = [
        one for one in findings(tmp_path / "sweep", methods=methods, search=search) if one.check == "seeds_disagree"
    ]
    assert found
    assert "(the widest of 2 among 2 settings)" in found[0].text


def test_seeds_that_disagree_in_one_setting_alone_are_no_widest_of_several(tmp_path: Path) -> None:
    key = "training.meta_lr"
    folder = write_sweep(tmp_path / "sweep", search={key: [0.001, 0.01]}, curves=False, profiles=False)
    rows = pd.read_parquet(folder / "rows.parquet")
    off = (rows["seed"] == 3) & (rows[f"setting.{key}"] == 0.001)
    rows["normalised_score"] -= 0.4 * off
    rows.to_parquet(folder / "rows.parquet")
    found = [one.text for one in diagnose(read_study([folder])) if one.check == "seeds_disagree"]
    assert found
    assert all("with meta_lr=0.001" in text for text in found)
    assert not any("widest" in text for text in found)


def test_folders_of_other_games_are_found(tmp_path: Path) -> None:
    folders = [write_sweep(tmp_path / name, {name: Effects()}, curves=False, profiles=False) for name in ("one", "two")]
    assert diagnose(read_study(folders)) == []
    rows = pd.read_parquet(folders[1] / "rows.parquet")
    rows.assign(never_return=rows["never_return"] + 5).to_parquet(folders[1] / "rows.parquet")
    found = diagnose(read_study(folders))
    assert {(finding.check, finding.severity) for finding in found} == {("mixed_games", SERIOUS)}
    assert "one played another game than two" in found[0].text


def test_each_check_is_planted_somewhere() -> None:
    planted = {check for check, *_ in PLANTED.values()}
    assert CHECKS.keys() == planted | {"failed_trials", "few_seeds", "mixed_games"}
