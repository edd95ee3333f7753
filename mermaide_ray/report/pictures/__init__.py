"""Which pictures a study allows, and in which words each is described: titles, captions, alternative texts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from mermaide_ray.report.answer import Answer
from mermaide_ray.report.pictures.agents import adaptation_gain, world_model_loss
from mermaide_ray.report.pictures.conditions import over_conditions, settings_over_conditions, world_model_conditions
from mermaide_ray.report.pictures.picture import Picture
from mermaide_ray.report.pictures.scores import comparison, kshot_curve, pareto, performance_profiles
from mermaide_ray.report.pictures.swept import setting_curves, shift_matrices
from mermaide_ray.report.pictures.traces import calibration, intervention_heatmap, learning_curves
from mermaide_ray.report.study import Study

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
