"""Every figure draws what the data say: the tests read the artists, and look whether any text overlaps another."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_terminal import result_rows

from mermaide_ray.calibration_bins import calibration_error, of_points, pooled_bins
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.report.drawing import PALETTE, on_common_steps
from mermaide_ray.report.files import read_progress
from mermaide_ray.report.pictures import traces, write_figures
from mermaide_ray.report.pictures.scores import kshot_curve
from mermaide_ray.report.run_charts import (
    calibration_curve,
    intervention_heatmap,
    kshot_panels,
    learning_curves,
)
from mermaide_ray.report.statistics import Interval
from mermaide_ray.report.study import read_study
from mermaide_ray.storage import RunDirectory
from mermaide_ray.sweep.results import read_milestones
from mermaide_ray.sweep.store import Store

ALL = ["learning_curves", "kshot_curve", "intervention_heatmap", "calibration"]


def progress(top: float, iterations: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    steps = 24_000 * np.arange(1, iterations + 1)
    learned = top * (1 - np.exp(-steps / 2e6))
    frame = pd.DataFrame({"throughput/env_steps": steps, "principal/return": 10 + 68 * learned})
    frame["principal/return"] += rng.normal(size=iterations)
    rounds = np.arange(iterations) % 30 == 29
    for k in (0, 1):
        frame[f"validation/score_k{k}"] = np.where(rounds, learned - 0.04 * (1 - k), np.nan)
    return frame


def profiles(tasks: int = 12, horizon: int = 50, method: str = "mermaide") -> pd.DataFrame:
    """Agent i of a family stops being steered at step 10 + i, and explores the more the larger i; i is shuffled."""
    lines = []
    for condition, family, k in itertools.product(("validation", "test"), ("ucb", "epsilon_greedy"), (0, 1)):
        for task, rank in enumerate(np.random.default_rng(1).permutation(tasks)):
            for step in range(horizon):
                lines.append((method, 0, condition, k, family, task, 0.1 * rank, step, float(step < 10 + rank)))
    columns = ["method", "seed", "condition", "k", "family", "task", "exploration", "step", "intervention_rate"]
    return pd.DataFrame(lines, columns=columns)


def calibration(method: str = "mermaide") -> pd.DataFrame:
    """Before adaptation each bin is 0.1 over-confident; afterwards it is right."""
    lines = []
    for condition, family, k, index in itertools.product(("validation", "test"), ("ucb", "exp3"), (0, 1), range(2, 15)):
        confidence = (index + 0.5) / 15
        lines.append((method, 0, condition, k, family, index, 100 * index, confidence, confidence - 0.1 * (1 - k)))
    columns = ["method", "seed", "condition", "k", "family", "bin", "count", "confidence", "frequency"]
    return pd.DataFrame(lines, columns=columns)


def older(rows: pd.DataFrame) -> pd.DataFrame:
    """As older runs left them: the condition was the split."""
    return rows.rename(columns={"condition": "split"})


def run_directory(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("name: mermaide\n")
    (folder / "provenance.json").write_text(json.dumps({"commit": "0123456789abcdef"}))
    for where, top in ((folder, 0.93), (folder / "baselines" / "reinforce", 0.85)):
        where.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({key: value for key, value in line.items() if not np.isnan(value)})
            for line in progress(top).to_dict("records")
        ]
        (where / "progress.jsonl").write_text("\n".join(lines) + "\n")
    result_rows().to_parquet(folder / "rows.parquet")
    older(profiles()).to_parquet(folder / "profiles.parquet")
    older(calibration()).to_parquet(folder / "calibration.parquet")
    return folder


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of titles, labels, ticks, legends and small print that cover each other, and what leaves the picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    for axis in [axis for axis in figure.axes if axis.axison]:
        for side in (axis.xaxis, axis.yaxis):
            inside = [tick for tick in side.get_ticklabels(which="both") if tick.get_text() and tick.get_visible()]
            low, high = sorted(side.get_view_interval())
            at = 0 if side is axis.xaxis else 1
            texts += [tick for tick in inside if low <= tick.get_position()[at] <= high]
    texts += figure.legends + [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    texts += [figure._supxlabel] if figure._supxlabel else []
    boxes = [(str(text), text.get_window_extent()) for text in texts]
    boxes = [(name, box) for name, box in boxes if box.width > 1 and box.height > 1]
    outside = [(name, "edge") for name, box in boxes if box.x0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y0 < -1]
    return outside + [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]


def drawn_lines(axis) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axis.get_lines() if not line.get_label().startswith("_")}


def test_a_learning_curve_has_a_band_only_where_there_are_several_seeds() -> None:
    several = [progress(0.93, seed=seed) for seed in range(5)]
    figure = learning_curves({"mermaide": several, "reinforce": [progress(0.8)]}, note="synthetic")
    training, *validation = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["training", "validation, K = 0", "validation, K = 1"]
    assert len(training.collections) == 1
    lines = drawn_lines(training)
    assert set(lines) == {"mermaide", "reinforce"}
    low, high = training.collections[0].get_paths()[0].get_extents().intervaly
    assert low <= lines["mermaide"][:, 1].min()
    assert lines["mermaide"][:, 1].max() <= high
    assert lines["mermaide"][-1, 0] == pytest.approx(299 * 24_000)
    assert [len(drawn_lines(axis)["mermaide"]) for axis in validation] == [10, 10]
    assert drawn_lines(validation[1])["mermaide"][-1, 1] == pytest.approx(several[0]["validation/score_k1"].iloc[-1])
    assert validation[0].get_ylim() == validation[1].get_ylim()
    assert overlaps(figure) == []


def test_a_learning_curve_keeps_to_the_steps_that_all_seeds_have_reached() -> None:
    figure = learning_curves({"mermaide": [progress(0.9), progress(0.9, iterations=150)]})
    assert drawn_lines(figure.axes[0])["mermaide"][:, 0].max() <= 150 * 24_000


def kshot(rows: pd.DataFrame, folder: Path) -> Figure:
    """The curve of a run's folder with these rows."""
    folder.mkdir()
    rows.to_parquet(folder / "rows.parquet")
    [picture] = kshot_curve(read_study([folder]), fewest=1)
    return picture.figure


