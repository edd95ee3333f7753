"""One method against the others, from rows."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from mermaide_ray.report.comparison import comparisons, render_comparisons


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
    compared = comparisons(ROWS, "mermaide")
    assert list(zip(compared["k"], compared["other"], compared["other_k"], strict=True)) == [
        (0, "rl2", 0),
        (0, "never", 0),
        (1, "mermaide", 0),
        (1, "rl2", 1),
        (1, "never", 0),
    ]


def test_differences_and_probabilities_by_hand() -> None:
    compared = comparisons(ROWS, "mermaide").set_index(["k", "other"])
    assert compared.loc[(0, "rl2"), "difference"] == pytest.approx(0)
    assert compared.loc[(0, "rl2"), "probability"] == pytest.approx(0.5)
    assert compared.loc[(1, "rl2"), "difference"] == pytest.approx(0.3)
    assert compared.loc[(1, "rl2"), ["difference_low", "difference_high"]].tolist() == pytest.approx([0.3, 0.3])
    assert compared.loc[(1, "rl2"), "probability"] == pytest.approx(1)
    assert compared.loc[(1, "mermaide"), "difference"] == pytest.approx(0.1)


def test_tasks_without_a_score_are_left_out() -> None:
    rows = ROWS.copy()
    rows.loc[rows["task"] == 3, "normalised_score"] = float("nan")
    assert comparisons(rows, "mermaide")["difference"].notna().all()


def test_the_table_fits_a_terminal() -> None:
    out = io.StringIO()
    render_comparisons(comparisons(ROWS, "mermaide"), "mermaide", Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert any("rl2" in line and "+0.300 [+0.300, +0.300]" in line and "1 / 1" in line for line in lines)


def test_where_no_task_has_a_score_there_is_nothing_to_compare() -> None:
    compared = comparisons(ROWS.assign(normalised_score=float("nan")), "mermaide")
    assert compared.empty
    out = io.StringIO()
    render_comparisons(compared, "mermaide", Console(file=out, width=100))
    assert out.getvalue() == ""
