"""How many CPUs there are to use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mermaide_ray import machine


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("400000 100000", 4), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_cpus_are_those_that_affinity_and_a_container_s_quota_leave(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert machine.cpus() == expected
    (tmp_path / "cpu.max").unlink()
    assert machine.cpus() == 8