def test_the_k_shot_curve_shows_interquartile_means_and_rules_as_lines_across(tmp_path: Path) -> None:
    figure = kshot(result_rows(), tmp_path / "run")
    validation, test = figure.axes
    bars = {container.get_label(): container[0].get_xydata() for container in test.containers}
    assert set(bars) == {"mermaide", "reinforce_without_world_model"}
    assert bars["mermaide"][:, 1] == pytest.approx([0.90, 0.95], abs=0.02)
    across = {line.get_label(): line.get_ydata()[0] for line in test.get_lines() if line.get_linestyle() != "-"}
    assert across["first_n"] == pytest.approx(0.88)
    assert across["oracle (privileged)"] == pytest.approx(1)
    assert "never" not in across
    assert "below: never 0.00" in test.get_xlabel()
    assert test.get_ylim() == validation.get_ylim()
    assert validation.get_ylabel()
    # What is below one panel is below all: they share the axis.
    assert "below: never" in validation.get_xlabel()
    assert overlaps(figure) == []


def test_the_k_shot_curve_leaves_out_tasks_without_a_score(tmp_path: Path) -> None:
    rows = result_rows()
    hopeless = rows.assign(normalised_score=rows["normalised_score"].where(rows["task"] != 0))
    assert kshot(hopeless, tmp_path / "hopeless").axes[0].containers
    assert kshot(rows[rows["k"] == 0], tmp_path / "one").axes[0].containers


def test_a_method_that_adapts_is_no_line_across_where_it_is_scored_at_one_k() -> None:
    level = Interval(0.5, 0.4, 0.6)
    scores = {"test": {"m": {0: level, 1: Interval(0.7, 0.6, 0.8)}}, "noisier": {"m": {1: level}, "never": {0: level}}}
    _, noisier = kshot_panels(scores, ["m", "never"]).axes
    assert [container.get_label() for container in noisier.containers] == ["m"]


def test_colours_of_methods_differ_and_privileged_ones_are_none_of_the_palette(tmp_path: Path) -> None:
    axis = kshot(result_rows(), tmp_path / "run").axes[0]
    colours = {line.get_label(): line.get_color() for line in axis.get_lines() if line.get_linestyle() in ("--", "-.")}
    colours |= {container.get_label(): container[0].get_color() for container in axis.containers}
    assert len(set(colours.values())) == len(colours) == 5
    assert {name for name, colour in colours.items() if colour not in PALETTE} == {
        "oracle (privileged)",
        "privileged_foresight",
    }


def test_the_heatmap_sorts_agents_by_exploration() -> None:
    data = profiles()
    figure = intervention_heatmap(data[data["k"] == 1], note="synthetic")
    panels = {axis.get_title(): axis for axis in figure.axes if axis.images}
    assert set(panels) == {f"{s}: {f}" for s in ("validation", "test") for f in ("ucb", "epsilon_greedy")}
    for axis in panels.values():
        rates = np.asarray(axis.images[0].get_array())
        assert rates.sum(axis=1).tolist() == list(range(10, 22))
        assert axis.images[0].origin == "lower"
        assert [label.get_text() for label in axis.get_yticklabels()][::4] == ["0", "1.1"]
    assert figure.axes[-1].get_ylabel() == "share of query episodes with an intervention"
    assert overlaps(figure) == []


