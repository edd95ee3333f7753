"""Pictures from a folder's other files: learning curves, calibration, when the principal intervenes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mermaide_ray.calibration_bins import of_points
from mermaide_ray.metrics import RETURN, STEPS, validation_key
from mermaide_ray.report.drawing import MOST_POINTS, on_common_steps, thinned
from mermaide_ray.report.files import read_rows
from mermaide_ray.report.names import label
from mermaide_ray.report.pictures.picture import MOST_FAMILIES, MOST_METHODS, Picture, panels_of, small_print
from mermaide_ray.report.run_charts import calibration_curve
from mermaide_ray.report.run_charts import intervention_heatmap as draw_heatmap
from mermaide_ray.report.run_charts import learning_curves as draw_learning
from mermaide_ray.report.score_tables import best_settings, largest_text, ranked_on
from mermaide_ray.report.sources import Source, curves_of, values_of_run
from mermaide_ray.report.study import Study, shown
from mermaide_ray.sweep.status import SETTING

_CURVE_OF_ARMS = "How often the likeliest arm was pulled, against the probability that the world model gave it"
_CURVE_OF_POINTS = (
    "How often the next point lay below each quantile of the density that the world model predicted, coordinate by "
    "coordinate, against the quantile's probability (agents pooled: errors of single ones to opposite sides cancel)"
)


def learning_curves(study: Study) -> Iterator[Picture]:
    """Training return and validation scores over environment steps."""
    ks = study.cells.ks(study.main)
    keys = (RETURN, *map(validation_key, dict.fromkeys((ks[0], ks[-1]))))
    found: dict[str, dict[int, list[pd.DataFrame]]] = {}
    for source in study.sources:
        for method, frames in curves_of(source, keys).items():
            for frame in frames:
                seed = frame.attrs.get("seed", source.configs.get(method, {}).get("seed", 0))
                found.setdefault(method, {}).setdefault(seed, []).append(frame)
    curves = {
        method: [_over_settings(found[method][seed], keys) for seed in sorted(found[method])]
        for method in [method for method in study.methods if method in found][:MOST_METHODS]
    }
    if not curves:
        return
    seeds = {len(frames) for frames in curves.values()}
    several = f" Averaged over {len(study.settings)} settings." if len(study.settings) > 1 else ""
    band = " and 95% bootstrap band over them" if max(seeds) > 1 else ""
    note = small_print(
        study,
        f"Training seeds: {min(seeds)}{f' to {max(seeds)}' if len(seeds) > 1 else ''}; mean{band}, from at most "
        f"{MOST_POINTS} points.{several}",
    )
    main = [frame for frame in curves.get(study.main, []) if RETURN in frame]
    last = [float(frame[RETURN].dropna().iloc[-1]) for frame in main]
    told = f" {label(study.main)} ends at a training return of {np.mean(last):.1f}." if last else ""
    yield Picture(
        "learning_curves",
        "Learning curves",
        "Training return and score on validation agents, over environment steps." + several,
        f"Curves of the training return and of validation scores over environment steps for {', '.join(curves)}.{told}",
        draw_learning(curves, note=note),
    )


def calibration(study: Study) -> Iterator[Picture]:
    """Reliability of the main method's world model."""
    keys = ["method", "seed", "split", "k", "bin", "count", "confidence", "frequency"]
    found = _of_main(study, "calibration.parquet", keys, [])
    if found is None:
        return
    frame, setting = found
    frame = frame[frame["condition"].isin(panels_of(study))]
    if frame.empty:
        return
    frame = frame.sort_values("condition", key=lambda names: names.map(study.conditions.index), kind="stable")
    told = f"training seeds: {frame['seed'].nunique()}, all families together"
    yield Picture(
        "calibration",
        "Calibration of the world model",
        f"{_CURVE_OF_POINTS if of_points(frame) else _CURVE_OF_ARMS}: on the diagonal it means what it says.{setting}",
        f"Reliability curves of the world model of {label(study.main)} before and after adaptation, against the "
        "diagonal, with a histogram below.",
        calibration_curve(
            frame.assign(condition=frame["condition"].map(study.title)),
            note=small_print(study, f"{label(study.main)}{setting}, {told}."),
        ),
    )


