"""Which pictures a study allows, and in which words each is described: titles, captions, alternative texts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mermaide_ray.errors import InputError
from mermaide_ray.report.answer import Answer
from mermaide_ray.report.drawing import save_figure
from mermaide_ray.report.pictures.agents import adaptation_gain, world_model_loss
from mermaide_ray.report.pictures.conditions import over_conditions, settings_over_conditions, world_model_conditions
from mermaide_ray.report.pictures.picture import Picture
from mermaide_ray.report.pictures.scores import comparison, kshot_curve, pareto, performance_profiles
from mermaide_ray.report.pictures.swept import setting_curves, shift_matrices
from mermaide_ray.report.pictures.traces import calibration, intervention_heatmap, learning_curves
from mermaide_ray.report.study import Study, read_study

# In the order of the report, after the comparison that the answer rests on.
DRAWN = (
    kshot_curve,
    performance_profiles,
    setting_curves,
    shift_matrices,
    settings_over_conditions,
    pareto,
    learning_curves,
    adaptation_gain,
    world_model_loss,
    world_model_conditions,
    calibration,
    intervention_heatmap,
)
# Of a run's own folder, which has no comparison: its scores are drawn at a single K, too.
OF_A_RUN = (learning_curves, partial(kshot_curve, fewest=1), intervention_heatmap, calibration)


def pictures(study: Study, answer: Answer) -> Iterator[Picture]:
    """All pictures that the study's data allow."""
    yield from comparison(study, answer)
    yield from over_conditions(study, answer)
    for draw in DRAWN:
        yield from draw(study)


def write_figures(run_dir: Path) -> list[Path]:
    """Draws what the files of a run allow into its `figures/`, as in a report on it; returns the pictures written.

    Args:
        run_dir: The run's folder, or that of an evaluation; without rows.parquet nothing is drawn.

    Raises:
        InputError: No run directory, or a file in it can't be read.
        RunFault: The pictures can't be written.
    """
    if not run_dir.is_dir():
        raise InputError(f"the run directory must exist, got {run_dir}")
    if not (run_dir / "rows.parquet").is_file():
        return []
    study = read_study([run_dir])
    drawn = [picture for draw in OF_A_RUN for picture in draw(study)]
    return [save_figure(picture.figure, run_dir / "figures" / f"{picture.name}.png") for picture in drawn]