def test_the_heatmap_takes_families_without_hyperparameters_and_conditions_without_a_family() -> None:
    data = profiles()
    data.loc[data["family"] == "ucb", "exploration"] = np.nan
    data = data[(data["k"] == 1) & ~((data["condition"] == "test") & (data["family"] == "epsilon_greedy"))]
    figure = intervention_heatmap(data)
    assert sum(bool(axis.images) for axis in figure.axes) == 3


def test_calibration_shows_before_and_after_with_the_error_in_the_legend() -> None:
    figure = calibration_curve(calibration(), note="synthetic")
    for axis in figure.axes[:2]:
        names = [text.get_text() for text in axis.get_legend().get_texts()]
        assert names == ["perfect", "before adaptation (K = 0), ECE 0.100", "after adaptation (K = 1), ECE 0.000"]
        after = drawn_lines(axis)[names[2]]
        assert after[:, 0] == pytest.approx(after[:, 1])
        before = drawn_lines(axis)[names[1]]
        assert before[:, 0] - before[:, 1] == pytest.approx(0.1)
    for axis in figure.axes[2:]:
        assert axis.get_lines()[0].get_ydata().sum() == pytest.approx(1)
    assert overlaps(figure) == []


def test_calibration_of_points_shows_the_distribution_of_the_pit_and_its_histogram() -> None:
    """Before adaptation the coordinates are off by 0.06 to either side; together they look right."""
    p = np.arange(1, 15) / 15
    lines = [
        pd.DataFrame(
            {"bin": range(14), "confidence": p, "frequency": p + 0.06 * (1 - k) * (3 - 2 * coordinate)}
        ).assign(condition=condition, seed=0, family=family, k=k, coordinate=coordinate, count=1600)
        for condition, family, k, coordinate in itertools.product(
            ("validation", "test"), ("ucb", "exp3"), (0, 1), (1, 2)
        )
    ]
    assert not of_points(calibration())
    figure = calibration_curve(pd.concat(lines), note="synthetic")
    for axis in figure.axes[:2]:
        names = [text.get_text() for text in axis.get_legend().get_texts()]
        assert names == ["perfect", "before adaptation (K = 0), ECE 0.060", "after adaptation (K = 1), ECE 0.000"]
        assert drawn_lines(axis)[names[1]] == pytest.approx(np.column_stack([p, p]))
    for axis in figure.axes[2:]:
        assert axis.get_lines()[-1].get_ydata() == pytest.approx(np.full(15, 1 / 15))
        assert axis.get_xlabel() == "predicted probability of a smaller value (PIT)"
    assert overlaps(figure) == []


def test_calibration_errors_of_different_seeds_do_not_cancel() -> None:
    under = calibration().assign(seed=1)
    under["frequency"] = 2 * under["confidence"] - under["frequency"]
    figure = calibration_curve(pd.concat([calibration(), under]))
    assert "before adaptation (K = 0), ECE 0.100" in drawn_lines(figure.axes[0])


def test_calibration_error_by_hand() -> None:
    # 30 predictions off by 0.2, 10 off by 0.1: (30 * 0.2 + 10 * 0.1) / 40.
    bins = pd.DataFrame({"count": [30, 10], "confidence": [0.5, 0.9], "frequency": [0.7, 0.8]})
    assert calibration_error(bins) == pytest.approx(0.175)


def test_bins_are_pooled_by_what_is_in_them() -> None:
    lines = [("a", 3, 30, 0.5, 0.7), ("b", 3, 10, 0.9, 0.3), ("b", 4, 0, np.nan, np.nan), ("b", 5, 1, 0.1, 0.0)]
    bins = pd.DataFrame(lines, columns=["family", "bin", "count", "confidence", "frequency"])
    pooled = pooled_bins(bins, ["bin"])
    assert pooled.to_numpy() == pytest.approx(np.array([[3, 40, 0.6, 0.6], [5, 1, 0.1, 0.0]]))
    assert pooled_bins(bins, ["family", "bin"])["confidence"].tolist() == [0.5, 0.9, 0.1]


def test_curves_are_laid_over_each_other_where_all_have_been() -> None:
    steps, values = on_common_steps([(np.array([0.0, 10, 20]), np.zeros(3)), (np.array([5.0, 25]), np.array([1.0, 5]))])
    assert steps.tolist() == [10, 20]
    assert values.tolist() == [[0, 0], [2, 4]]


