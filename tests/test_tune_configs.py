"""The sweeps that ship: every one is valid at every scale, and keeps its hands off test agents where it chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from mermaide_ray.sweep.adopt import training_of
from mermaide_ray.sweep.checks import check_plan
from mermaide_ray.sweep.file import SCALES, Scale, load_sweep
from mermaide_ray.sweep.plan import Plan

FOLDER = Path(__file__).parent.parent / "tune_configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_sweeps_for_the_questions_that_users_ask_first() -> None:
    names = {"agents", "action_space", "k_shot", "cost", "hyperparameters", "pbt", "paper"}
    assert names <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", SCALES)
def test_every_sweep_is_valid_at_every_scale(path: Path, scale: Scale) -> None:
    plan = Plan(load_sweep(path, scale), str(path))
    check_plan(plan)
    assert plan.num_runs >= 1
    if plan.sweep.rows is not None:
        assert plan.num_rows() == plan.sweep.rows
    if scale == "smoke":
        assert plan.env_steps < 100_000
    # Science, never hardware.
    assert "resources" not in plan.sweep.model_fields_set


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_that_chooses_settings_never_sees_test_agents(path: Path) -> None:
    sweep = load_sweep(path)
    if sweep.tune.searcher != "random" or sweep.tune.scheduler != "none" or sweep.tune.samples > 1:
        assert {condition.split for condition in sweep.conditions.values()} <= {"train", "validation"}


@pytest.mark.parametrize("name", ["exploration", "stretch", "strangers", "world_model", "world_model_learner"])
def test_sweeps_that_only_score_find_their_principals(name: str) -> None:
    """They say that two other sweeps have trained them: with --principals of these, nothing is left to train."""

    def trained(file: str) -> set[str]:
        plan = Plan(load_sweep(FOLDER / f"{file}.yaml", "laptop"), file)
        return {training_of(setting.with_seed(seed)) for setting in plan.settings for seed in plan.sweep.seeds}

    assert trained(name) <= trained("methods") | trained("learner_model")
