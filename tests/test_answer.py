"""The answer: which verdict follows from which differences, and what is compared with what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from sweep_folders import Effects, write_sweep

from mermaide_ray.errors import InputError
from mermaide_ray.metrics import ROW_METRICS
from mermaide_ray.report.answer import CONTRADICTED, SUPPORTED, UNDECIDED, Answer, Contrast, answer, verdict_of
from mermaide_ray.report.document import write_report
from mermaide_ray.report.score_tables import best_settings, contrast_table, ranked_on
from mermaide_ray.report.sources import MEASURES
from mermaide_ray.report.statistics import Interval
from mermaide_ray.report.study import read_study

FAR = {"curves": False, "profiles": False}


def contrast(low: float, high: float, condition: str = "test") -> Contrast:
    difference = Interval((low + high) / 2, low, high)
    better = True if low > 0 else False if high < 0 else None
    level = Interval(0.5, 0.4, 0.6)
    return Contrast("other", (condition,), level, level, difference, None, 5, 20, 1, better)


@pytest.mark.parametrize(
    ("overall", "by_condition", "expected"),
    [
        ([(0.1, 0.2), (0.01, 0.3)], [], SUPPORTED),
        ([(0.1, 0.2), (-0.01, 0.3)], [], UNDECIDED),
        ([(-0.3, -0.1), (0.1, 0.3)], [], CONTRADICTED),
        ([(-0.3, -0.1), (-0.1, 0.3)], [], CONTRADICTED),
        # Better on the whole, but worse for sure somewhere.
        ([(0.1, 0.2)], [(0.3, 0.4), (-0.2, -0.1)], UNDECIDED),
        ([(0.1, 0.2)], [(0.3, 0.4), (-0.2, 0.1)], SUPPORTED),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    overall: list[tuple[float, float]], by_condition: list[tuple[float, float]], expected: str
) -> None:
    verdict, because = verdict_of([contrast(*ends) for ends in overall], [contrast(*ends) for ends in by_condition])
    assert verdict == expected
    assert (because is None) == (expected == SUPPORTED)


def answered(folder: Path, claim: dict[str, Any] | None, **options: Any) -> Answer:
    return answer(read_study([write_sweep(folder, answer=claim, **FAR, **options)]))


def test_a_claim_that_holds_is_supported_with_its_numbers(tmp_path: Path) -> None:
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2", "always"], "conditions": ["test"], "k": 1}
    found = answered(tmp_path / "sweep", claim)
    # 0.90 + 0.04 against 0.85 + 0.02, each 0.1 lower on test agents.
    assert found.verdict == SUPPORTED
    assert [one.other for one in found.contrasts] == ["rl2", "always"]
    closest = found.contrasts[0]
    assert closest.difference.value == pytest.approx(0.07, abs=0.02)
    assert (closest.seeds, closest.tasks) == (5, 20)
    assert closest.probability is not None
    assert closest.probability.value > 0.9
    told = re.search(
        r"Supported: mermaide reaches .* of (\S+) \(test, K = 1\), (\S+) above rl2, its closest", found.sentence
    )
    assert told is not None
    assert float(told[1]) == pytest.approx(closest.level.value, abs=1e-3)
    assert float(told[2]) == pytest.approx(closest.difference.value, abs=1e-3)
    assert "5 training seeds × 20 tasks" in found.sentence


def test_the_opposite_claim_is_contradicted(tmp_path: Path) -> None:
    found = answered(tmp_path / "sweep", {"compare": "method", "value": "rl2", "against": ["mermaide"]})
    assert found.verdict == CONTRADICTED
    assert found.contrasts[0].difference.high < 0
    assert "below mermaide" in found.sentence
    assert {one.conditions for one in found.by_condition} == {("validation",), ("test",)}


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_training_seeds_give_no_verdict(seeds: int, tmp_path: Path) -> None:
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2", "always"], "conditions": ["test"]}
    found = answered(tmp_path / "sweep", claim, seeds=seeds)
    assert found.contrasts[0].difference.low > 0
    assert found.verdict == UNDECIDED
    assert found.sentence.endswith("With fewer than 3 training seeds there is no verdict.")


def test_a_few_seeds_in_common_do_not_throw_the_others_away(tmp_path: Path) -> None:
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"], "conditions": ["test"], "k": 0}
    methods = {"mermaide": Effects(), "rl2": Effects(score=0.6, model_margin=None)}
    folder = write_sweep(tmp_path / "sweep", methods, answer=claim, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.assign(seed=rows["seed"] + 4 * (rows["method"] == "rl2")).to_parquet(folder / "rows.parquet")
    found = answer(read_study([folder]))
    assert (found.verdict, found.contrasts[0].seeds) == (SUPPORTED, 5)
    # Where all seeds of one side are the other's, they are paired.
    fewer = rows[(rows["method"] != "rl2") | (rows["seed"] < 3)]
    fewer.to_parquet(folder / "rows.parquet")
    assert answer(read_study([folder])).contrasts[0].seeds == 3


@pytest.mark.parametrize("lost", [{(0.001, 1), (0.01, 2), (0.1, 0)}, {(0.001, 0), (0.001, 1), (0.01, 2)}])
def test_methods_that_lost_other_runs_are_compared_over_the_runs_of_both(
    lost: set[tuple[float, int]], tmp_path: Path
) -> None:
    """Settings differ by 0.3, methods by nothing: which runs are lost must make no difference."""
    key = "training.meta_lr"
    exact: dict[str, Any] = {"per_setting": {key: 0.3}, "seed_sd": 0, "noise_sd": 0, "gain": 0}
    methods = {"mermaide": Effects(**exact), "rl2": Effects(**exact)}
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"]}
    options: dict[str, Any] = {"search": {key: [0.001, 0.01, 0.1]}, "seeds": 3, "answer": claim}
    folder = write_sweep(tmp_path / "sweep", methods, **options, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    runs = pd.Series(list(zip(rows[f"setting.{key}"], rows["seed"], strict=True)), index=rows.index)
    rows[(rows["method"] != "mermaide") | ~runs.isin(lost)].to_parquet(folder / "rows.parquet")
    found = answer(read_study([folder])).contrasts[0]
    assert [found.difference.low, found.difference.value, found.difference.high] == pytest.approx([0, 0, 0], abs=1e-6)


def test_every_metric_of_the_rows_may_be_what_a_claim_is_about(tmp_path: Path) -> None:
    assert set(MEASURES) == {metric.key for metric in ROW_METRICS}
    claim = {"compare": "k", "value": 1, "against": [0], "measure": "wm_accuracy_before"}
    folder = write_sweep(tmp_path / "sweep", answer=claim, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.assign(wm_accuracy_before=rows["success_rate"]).to_parquet(folder / "rows.parquet")
    assert "accuracy" in answer(read_study([folder])).sentence


def test_a_training_that_failed_is_not_replaced_by_that_of_another_setting(tmp_path: Path) -> None:
    """Where one side lacks a setting, only the settings that both have are compared."""
    key = "training.meta_lr"
    methods = {"mermaide": Effects(per_setting={key: -0.3}), "rl2": Effects(score=0.85, model_margin=None)}
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"], "k": 0}
    folder = write_sweep(tmp_path / "sweep", methods, {key: [0.001, 0.01]}, answer=claim, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows[(rows["method"] != "rl2") | (rows[f"setting.{key}"] == 0.001)].to_parquet(folder / "rows.parquet")
    study = read_study([folder])
    assert study.cells_of("rl2", 0, ["test"], ["meta_lr=0.01"]) == []
    found = answer(study)
    assert found.verdict == SUPPORTED
    assert found.contrasts[0].difference.value == pytest.approx(0.05, abs=0.02)


def test_levels_are_of_the_training_runs_that_are_compared(tmp_path: Path) -> None:
    """No seed of one side has all settings: runs are compared one by one, where both sides have them."""
    key = "training.meta_lr"
    methods = {"mermaide": Effects(per_setting={key: -0.3}), "rl2": Effects(score=0.85, model_margin=None)}
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"], "k": 0}
    folder = write_sweep(tmp_path / "sweep", methods, {key: [0.001, 0.01]}, answer=claim, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    seeds, first = sorted(rows.loc[rows["method"] == "rl2", "seed"].unique()), rows[f"setting.{key}"] == 0.001
    here, there = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
    lost = (rows["method"] == "rl2") & ((first & rows["seed"].isin(there)) | (~first & rows["seed"].isin(here)))
    lost |= (rows["method"] == "mermaide") & ~first & rows["seed"].isin(there)
    rows[~lost].to_parquet(folder / "rows.parquet")
    [contrast] = answer(read_study([folder])).contrasts
    assert (contrast.num_settings, contrast.seeds) == (1, len(here))
    assert contrast.level.value - contrast.other_level.value == pytest.approx(contrast.difference.value, abs=0.02)


def test_training_runs_of_several_settings_are_not_called_training_seeds(tmp_path: Path) -> None:
    key, methods = "training.meta_lr", {"mermaide": Effects(), "rl2": Effects(score=0.5, model_margin=None)}
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"]}
    folder = write_sweep(tmp_path / "sweep", methods, {key: [0.001, 0.01]}, answer=claim, **FAR)
    assert "mean of 2 settings" in answer(read_study([folder])).sentence
    rows = pd.read_parquet(folder / "rows.parquet")
    seeds = sorted(rows.loc[rows["method"] == "rl2", "seed"].unique())
    here = rows["seed"].isin(seeds[: len(seeds) // 2])
    rows[~rows["method"].isin(methods) | (here == (rows[f"setting.{key}"] == 0.001))].to_parquet(
        folder / "rows.parquet"
    )
    found = answer(read_study([folder]))
    assert f"; {len(seeds)} training runs of 2 settings × " in found.sentence
    assert "training seeds" not in found.sentence
    assert "mean of" not in found.sentence


def test_a_rival_is_met_at_the_largest_k_that_it_has_and_that_k_is_named(tmp_path: Path) -> None:
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"], "conditions": ["test"]}
    folder = write_sweep(tmp_path / "sweep", ks=(0, 1, 5), answer=claim, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows[(rows["method"] != "rl2") | (rows["k"] < 5)].to_parquet(folder / "rows.parquet")
    found = answer(read_study([folder]))
    assert "(test, K = 5)" in found.sentence
    assert found.contrasts[0].other == "rl2 at K = 1"


def test_a_claim_about_a_run_that_failed_is_not_judged(tmp_path: Path) -> None:
    key = "training.meta_lr"
    folder = write_sweep(tmp_path / "sweep", search={key: [0.001, 0.01]}, answer={"compare": key, "value": 0.01}, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows[rows[f"setting.{key}"] != 0.01].to_parquet(folder / "rows.parquet")
    found = answer(read_study([folder]))
    assert found.verdict is None
    assert found.sentence.startswith(f"Not judged, since no run with {key} = 0.01 is finished. mermaide reaches")


def test_rivals_without_the_measure_are_named_and_not_compared(tmp_path: Path) -> None:
    claim = {"compare": "method", "value": "mermaide", "measure": "wm_nll_after", "better": "lower"}
    methods = {"mermaide": Effects(), "maml": Effects(model_margin=0.2), "rl2": Effects(model_margin=None)}
    found = answered(tmp_path / "sweep", claim, methods=methods)
    assert [contrast.other for contrast in found.contrasts] == ["maml"]
    assert found.verdict == SUPPORTED
    assert "has no world-model loss after adaptation to compare: rl2, " in found.sentence


def test_a_rival_with_scores_on_other_agents_only_is_named_and_not_compared(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", answer={"compare": "method", "value": "mermaide"}, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    apart = ((rows["method"] == "rl2") & (rows["task"] >= 5)) | ((rows["method"] == "mermaide") & (rows["task"] < 5))
    rows.assign(normalised_score=rows["normalised_score"].mask(apart)).to_parquet(folder / "rows.parquet")
    found = answer(read_study([folder]))
    assert "rl2" not in [contrast.other for contrast in found.contrasts]
    assert "Not compared, since it has no normalised score to compare: rl2." in found.sentence


def test_methods_are_paired_on_the_agents_that_both_met_and_the_others_are_told(tmp_path: Path) -> None:
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"], "conditions": ["test"]}
    methods = {"mermaide": Effects(), "rl2": Effects(score=0.6, model_margin=None)}
    folder = write_sweep(tmp_path / "sweep", methods, answer=claim, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows[(rows["method"] != "rl2") | (rows["task"] >= 5)].to_parquet(folder / "rows.parquet")
    study = read_study([folder])
    [contrast] = answer(study).contrasts
    assert contrast.tasks == study.cells.basis(study.at_largest("rl2", "test"))[1]
    assert contrast.probability is not None
    assert "mermaide against rl2, test: compared without 5 task(s) that only one of them has." in study.cells.left_out


def test_a_rival_that_the_claim_names_and_that_has_no_rows_is_told(tmp_path: Path) -> None:
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2", "maml"], "conditions": ["test"]}
    study = read_study([write_sweep(tmp_path / "sweep", answer=claim, **FAR)])
    assert [contrast.other for contrast in answer(study).contrasts] == ["rl2"]
    assert "maml: not compared, though the claim names it, since it has no rows." in study.cells.left_out


def test_agents_that_do_not_respond_leave_a_sentence_instead_of_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mermaide_ray.report.document.FORMATS", ("svg",))
    for claim in (None, {"compare": "method", "value": "mermaide"}):
        folder = write_sweep(tmp_path / f"sweep{claim is None}", answer=claim, **FAR)
        rows = pd.read_parquet(folder / "rows.parquet").assign(normalised_score=float("nan"))
        rows.to_parquet(folder / "rows.parquet")
        found = answer(read_study([folder]))
        assert found.verdict is None
        assert "on none of these agents does the oracle gain anything" in found.sentence
        assert write_report([folder]).html.is_file()


def test_equal_methods_leave_it_undecided(tmp_path: Path) -> None:
    methods = {"mermaide": Effects(noise_sd=0.1), "rl2": Effects(noise_sd=0.1, model_margin=None)}
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"]}
    found = answered(tmp_path / "sweep", claim, methods=methods)
    assert found.verdict == UNDECIDED
    assert found.contrasts[0].difference.low < 0 < found.contrasts[0].difference.high


def test_where_less_is_better_the_lower_one_wins(tmp_path: Path) -> None:
    methods = {"mermaide": Effects(interventions=20), "rl2": Effects(interventions=40)}
    claim = {"compare": "method", "value": "mermaide", "against": ["rl2"], "measure": "interventions"}
    assert answered(tmp_path / "less", {**claim, "better": "lower"}, methods=methods).verdict == SUPPORTED
    assert answered(tmp_path / "more", claim, methods=methods).verdict == CONTRADICTED


def test_k_is_compared_within_the_main_method(tmp_path: Path) -> None:
    found = answered(tmp_path / "sweep", {"compare": "k", "value": 1, "against": [0]})
    assert (found.verdict, found.name, found.contrasts[0].other) == (SUPPORTED, "mermaide, K = 1", "mermaide, K = 0")
    assert found.contrasts[0].difference.value == pytest.approx(0.04, abs=0.01)


def test_values_of_a_setting_are_paired_only_where_the_game_is_the_same(tmp_path: Path) -> None:
    key = "training.meta_lr"
    methods = {"mermaide": Effects(per_setting={key: 0.1})}
    options: dict[str, Any] = {"methods": methods, "search": {key: [0.001, 0.01]}}
    claim = {"compare": key, "value": 0.01}
    same, other = (
        answered(tmp_path / "same", claim, **options),
        answered(tmp_path / "other", claim, game=[key], **options),
    )
    for found in (same, other):
        assert (found.verdict, found.contrasts[0].other) == (SUPPORTED, "meta_lr = 0.001")
        assert found.contrasts[0].difference.value == pytest.approx(0.1, abs=0.02)
    assert same.contrasts[0].probability is not None
    assert other.contrasts[0].probability is None
    # Rules of another game are no rivals to pair with, but the agents are the same: hardly wider.
    width = [found.contrasts[0].difference.high - found.contrasts[0].difference.low for found in (same, other)]
    assert width[0] < width[1] < 3 * width[0]


def test_a_claim_that_names_no_side_is_about_the_largest_k_or_the_first_value(tmp_path: Path) -> None:
    assert answered(tmp_path / "k", {"compare": "k"}).name == "mermaide, K = 1"
    search = {"training.meta_lr": [0.01, 0.001]}
    assert (
        answered(tmp_path / "rate", {"compare": "training.meta_lr"}, search=search).name == "mermaide, meta_lr = 0.001"
    )


def test_without_a_claim_the_sentence_takes_no_side(tmp_path: Path) -> None:
    found = answered(tmp_path / "sweep", None)
    assert found.verdict is None
    assert found.sentence.startswith("mermaide reaches")
    assert "first_n, the best unprivileged other method" in found.sentence
    assert "which includes 0: the difference may be chance" in found.sentence


def test_a_sweep_file_of_another_version_is_reported_with_its_claim(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", answer={"compare": "k"}, **FAR)
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "older": 1, "settings": {"gone": {"x": 2}}}))
    found = answer(read_study([folder]))
    assert (found.verdict, found.name) == (SUPPORTED, "mermaide, K = 1")


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"compare": "method", "value": "maml"}, r"`answer.value` must be a method .* got 'maml'"),
        (
            {"compare": "methd"},
            r"`answer.compare` must be one of method, k, condition, got 'methd' \(did you mean 'method'",
        ),
        ({"compare": "method", "value": "rl2", "measure": "reutrn"}, r"`answer.measure` .* \(did you mean 'return'"),
        ({"compare": "method", "value": "rl2", "conditions": ["far"]}, r"`answer.conditions` must be .* got 'far'"),
        ({"compare": "method", "value": "rl2", "k": 7}, r"`answer.k` must be a K of the rows of rl2 \[0, 1\], got 7"),
        (
            {"compare": "method", "value": "rl2", "better": "less"},
            r"`answer.better` must be .higher. or .lower., got less",
        ),
    ],
)
def test_a_claim_about_what_is_not_there_is_refused(claim: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        answered(tmp_path / "sweep", claim, seeds=2, tasks=4)


def test_conditions_are_compared_within_the_main_method(tmp_path: Path) -> None:
    claim = {"compare": "condition", "value": "validation", "k": 0}
    found = answered(tmp_path / "sweep", claim)
    assert (found.verdict, found.name, found.contrasts[0].other) == (
        SUPPORTED,
        "mermaide, validation",
        "mermaide, test",
    )
    assert found.contrasts[0].difference.value == pytest.approx(0.1, abs=0.05)
    assert "(K = 0)" in found.sentence


@pytest.mark.parametrize("is_same_game", [True, False])
def test_conditions_are_paired_by_training_seed_and_where_the_game_is_the_same_by_agent(
    is_same_game: bool, tmp_path: Path
) -> None:
    """Training seeds lie far apart, but each loses the same where it does not plan."""
    claim = {"compare": "condition", "value": "test", "against": ["unplanned"]}
    methods = {"mermaide": Effects(seed_offsets={0: -0.4, 1: -0.2, 3: 0.2, 4: 0.4})}
    conditions = ("validation", "test", "unplanned")
    folder = write_sweep(tmp_path / "sweep", methods, answer=claim, conditions=conditions, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows = rows[rows["condition"] != "unplanned"]
    less = rows[rows["condition"] == "test"].assign(condition="unplanned")
    less["normalised_score"] -= 0.05
    if not is_same_game:
        less["never_return"] += 1
    pd.concat([rows, less]).to_parquet(folder / "rows.parquet")
    study = read_study([folder])
    found = answer(study)
    [contrast] = found.contrasts
    assert found.verdict == SUPPORTED
    assert contrast.difference.value == pytest.approx(0.05, abs=1e-3)
    assert (contrast.probability is not None) == is_same_game
    assert contrast.difference.high - contrast.difference.low < (1e-5 if is_same_game else 0.02)
    table = contrast_table(found)
    assert table is not None
    assert "paired by training seed, and by task where both sides met the same agents" in table.caption


def test_conditions_are_compared_over_the_settings_that_both_have(tmp_path: Path) -> None:
    key, claim = "training.meta_lr", {"compare": "condition", "value": "validation", "k": 0}
    methods = {"mermaide": Effects(per_setting={key: -0.3})}
    folder = write_sweep(tmp_path / "sweep", methods, {key: [0.001, 0.01]}, answer=claim, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    lost = (rows[f"setting.{key}"] == 0.01) & (rows["condition"] == "test")
    rows[~lost].to_parquet(folder / "rows.parquet")
    [contrast] = answer(read_study([folder])).contrasts
    assert contrast.num_settings == 1
    assert contrast.difference.value == pytest.approx(0.1, abs=0.05)


def test_what_is_no_method_is_compared_within_the_main_one_and_names_it(tmp_path: Path) -> None:
    key = "training.meta_lr"
    methods = {"rl2": Effects(per_setting={key: -0.2}), "mermaide": Effects(per_setting={key: 0.2})}
    options: dict[str, Any] = {"methods": methods, "search": {key: [0.001, 0.01]}}
    found = answered(tmp_path / "sweep", {"compare": key, "value": 0.001}, **options)
    assert (found.verdict, found.name) == (SUPPORTED, "rl2, meta_lr = 0.001")
    # Methods are compared over both, and the sentence says so.
    of_methods = answered(tmp_path / "methods", {"value": "mermaide", "against": ["rl2"]}, **options)
    assert "K = 1, mean of 2 settings), " in of_methods.sentence


def test_the_main_method_is_the_one_that_the_claim_is_about(tmp_path: Path) -> None:
    methods = {"rl2": Effects(), "mermaide": Effects()}
    folder = write_sweep(tmp_path / "sweep", methods, answer={"value": "mermaide"}, **FAR)
    assert read_study([folder]).main == "mermaide"


def test_conditions_are_compared_at_a_k_that_both_have(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", ks=(0, 1, 5), answer={"compare": "condition", "value": "test"}, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows[(rows["condition"] != "test") | (rows["k"] < 5)].to_parquet(folder / "rows.parquet")
    found = answer(read_study([folder]))
    assert found.verdict == CONTRADICTED
    assert "(K = 1)" in found.sentence
    rows[(rows["condition"] == "test") == (rows["k"] == 5)].to_parquet(folder / "rows.parquet")
    assert "was scored at no K in common in test, validation" in answer(read_study([folder])).sentence


def test_a_mixture_may_be_compared_beside_a_folder_that_names_another(tmp_path: Path) -> None:
    key = "agents.families"
    folder = write_sweep(
        tmp_path / "sweep", search={key: ["narrow", "{ucb: {train: {}}}"]}, answer={"compare": key}, **FAR
    )
    assert answer(read_study([folder])).name.endswith("families = narrow")


def test_where_no_value_is_named_the_first_is_claimed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"search": {"training.meta_lr": [0.001, 0.01]}}
    assert (
        answered(tmp_path / "setting", {"compare": "training.meta_lr"}, **options).name == "mermaide, meta_lr = 0.001"
    )
    # As a resolved sweep.yaml holds it: what was not given is null.
    empty = {"value": None, "against": None, "conditions": None, "k": None, "measure": "normalised_score"}
    assert answered(tmp_path / "method", {"compare": "method", **empty}).name == "mermaide"


def test_conditions_that_are_scored_at_other_k_meet_at_the_largest_that_they_share(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", ks=(0, 1, 3), answer={"compare": "method", "value": "mermaide"}, **FAR)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows[(rows["condition"] == "test") | (rows["k"] < 3)].to_parquet(folder / "rows.parquet")
    study = read_study([folder])
    assert "(validation and test, K = 1)" in answer(study).sentence
    # Each condition's tables show its own largest K, and settings are ranked where they are scored.
    assert [study.largest("mermaide", condition) for condition in ("validation", "test")] == [[1], [3]]
    assert best_settings(study) == [""]


def test_test_agents_choose_no_setting(tmp_path: Path) -> None:
    key = "training.meta_lr"
    options: dict[str, Any] = {"search": {key: [0.001, 0.01]}, "methods": {"mermaide": Effects(per_setting={key: 0.1})}}
    ranked = read_study([write_sweep(tmp_path / "ranked", **options, **FAR)])
    unranked = read_study([write_sweep(tmp_path / "unranked", conditions=["test", "far"], **options, **FAR)])
    assert best_settings(ranked)[0].endswith("0.01")
    assert best_settings(unranked)[0].endswith("0.001")
    assert (ranked_on(ranked), ranked_on(unranked)) == ("validation", None)


def test_whole_numbers_are_compared_with_all_their_digits(tmp_path: Path) -> None:
    key = "training.env_steps"
    claim = {"compare": key, "value": 65536}
    found = answered(tmp_path / "sweep", claim, search={key: [16384, 65536]})
    assert [contrast.other for contrast in found.contrasts] == ["mermaide, env_steps = 16384"]
    against = answered(tmp_path / "against", claim | {"against": [16384]}, search={key: [16384, 65536, 65540]})
    assert (against.name, len(against.contrasts)) == ("mermaide, env_steps = 65536", 1)


def test_what_shares_no_condition_is_named_and_not_compared(tmp_path: Path) -> None:
    claim = {"compare": "method", "value": "mermaide"}
    ours = write_sweep(tmp_path / "ours", {"mermaide": Effects()}, answer=claim, conditions=["far"], **FAR)
    theirs = write_sweep(tmp_path / "theirs", {"maml": Effects()}, **FAR)
    found = answer(read_study([ours, theirs]))
    assert {contrast.other for contrast in found.contrasts} == {"first_n", "never", "always"}
    assert found.sentence.endswith("Not compared, since it shares no condition: maml.")


def test_values_are_compared_with_the_digits_that_labels_have(tmp_path: Path) -> None:
    for claim in ({"value": 0.0123456, "against": [0.2]}, {"value": 0.0123456}):
        found = answered(
            tmp_path / f"sweep{len(claim)}",
            {"compare": "training.meta_lr"} | claim,
            search={"training.meta_lr": [0.01235, 0.2]},
        )
        assert [contrast.other for contrast in found.contrasts] == ["mermaide, meta_lr = 0.2"]