def test_all_figures_of_a_run_are_written_as_pictures_and_nothing_else_is_left(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    written = write_figures(run)
    assert [path.stem for path in written] == ALL
    assert sorted((run / "figures").iterdir()) == sorted(written)
    for path in written:
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.05, f"{path} is blank"
    assert write_figures(run) == written


@pytest.mark.parametrize(
    ("missing", "figure"),
    [("progress.jsonl", ALL[0]), ("profiles.parquet", ALL[2]), ("calibration.parquet", ALL[3])],
)
def test_each_file_allows_its_own_figure(missing: str, figure: str, tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    for path in run.rglob(missing):
        path.unlink()
    assert [path.stem for path in write_figures(run)] == [name for name in ALL if name != figure]


def test_conditions_that_share_a_split_are_drawn_apart(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    for path in run.glob("*.parquet"):
        rows = pd.read_parquet(path).query("split == 'test'")
        pd.concat([rows.assign(condition=name) for name in ("near", "far")]).to_parquet(path)
    assert [path.stem for path in write_figures(run)] == ALL
    study = read_study([run])
    [curves], [heatmap] = traces.calibration(study), traces.intervention_heatmap(study)
    titles = [axis.get_legend().get_title().get_text() for axis in curves.figure.axes if axis.get_legend()]
    assert titles == ["near", "far"]
    assert {axis.get_title().partition(":")[0] for axis in heatmap.figure.axes if axis.images} == {"near", "far"}


def test_a_run_that_was_scored_at_one_k_has_all_figures(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    for path in run.glob("*.parquet"):
        pd.read_parquet(path).query("k == 0").to_parquet(path)
    assert [path.stem for path in write_figures(run)] == ALL


def test_a_run_without_a_world_model_has_no_calibration_and_an_empty_directory_no_figure(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    pd.DataFrame().to_parquet(run / "calibration.parquet")
    assert [path.stem for path in write_figures(run)] == ALL[:-1]
    (tmp_path / "empty").mkdir()
    assert write_figures(tmp_path / "empty") == []


def test_progress_survives_a_cut_last_line_but_no_other_damage(tmp_path: Path) -> None:
    """Whoever reads it: a report, a run that is gone on with, a sweep."""
    run = tmp_path / "runs" / "seed=0"
    run.mkdir(parents=True)
    path = run / "progress.jsonl"
    readers = (
        lambda: read_progress(path).to_dict("records"),
        RunDirectory(run).read_progress,
        lambda: read_milestones(Store(str(tmp_path)), run.name, tiny()),
    )
    told = ({"iteration": n, "throughput/env_steps": 10 * n, "validation/score_k0": float(n)} for n in (1, 2, 3))
    lines = [json.dumps(each) for each in told]
    for last in ("", lines[0][:15], lines[0]):  # a whole line has an end
        path.write_text("\n".join([*lines, last]))
        assert [[told["validation/score_k0"] for told in read()] for read in readers] == [[1, 2, 3]] * 3
    for damage in (lines[1][:15].encode(), b"[1]", b"", b"\xff"):
        path.write_bytes(b"\n".join([lines[0].encode(), damage, lines[2].encode(), b""]))
        said = re.escape(f"files of results must be whole, but {path} is damaged (line 2 is no JSON object: ")
        for read in readers:
            with pytest.raises(InputError, match=f"{said}.*: delete "):
                read()
    path.write_text("")
    with pytest.raises(InputError, match="must count `throughput/env_steps`"):
        read_progress(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "rows.parquet",
            b"no parquet",
            "files of results must be whole, but .*rows.parquet is damaged .*: delete it, and",
        ),
        ("provenance.json", b"{", "must be JSON"),
        ("config.yaml", b"a: [", "must be YAML"),
        ("progress.jsonl", b"\xff\n", "is damaged .line 1 is no JSON object: .*: delete that line"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    (run / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as raised:
        write_figures(run)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (run / "figures").exists()


def test_a_missing_column_and_a_missing_run_are_named(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    older(profiles()).drop(columns="exploration").to_parquet(run / "profiles.parquet")
    with pytest.raises(InputError, match="got none named exploration"):
        write_figures(run)
    with pytest.raises(InputError, match=r"run directory must exist, got .*nowhere"):
        write_figures(tmp_path / "nowhere")


def test_an_unwritable_figures_folder_is_a_fault_and_leaves_nothing(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    (run / "figures").write_text("in the way")
    with pytest.raises(RunFault, match=r"figures must be writable, but .*learning_curves\.png is not"):
        write_figures(run)
    assert (run / "figures").read_text() == "in the way"