def intervention_heatmap(study: Study) -> Iterator[Picture]:
    """When the main method intervenes, agent by agent."""
    largest = {condition: k for condition in study.conditions for k in study.largest(study.main, condition)}
    keys = ["method", "seed", "split", "k", "family", "task", "exploration", "step", "intervention_rate"]
    found = _of_main(study, "profiles.parquet", keys, [("k", "in", sorted(set(largest.values())))])
    if found is None:
        return
    frame, setting = found
    families = sorted(frame["family"].unique())[:MOST_FAMILIES]
    frame = frame[frame["condition"].isin(panels_of(study)) & frame["family"].isin(families)]
    frame = frame[frame["k"] == frame["condition"].map(largest)]
    if frame.empty:
        return
    frame = frame.sort_values("condition", key=lambda names: names.map(study.conditions.index), kind="stable")
    early = frame["step"] < frame["step"].max() / 4
    first, rest = (frame.loc[chosen, "intervention_rate"].mean() for chosen in (early, ~early))
    tasks = frame.drop_duplicates(["condition", "family", "task"])["condition"].value_counts().max()
    note = (
        f"{label(study.main)}{setting}, K = {largest_text(study)}; training seeds: {frame['seed'].nunique()}, tasks "
        f"per condition: {tasks}. Exploration: first hyperparameter of the family."
    )
    yield Picture(
        "intervention_heatmap",
        "When the principal intervenes, and for whom",
        "Each line is an agent, those that explore most at the top; bright steps have an intervention in most episodes."
        + setting,
        f"Heatmap of interventions over steps and agents: {first:.0%} of episodes in the first quarter of the steps, "
        f"{rest:.0%} afterwards.",
        draw_heatmap(frame, note=small_print(study, note)),
        brightness_matters=True,
    )


def _of_main(
    study: Study, file: str, columns: Sequence[str], where: Sequence[tuple[str, str, Any]]
) -> tuple[pd.DataFrame, str] | None:
    """Rows of a file that belong to the main method, in its best (or first) setting if there are several, and words.

    The file may hold tens of millions of rows: only what is drawn is read.
    """
    best = next(iter(best_settings(study)), "") if len(study.settings) > 1 else ""
    which = "the best setting" if ranked_on(study) else "the first setting"
    setting: dict[str, Any] = dict(study.settings.loc[best]) if best else {}
    frames = []
    for number, source in enumerate(study.sources):
        if not study.holds(number, study.main, best):
            continue
        own = [("method", "==", study.main), *where]
        raw = _raw_settings(source.rows, setting, study.dimensions) if source.is_sweep else {}
        searched = [(SETTING + key, "==", value) for key, value in raw.items()]
        found = [_read(source.folder / file, columns, [*own, *searched])]
        if found[0] is None and source.is_sweep:
            # A sweep that is under way, or whose profiles are too many for one file.
            runs = [run for run in sorted(source.folder.glob("runs/*/")) if _is_run_of(run, source, setting)]
            found = [_read(run / file, columns, own) for run in runs]
        frames += [frame for frame in found if frame is not None]
    if not frames:
        return None
    return pd.concat(frames, ignore_index=True), f" ({best}, {which})" if best else ""


def _read(path: Path, columns: Sequence[str], where: Sequence[tuple[str, str, Any]]) -> pd.DataFrame | None:
    """Rows, each with its condition: of older ones, which name none, that is the split."""
    optional = ("condition", "coordinate")  # the latter only in a calibration of points
    frame = read_rows(path, columns, optional=lambda column: column in optional, where=where, categorical=True)
    if frame is None:
        return None
    return frame.assign(condition=frame.get("condition", frame["split"])).astype({"condition": str})


def _raw_settings(rows: pd.DataFrame, setting: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The values of a setting as the sweep's files hold them: numbers, or text."""
    raw = {}
    for key in keys:
        if SETTING + key in rows and setting.get(key) is not None:
            is_number = pd.api.types.is_numeric_dtype(rows[SETTING + key])
            raw[key] = setting[key] if is_number else shown(setting[key])
    return raw


def _is_run_of(run: Path, source: Source, setting: Mapping[str, Any]) -> bool:
    """Whether a training run of a sweep has this setting, as its folder's name tells."""
    return all(setting.get(key) == value for key, value in values_of_run(run, source.document).items() if setting)


def _over_settings(frames: Sequence[pd.DataFrame], keys: Sequence[str]) -> pd.DataFrame:
    """Mean progress of several runs with one seed, where all of them have been."""
    if len(frames) == 1:
        return frames[0]
    parts = []
    for key in keys:
        points = [thinned(frame, key) for frame in frames if key in frame and frame[key].notna().any()]
        if points:
            steps, values = on_common_steps(points)
            parts.append(pd.DataFrame({STEPS: steps, key: values.mean(axis=0)}))
    return pd.concat(parts, ignore_index=True).sort_values(STEPS, ignore_index=True)
