"""TensorBoard: the scalars of `metrics.SCALARS` over env steps, HParams with final scores, figures, the config."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mermaide_ray.config_file import explained_yaml, flat, one_line
from mermaide_ray.experiment import Experiment
from mermaide_ray.metrics import MOST_SCALARS, SCALAR_GROUPS, SCALARS, STEPS, VALIDATION, is_validation

# Env steps are the axis of the others.
_CURVES = {metric.key for metric in SCALARS if not is_validation(metric.key)} - {STEPS}
_MOST_VALIDATION = 2


class Board:
    """Writes one run's event file.

    Args:
        folder: Where to; a resumed run adds to it.
        purge_step: Env steps from which an earlier attempt's values are void.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def begin(
        self, experiment: Experiment, swept: Mapping[str, Any] | None = None, question: str | None = None
    ) -> None:
        """Adds the settings as text (of a sweep its question and what it varies first), and the scalars' layout."""
        lines = [f"    {key}: {one_line(value)}" for key, value in (swept or {}).items()]
        if about := "\n\n".join(filter(None, (question, "\n".join(lines)))):
            # TensorBoard sorts by name: before "config".
            self._writer.add_text("about", about)
        # Indented: TensorBoard renders Markdown, and this is YAML.
        self._writer.add_text("config", textwrap.indent(explained_yaml(experiment), "    "))
        layout: dict[str, dict[str, list[Any]]] = {group: {} for group in SCALAR_GROUPS}
        for metric in SCALARS:
            group, name = metric.key.split("/")
            if metric.key in _CURVES:
                layout[group][name] = ["Multiline", [metric.key]]
        layout["validation"]["score"] = ["Multiline", [VALIDATION + r"\d+"]]
        self._writer.add_custom_scalars(layout)

    def scalars(self, told: Mapping[str, Any], env_steps: int) -> None:
        """Adds the flat metrics of one iteration; its number is not one of them."""
        by_k = _at_ends({key: value for key, value in told.items() if is_validation(key)})
        for key, value in told.items():
            if key in _CURVES or key in by_k:
                self._writer.add_scalar(key, value, env_steps)

    def finish(
        self,
        settings: Mapping[str, Any],
        scores: Mapping[str, float],
        figures: Sequence[Path],
        env_steps: int,
        words: Mapping[str, list[str]] | None = None,
    ) -> None:
        """Adds final scores beside the settings, and the figures as images.

        Args:
            settings: Nested, or flat by dotted key.
            scores: By `…_k<K>`.
            figures: PNG files.
            env_steps: Of the whole run.
            words: For settings whose values are words: all that runs beside this one have, to be filtered by.
        """
        from matplotlib import image

        # HParams takes no lists.
        plain = int | float | bool | str
        settings = {key: value if isinstance(value, plain) else str(value) for key, value in flat(settings)}
        # Not by add_hparams, which would make a run of its own beside this one.
        scores = dict(list(_at_ends(scores).items())[: MOST_SCALARS - len(_CURVES) - _MOST_VALIDATION])
        for summary in hparams(settings, scores, dict(words or {})):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        for key, value in scores.items():
            self._writer.add_scalar(key, value, env_steps)
        for figure in figures:
            pixels = np.asarray(image.imread(figure))[..., :3]
            self._writer.add_image(f"figures/{figure.stem}", pixels, env_steps, dataformats="HWC")
        self._writer.flush()

    def flush(self) -> None:
        """Makes what was added visible."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def _at_ends(scores: Mapping[str, float]) -> dict[str, float]:
    """Of scores by K (`…_k<K>`), those at the largest K, then those at the smallest: what people look at."""
    ks: dict[str, list[int]] = {}
    for key in scores:
        name, _, k = key.rpartition("_k")
        ks.setdefault(name, []).append(int(k))
    keys = [f"{name}_k{end(found)}" for end in (max, min) for name, found in ks.items()]
    return {key: scores[key] for key in keys}
