"""What a person sees of a sweep while it goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mermaide_ray.sweep import panel as module
from mermaide_ray.sweep.panel import Panel


@pytest.fixture
def panel(monkeypatch: pytest.MonkeyPatch) -> Panel:
    """Of two trials of 4,000 steps each, 100 seconds after its start."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    made = Panel(Console(file=io.StringIO()), "costs", 2, 8000, "validation/score_k1")
    now[0] = 100.0
    return made


def test_time_left_is_told_from_the_first_milestone_of_a_new_trial(panel: Panel) -> None:
    panel.started("a", is_new=True)
    assert "left" not in panel.line()
    panel.told("a", 2000, 0.5, None)  # 2,000 of 8,000 steps in 100 seconds
    assert panel.line() == (
        "costs  0 done, 1 running, 0 failed of 2 trials  2.0k of 8.0k env steps  best validation/score_k1 0.500 (a)  "
        "5:00 left"
    )


def test_what_an_earlier_attempt_may_have_done_is_no_measure_of_speed(panel: Panel) -> None:
    panel.known("a", 4000, 0.5)
    panel.started("b", is_new=False)
    panel.told("b", 1000, 0.4, None)
    assert "left" not in panel.line()
    panel.told("b", 2000, 0.4, None)  # 1,000 of what is left, 3,000 then, in 100 seconds
    assert panel.line().endswith("3:20 left")


def test_of_a_dead_process_is_told_what_it_died_of(capsys: pytest.CaptureFixture[str]) -> None:
    made = Panel(Console(soft_wrap=True), "costs", 2, 8000, "validation/score_k1")
    made.died("a", "OSError: disk full")
    made.died("b", None)
    told = capsys.readouterr().out
    assert "failed: a: its process died (OSError: disk full)" in told
    assert "failed: b: its process died\n" in told
