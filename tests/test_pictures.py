"""Pictures of a study: no text covers another, whatever is swept; and what they draw is what the cells hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sweep_folders import METHODS, Effects, write_sweep
from test_figures import overlaps

from mermaide_ray.report.answer import Contrast, answer
from mermaide_ray.report.charts import Point, binned, contrast_bars, far_out, fitted, non_dominated
from mermaide_ray.report.pictures import pictures
from mermaide_ray.report.pictures.picture import basis
from mermaide_ray.report.pictures.traces import _over_settings
from mermaide_ray.report.score_tables import world_model_table
from mermaide_ray.report.statistics import Interval, bootstrap_interval
from mermaide_ray.report.study import Study, read_study


def drawn(study: Study) -> dict[str, Figure]:
    return {picture.name: picture.figure for picture in pictures(study, answer(study))}


MANY = {f"a_method_with_a_long_name_{index}": Effects(score=0.8 - 0.05 * index) for index in range(5)}
SWEEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rates and arms": {
        "search": {"training.meta_lr": [0.0001, 0.001], "environment.num_arms": [2, 5, 10, 20]},
        "methods": {**METHODS, "maml": Effects(score=0.7)},
        "conditions": ("validation", "test", "far", "further"),
        "ks": (0, 1, 5),
    },
    "labels": {
        "search": {"agents.families": ["ucb", "softmax with a long name", "a mixture of all families"]},
        "conditions": ("validation", "agents with a long name", "others"),
    },
    "many methods": {"methods": {**METHODS, **MANY}, "answer": {"compare": "method", "value": "rl2"}},
    "random search": {"search": {"training.meta_lr": np.logspace(-4, -2, 15).round(6).tolist()}, "seeds": 2},
}


@pytest.mark.parametrize(
    "sweep", [name if name == "labels" else pytest.param(name, marks=pytest.mark.slow) for name in SWEEPS]
)
def test_no_text_covers_another(sweep: str, tmp_path: Path) -> None:
    options = {"tasks": 8, "seeds": 3, "horizon": 40, **SWEEPS[sweep]}
    study = read_study([write_sweep(tmp_path / "sweep", **options)])
    found = {name: overlaps(figure) for name, figure in drawn(study).items()}
    assert {name: pairs for name, pairs in found.items() if pairs} == {}


def test_matrices_and_curves_hold_the_scores_of_their_settings(tmp_path: Path) -> None:
    key = "environment.num_arms"
    methods = {"mermaide": Effects(per_setting={key: -0.1}, noise_sd=1e-4, seed_sd=0, task_sd=0)}
    study = read_study([write_sweep(tmp_path / "sweep", methods, {key: [20, 2]}, profiles=False, tasks=6)])
    figures = drawn(study)
    matrix = figures["shift_num_arms_condition"].axes[0].images[0].get_array()
    # Rows in the order of the values: 2 (second in the list, so 0.1 lower), 20; columns validation, test.
    assert np.asarray(matrix) == pytest.approx(np.array([[0.84, 0.74], [0.94, 0.84]]), abs=1e-3)
    validation, test = figures["over_num_arms"].axes
    for axis, expected in ((validation, [0.84, 0.94]), (test, [0.74, 0.84])):
        [bars] = axis.containers
        assert bars[0].get_xydata() == pytest.approx(np.array(list(zip([2, 20], expected, strict=True))), abs=1e-3)


def test_learning_curves_show_the_smallest_and_the_largest_k(tmp_path: Path) -> None:
    study = read_study([write_sweep(tmp_path / "sweep", ks=(0, 1, 5), seeds=2, tasks=4, profiles=False)])
    titles = [axis.get_title() for axis in drawn(study)["learning_curves"].axes]
    assert titles == ["training", "validation, K = 0", "validation, K = 5"]


def test_small_print_names_the_condition_with_the_fewest_scored_tasks(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", seeds=2, tasks=6, conditions=("validation", "exp3", "test"), **PLAIN)
    assert basis(read_study([folder])) == "2 training seeds × 6 tasks per condition (mermaide)."
    rows = pd.read_parquet(folder / "rows.parquet")
    hopeless = (rows["condition"] == "exp3") & (rows["task"] > 1)
    rows["normalised_score"] = rows["normalised_score"].mask(hopeless)
    rows.to_parquet(folder / "rows.parquet")
    study = read_study([folder])
    assert basis(study) == "2 training seeds × 6 tasks per condition (mermaide; fewest with a score: 2, exp3)."
    assert basis(study, "return") == "2 training seeds × 6 tasks per condition (mermaide)."


def test_a_long_label_stands_in_two_lines() -> None:
    assert fitted("mermaide, moves_unannounced") == "mermaide,\nmoves_unannounced"
    assert [len(line) for line in fitted("x" * 80).split("\n")] == [26, 26]


PLAIN: dict[str, Any] = {"curves": False, "profiles": False}
CONDITIONS = ("validation", "test", "far", "further")
EXACT = {"seed_sd": 0, "task_sd": 0, "noise_sd": 1e-4}


def test_many_conditions_stand_side_by_side_with_their_differences_and_gains(tmp_path: Path) -> None:
    methods = {"mermaide": Effects(**EXACT), "maml": Effects(score=0.8, gain=0, model_margin=None, **EXACT)}
    options = {"tasks": 6, "seeds": 3, "profiles": False, "conditions": CONDITIONS}
    answer = {"compare": "method", "value": "mermaide", "against": ["maml"]}
    figures = drawn(read_study([write_sweep(tmp_path / "sweep", methods, answer=answer, **options)]))
    scores, differences, gains = figures["over_conditions"].axes
    expected = {"mermaide": [0.94, 0.84, 0.84, 0.84], "maml": [0.8, 0.7, 0.7, 0.7]}
    assert {bars.get_label(): bars[0].get_ydata().tolist() for bars in scores.containers} == {
        name: pytest.approx(values, abs=1e-3) for name, values in expected.items()
    }
    assert differences.containers[0][0].get_ydata() == pytest.approx(np.full(4, 0.14), abs=1e-3)
    assert gains.containers[0][0].get_ydata() == pytest.approx(np.full(4, 0.04), abs=1e-3)
    # All conditions together, rather than the first few of them.
    assert figures["comparison"].axes[0].containers[0][0].get_xdata() == pytest.approx([0.14], abs=1e-3)


def against(other: str, difference: float, condition: str = "test") -> Contrast:
    """A contrast with an interval of 0.01 to either side."""
    interval = Interval(difference, difference - 0.01, difference + 0.01)
    return Contrast(other, (condition,), interval, interval, interval, None, 3, 20, 1, None)


def test_what_lies_far_beyond_the_others_is_told_at_an_arrow() -> None:
    near, far = {"rl2": 0.0, "maml": 0.02, "reinforce": -0.03}, {"never": 0.97, "spiteful": -0.5}
    contrasts = [against(other, difference) for other, difference in {**near, **far}.items()]
    assert [contrast.other for contrast in far_out(contrasts)] == list(far)
    figure = contrast_bars("mermaide", contrasts, "normalised_score")
    [axis] = figure.axes
    [bars] = axis.containers
    assert bars[0].get_xdata().tolist() == list(near.values())
    low, high = axis.get_xlim()
    assert -0.1 < low < high < 0.1
    told = {text.get_text(): text.xy for text in axis.texts}
    assert told == {"+0.970 [+0.960, +0.980]": (high, -3), "-0.500 [-0.510, -0.490]": (low, -4)}
    assert [line.get_marker() for line in axis.lines if line.get_marker() in "<>"] == [">", "<"]
    assert overlaps(figure) == []


def test_nothing_is_far_where_no_half_is_near() -> None:
    assert far_out([against("never", 0.97)]) == []
    assert far_out([against(name, difference) for name, difference in (("a", 0.2), ("b", 0.5), ("c", 0.8))]) == []
    same = Interval(0, 0, 0)
    assert far_out([replace(against("a", 0), difference=same), against("b", 0.5)]) == []


def test_a_condition_with_nothing_but_arrows_stands_in_the_legend() -> None:
    contrasts = [against("rl2", 0.0), against("maml", 0.01), against("rl2", 0.9, "far"), against("maml", 0.8, "far")]
    figure = contrast_bars("mermaide", contrasts, "normalised_score")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["test", "far"]


def test_a_gain_over_settings_of_other_families_draws_an_agent_with_all_its_tasks(tmp_path: Path) -> None:
    """Both settings have agents of the same numbers: they are pooled side by side, and one interval is the same."""
    key = "agents.families"
    options: dict[str, Any] = {"tasks": 8, "seeds": 3, "conditions": CONDITIONS, "curves": False, "profiles": False}
    folder = write_sweep(tmp_path / "sweep", {"mermaide": Effects()}, {key: ["ucb", "exp3"]}, game=[key], **options)
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.assign(family=rows[f"setting.{key}"]).to_parquet(folder / "rows.parquet")
    study = read_study([folder])
    gain = study.gain_of_k("mermaide", "far")
    assert (gain.shape, len(set(study.cells.agents(gain.columns)))) == ((3, 16), 8)
    together = study.cells.interval_of(gain)
    assert together != bootstrap_interval(gain.to_numpy(), seed=0)
    bars = drawn(study)["over_conditions"].axes[1].containers[0]
    (segments,) = bars[2]
    assert segments.get_segments()[CONDITIONS.index("far")][:, 1] == pytest.approx([together.low, together.high])


def test_settings_told_in_words_stand_side_by_side_in_every_condition(tmp_path: Path) -> None:
    options = {"tasks": 6, "seeds": 2, "profiles": False, "conditions": CONDITIONS}
    search = {"agents.families": ["all_sorts", "ucb"]}
    study = read_study([write_sweep(tmp_path / "sweep", {"mermaide": Effects(**EXACT)}, search=search, **options)])
    returns, interventions = drawn(study)["families_over_conditions"].axes
    rows = study.cells.pooled
    for axis, measure in ((returns, "return"), (interventions, "interventions")):
        assert [bars.get_label() for bars in axis.containers] == ["families = all_sorts", "families = ucb"]
        for value, bars in zip(("all_sorts", "ucb"), axis.containers, strict=True):
            settings = [str(setting) for setting in study.settings.index[study.settings["agents.families"] == value]]
            expected = [
                rows(study.at_largest("mermaide", condition, settings), measure).to_numpy().mean()
                for condition in CONDITIONS
            ]
            assert bars[0].get_ydata() == pytest.approx(expected, abs=1e-3)
        assert {line.get_label() for line in axis.lines if not line.get_label().startswith("_")} == {"oracle", "never"}
    assert not np.allclose(*(bars[0].get_ydata() for bars in returns.containers))


def test_predictions_in_many_conditions_stand_beside_their_floors(tmp_path: Path) -> None:
    methods = {"mermaide": Effects(model_margin=0.5)}
    options = {"tasks": 6, "seeds": 2, "profiles": False, "conditions": CONDITIONS, "ks": (0, 1, 5)}
    study = read_study([write_sweep(tmp_path / "sweep", methods, **options)])
    figures = drawn(study)
    assert "world_model_loss" not in figures
    losses, accuracy, calibration = figures["world_model_conditions"].axes
    floor = [line.get_ydata()[0] for line in losses.lines if line.get_label() == "running frequencies"]
    assert [bars.get_label() for bars in losses.containers] == ["K = 0", "K = 1", "K = 5"]
    for bars in losses.containers:
        assert bars[0].get_ydata() == pytest.approx(np.array(floor) - 0.5, abs=1e-5)
    assert [bars[0].get_ydata()[0] for bars in accuracy.containers] == pytest.approx([0.8] * 3)
    assert [bars[0].get_ydata()[0] for bars in calibration.containers] == pytest.approx([0.05] * 3)
    table = world_model_table(study)
    assert table is not None
    assert [row[0] for row in table.rows] == list(CONDITIONS)
    assert {row[table.head.index("less floor [95%]")] for row in table.rows} == {"-0.500 [-0.500, -0.500]"}


def test_the_front_follows_each_method_through_the_values_of_a_setting(tmp_path: Path) -> None:
    key = "environment.cost_weight"
    methods = {"mermaide": Effects(per_setting={key: -0.2}, **EXACT), "maml": Effects(score=0.7, **EXACT)}
    options = {"tasks": 6, "seeds": 2, "profiles": False, "game": (key,)}
    study = read_study([write_sweep(tmp_path / "sweep", methods, {key: [0.1, 0.5]}, **options)])
    validation, _ = drawn(study)["pareto_front"].axes
    lines = {line.get_label(): line for line in validation.lines}
    cells = [study.at_largest("mermaide", "validation", [f"cost_weight={value}"]) for value in (0.1, 0.5)]
    expected = [study.cells.pooled(cell, "success_rate").to_numpy().mean() for cell in cells]
    assert lines["mermaide"].get_ydata() == pytest.approx(expected)
    assert expected[0] > expected[1] + 0.1
    assert [text.get_text() for text in validation.texts] == ["0.1", "0.5"]


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [Point("a", 0, 0, 0.1), Point("b", 0, 30, 0.8), Point("c", 0, 40, 0.7), Point("d", 0, 50, 0.9)]
    assert [point.method for point in non_dominated([*points, Point("e", 0, 30, 0.5)])] == ["a", "b", "d"]


def test_groups_of_equal_size_follow_the_axis() -> None:
    middle, means = binned(np.array([3.0, 1.0, 2.0, 4.0] * 2), np.array([30.0, 10.0, 20.0, 40.0] * 2), bins=2)
    assert middle.tolist() == [1.5, 3.5]
    assert means.tolist() == [15.0, 35.0]


def test_curves_of_several_settings_are_averaged_where_all_have_been() -> None:
    steps, key = "throughput/env_steps", "principal/return"
    one = pd.DataFrame({steps: [0, 10, 20, 30], key: [0.0, 1.0, 2.0, 3.0]})
    two = pd.DataFrame({steps: [10, 20], key: [3.0, 4.0]})
    mean = _over_settings([one, two], (key, "validation/score_k0"))
    assert mean[[steps, key]].to_numpy().tolist() == [[10, 2.0], [20, 3.0]]


def test_profiles_that_stay_with_their_runs_are_drawn_for_the_best_setting_alone(tmp_path: Path) -> None:
    key = "training.meta_lr"
    methods = {"mermaide": Effects(per_setting={key: 0.1})}
    folder = write_sweep(tmp_path / "sweep", methods, {key: [0.001, 0.01]}, tasks=4, seeds=2, horizon=20, curves=False)
    (whole,) = drawn(read_study([folder]))["intervention_heatmap"].axes[0].images
    profiles = pd.read_parquet(folder / "profiles.parquet")
    (folder / "profiles.parquet").unlink()
    for (rate, seed), own in profiles.groupby([f"setting.{key}", "seed"]):
        run = folder / "runs" / f"method=mermaide,meta_lr={rate},seed={seed}"
        run.mkdir(parents=True)
        # Of the worse setting no row can be read: nothing may try.
        if rate == 0.01:
            own.drop(columns=["trial", f"setting.{key}"]).to_parquet(run / "profiles.parquet")
        else:
            (run / "profiles.parquet").write_text("broken")
    (apart,) = drawn(read_study([folder]))["intervention_heatmap"].axes[0].images
    assert np.asarray(apart.get_array()) == pytest.approx(np.asarray(whole.get_array()))
