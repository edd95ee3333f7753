"""What a run ends with in the terminal: right numbers, those of a report, an honest caption, within 100 columns."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mermaide_ray.report.answer import answer
from mermaide_ray.report.cells import Cells
from mermaide_ray.report.names import is_privileged, label
from mermaide_ray.report.score_tables import score_tables
from mermaide_ray.report.statistics import interquartile_mean
from mermaide_ray.report.study import read_study
from mermaide_ray.report.terminal import TABLE_MEASURES, comparisons, print_scores, render_summary, summary

FAMILIES = ("ucb", "epsilon_greedy")
# Method -> (normalised score at K = 0, training seeds); the learned ones gain 0.05 by adapting.
LEARNED = {"mermaide": (0.90, 3), "reinforce_without_world_model": (0.80, 3)}
RULES = {"oracle": 1.0, "never": 0.0, "first_n": 0.88, "privileged_foresight": 0.97}


def result_rows(tasks: int = 8, splits: tuple[str, ...] = ("validation", "test")) -> pd.DataFrame:
    """Rows as an evaluation writes them: rules at K = 0 only, under seed 0."""
    rng = np.random.default_rng(0)
    runs = [(name, seed, k) for name, (_, seeds) in LEARNED.items() for seed in range(seeds) for k in (0, 1)]
    runs += [(name, 0, 0) for name in RULES]
    lines = []
    for method, seed, k in runs:
        learned = method in LEARNED
        middle = LEARNED[method][0] + 0.05 * k if learned else RULES[method]
        for split in splits:
            for task in range(tasks):
                score = middle + (rng.normal(scale=0.02) if learned else 0)
                lines.append(
                    {
                        "method": method,
                        "seed": seed,
                        "split": split,
                        "task": task,
                        "family": FAMILIES[task % 2],
                        "k": k,
                        "return": 10 + 70 * score,
                        "success_rate": 0.1 + 0.8 * score,
                        "interventions": 34.5,
                        "cost": 34.5,
                        "normalised_score": score,
                        "support_return": 60.0 + task if learned and k else np.nan,
                    }
                )
    return pd.DataFrame(lines)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return result_rows()


@pytest.fixture(scope="module")
def table(rows: pd.DataFrame) -> pd.DataFrame:
    return summary(Cells.of_run(rows))


def line(table: pd.DataFrame, method: str, k: int, split: str = "test", family: str = "all") -> pd.Series:
    keys = {"method": method, "k": k, "condition": split, "family": family}
    return table.loc[np.logical_and.reduce([table[key] == value for key, value in keys.items()])].iloc[0]


def printed(table: pd.DataFrame, width: int = 100) -> str:
    stream = io.StringIO()
    render_summary(table, Console(file=stream, width=width))
    return stream.getvalue()


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_every_split_family_method_and_k_has_a_line(table: pd.DataFrame) -> None:
    assert len(table) == 2 * 3 * (2 * 2 + 4)
    assert list(table["condition"].unique()) == ["validation", "test"]
    assert list(table["family"].unique()) == ["all", "epsilon_greedy", "ucb"]
    assert not table.duplicated(["condition", "family", "method", "k"]).any()


def test_scores_are_interquartile_means_and_the_rest_are_means(rows: pd.DataFrame, table: pd.DataFrame) -> None:
    chosen = rows[(rows["method"] == "mermaide") & (rows["k"] == 1) & (rows["split"] == "test")]
    of_all, of_ucb = line(table, "mermaide", 1), line(table, "mermaide", 1, family="ucb")
    assert of_all["normalised_score"] == pytest.approx(interquartile_mean(chosen[["normalised_score"]]))
    ucb = chosen[chosen["family"] == "ucb"]
    assert of_ucb["normalised_score"] == pytest.approx(interquartile_mean(ucb[["normalised_score"]]))
    for name in ("return", "success_rate", "interventions", "cost", "support_return"):
        assert of_all[name] == pytest.approx(chosen[name].mean())
    assert (of_all["seeds"], of_all["tasks"], of_ucb["tasks"]) == (3, 8, 4)
    for name in TABLE_MEASURES:
        assert of_all[f"{name}_low"] <= of_all[name] <= of_all[f"{name}_high"]


def test_the_order_of_the_rows_changes_no_number(rows: pd.DataFrame, table: pd.DataFrame) -> None:
    keys = ["condition", "family", "method", "k"]
    shuffled = summary(Cells.of_run(rows.sample(frac=1, random_state=0)))
    pd.testing.assert_frame_equal(
        shuffled.sort_values(keys, ignore_index=True), table.sort_values(keys, ignore_index=True)
    )


def test_the_terminal_table_fits_100_columns_without_cutting_a_number(table: pd.DataFrame) -> None:
    table = table.assign(method=table["method"].replace("mermaide", "a_method_with_quite_a_long_name_indeed"))
    table[["normalised_score", "normalised_score_low"]] = -1.25
    text = printed(table)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for row in table.to_dict("records"):
        assert f"-1.25 [-1.25, {row['normalised_score_high']:.2f}]" in text
    for heading in ("in distribution (validation agents)", "out of distribution (test agents)", "all families", "ucb"):
        assert heading in text


def test_brackets_in_a_name_are_no_markup(table: pd.DataFrame) -> None:
    assert "my[red]rule[/]" in printed(table.assign(method=table["method"].replace("first_n", "my[red]rule[/]")))


def test_intervals_read_as_value_low_high(table: pd.DataFrame) -> None:
    score = line(table, "mermaide", 0, split="validation")
    shown = "{:.2f} [{:.2f}, {:.2f}]".format(*(score[f"normalised_score{end}"] for end in ("", "_low", "_high")))
    of_method = [text for text in printed(table).splitlines() if text.startswith("mermaide")]
    assert shown in of_method[0]
    assert of_method[0].rstrip().endswith("3 x 8")


def test_privileged_methods_are_labelled_and_come_last(table: pd.DataFrame) -> None:
    assert label("oracle") == "oracle (privileged)"
    assert [name for name in table["method"].unique() if is_privileged(name)] == ["oracle", "privileged_foresight"]
    text = printed(table)
    assert "oracle (privileged)" in text
    assert "Privileged: sees what no principal may see" in unwrapped(text)
    assert text.index("first_n") < text.index("oracle (privileged)")
    # By what it is, not by its name; of a rule of one's own the name tells.
    assert (is_privileged("no_oracle"), is_privileged("my_lab.rules:my_oracle")) == (False, True)
    without = table[~table["privileged"]]
    assert "rivileged" not in printed(without)


@pytest.mark.parametrize(
    ("seeds", "said", "unsaid"),
    [(1, "of other training runs it says nothing", "too narrow"), (3, "too narrow", "NaN")],
)
def test_the_caption_says_how_far_the_interval_goes(seeds: int, said: str, unsaid: str, rows: pd.DataFrame) -> None:
    text = unwrapped(printed(summary(Cells.of_run(rows[rows["seed"] < seeds]))))
    assert said in text
    assert unsaid not in text


def test_the_caption_tells_that_the_cost_is_not_weighted(rows: pd.DataFrame) -> None:
    assert "Cost: before environment.cost_weight." in unwrapped(printed(summary(Cells.of_run(rows))))


def test_tasks_that_the_oracle_cannot_improve_have_no_score_and_the_caption_counts_them(rows: pd.DataFrame) -> None:
    hopeless = rows.assign(normalised_score=rows["normalised_score"].where(rows["task"] != 3))
    table = summary(Cells.of_run(hopeless))
    found = line(table, "mermaide", 0)
    scores = rows[(rows["method"] == "mermaide") & (rows["k"] == 0) & (rows["split"] == "test") & (rows["task"] != 3)]
    assert (found["tasks"], found["scored_tasks"]) == (8, 7)
    assert found["normalised_score"] == pytest.approx(interquartile_mean(scores[["normalised_score"]]))
    assert "Up to 1 tasks have no normalised score" in unwrapped(printed(table))
    none = summary(Cells.of_run(rows.assign(normalised_score=np.nan)))
    assert none["normalised_score"].isna().all()
    assert printed(none)


def lacking(rows: pd.DataFrame, method: str, **where: int) -> pd.DataFrame:
    """Rows without those of a method at a task, of a seed or both."""
    return rows[~np.logical_and.reduce([rows["method"] == method, *(rows[key] == at for key, at in where.items())])]


def scoreless(rows: pd.DataFrame, method: str, **where: int) -> pd.DataFrame:
    """The same rows, which still stand there, without their scores."""
    kept = rows.index.isin(lacking(rows, method, **where).index)
    return rows.assign(normalised_score=rows["normalised_score"].where(kept))


RIVAL = "reinforce_without_world_model"


@pytest.mark.parametrize(
    ("incomplete", "said"),
    [
        (lambda rows: rows, "normalised score"),
        (
            lambda rows: lacking(rows, "mermaide", seed=0, task=3),
            "mermaide, test, K = 1: training seeds 0 lack tasks that others have, and are left out.",
        ),
        (
            lambda rows: scoreless(rows, "mermaide", seed=0, task=3),
            "tasks have no normalised_score for some seeds, and are left out.",
        ),
        (
            lambda rows: lacking(rows, RIVAL, seed=1),
            f"mermaide against {RIVAL}, test, K = 1: compared without 1 training seed(s) that only one of them has.",
        ),
        (
            lambda rows: lacking(rows, RIVAL, task=3),
            f"mermaide against {RIVAL}, test, K = 1: compared without 1 task(s) that only one of them has.",
        ),
        (
            lambda rows: scoreless(rows, RIVAL, task=3),
            f"Without a score on some tasks on which others have one: {RIVAL}.",
        ),
        (
            lambda rows: rows.assign(seed=rows["seed"] + (rows["method"] == RIVAL)),
            f"Not paired, since they have other training seeds or played another game: {RIVAL}.",
        ),
        (
            lambda rows: rows.assign(k=rows["k"] + 2 * ((rows["method"] == "mermaide") & (rows["k"] == 1))),
            "3 / 1",
        ),
    ],
)
def test_terminal_and_report_say_the_same_of_incomplete_rows(
    incomplete: Callable[[pd.DataFrame], pd.DataFrame], said: str, rows: pd.DataFrame, tmp_path: Path
) -> None:
    rows = incomplete(rows)
    rows.to_parquet(tmp_path / "rows.parquet")
    cells, study, stream = Cells.of_run(rows), read_study([tmp_path]), io.StringIO()
    print_scores(cells, Console(file=stream, width=100), "mermaide")
    text = unwrapped(stream.getvalue())
    assert said in text
    report = next(table for table in score_tables(study) if table.name == "scores_test")
    of_test = text[text.index("out of distribution") :]
    assert all(f" {line[2]} " in of_test for line in report.rows)
    compared = comparisons(cells, "mermaide")
    of_test = compared[(compared["condition"] == "test") & (compared["k"] == compared["k"].max())].set_index("other")
    contrasts = answer(study).contrasts
    assert len(contrasts) == 3
    for contrast in contrasts:
        line = of_test.loc[contrast.other.partition(" at K")[0]]
        assert tuple(line[["difference", "difference_low", "difference_high"]]) == astuple(contrast.difference)
        assert contrast.probability is not None
        assert line["probability"] == contrast.probability.value


def test_conditions_of_one_split_are_told_apart(rows: pd.DataFrame) -> None:
    conditions = [rows.assign(condition=rows["split"]), rows[rows["split"] == "test"].assign(condition="dear")]
    table = summary(Cells.of_run(pd.concat(conditions)))
    assert list(table["condition"].unique()) == ["validation", "test", "dear"]


def test_the_terminal_loads_no_matplotlib() -> None:
    code = "import sys, mermaide_ray.report.terminal; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
