"""One method against the others, from rows."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from mermaide_ray.report.cells import Cells
from mermaide_ray.report.terminal import comparisons, render_comparisons


def _rows(scores: dict[tuple[str, int, int], list[float]]) -> pd.DataFrame:
    """Rows by (method, seed, K): a score per task."""
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "split": "test",
            "family": "ucb",
            "task": task,
            "k": k,
            "normalised_score": score,
        }
        for (method, seed, k), values in scores.items()
        for task, score in enumerate(values)
    )


ROWS = _rows(
    {
        ("mermaide", 0, 0): [0.5, 0.6, 0.7, 0.8],
        ("mermaide", 0, 1): [0.6, 0.7, 0.8, 0.9],
        ("rl2", 0, 0): [0.5, 0.6, 0.7, 0.8],
        ("rl2", 0, 1): [0.3, 0.4, 0.5, 0.6],
        ("never", 0, 0): [0.0, 0.0, 0.0, 0.0],
        ("oracle", 0, 0): [1.0, 1.0, 1.0, 1.0],
    }
)


def test_each_rival_is_met_at_the_same_k_or_at_its_only_one_and_oracles_are_no_rivals() -> None:
    compared = comparisons(Cells.of_run(ROWS), "mermaide")
    assert list(zip(compared["k"], compared["other"], compared["other_k"], strict=True)) == [
        (0, "rl2", 0),
        (0, "never", 0),
        (1, "mermaide", 0),
        (1, "rl2", 1),
        (1, "never", 0),
    ]


def test_differences_and_probabilities_by_hand() -> None:
    compared = comparisons(Cells.of_run(ROWS), "mermaide").set_index(["k", "other"])
    assert compared.loc[(0, "rl2"), "difference"] == pytest.approx(0)
    assert compared.loc[(0, "rl2"), "probability"] == pytest.approx(0.5)
    assert compared.loc[(1, "rl2"), "difference"] == pytest.approx(0.3)
    assert compared.loc[(1, "rl2"), ["difference_low", "difference_high"]].tolist() == pytest.approx([0.3, 0.3])
    assert compared.loc[(1, "rl2"), "probability"] == pytest.approx(1)
    assert compared.loc[(1, "mermaide"), "difference"] == pytest.approx(0.1)


def test_pairs_are_of_the_same_training_seed_and_task_whatever_the_order_of_the_rows() -> None:
    levels = {seed: [seed + 0.1 * task**2 for task in range(4)] for seed in range(3)}
    one = {("mermaide", seed, 0): level for seed, level in levels.items()}
    other = {("rl2", seed, 0): [score - 0.3 for score in levels[seed][:3]] for seed in (2, 1)}
    cells = Cells.of_run(_rows(one | other).sample(frac=1, random_state=0))
    [line] = comparisons(cells, "mermaide").to_dict("records")
    assert line["is_paired"]
    assert [line[f"difference{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.3] * 3, abs=1e-6)
    without = "compared without 1 training seed(s) and 1 task(s) that only one of them has."
    assert list(cells.left_out) == [f"mermaide against rl2, test, K = 0: {without}"]


def test_tasks_without_a_score_are_left_out() -> None:
    rows = ROWS.copy()
    rows.loc[rows["task"] == 3, "normalised_score"] = float("nan")
    assert comparisons(Cells.of_run(rows), "mermaide")["difference"].notna().all()


def test_the_table_fits_a_terminal() -> None:
    out = io.StringIO()
    render_comparisons(comparisons(Cells.of_run(ROWS), "mermaide"), "mermaide", Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert any("rl2" in line and "+0.300 [+0.300, +0.300]" in line and "1 / 1" in line for line in lines)


def test_where_no_task_has_a_score_there_is_nothing_to_compare() -> None:
    compared = comparisons(Cells.of_run(ROWS.assign(normalised_score=float("nan"))), "mermaide")
    assert compared.empty
    out = io.StringIO()
    render_comparisons(compared, "mermaide", Console(file=out, width=100))
    assert out.getvalue() == ""
