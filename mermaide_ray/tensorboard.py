"""TensorBoard: the scalars of `metrics.SCALARS` over env steps, HParams with final scores, figures, the config."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mermaide_ray.config_file import explained_yaml, one_line
from mermaide_ray.experiment import Experiment
from mermaide_ray.metrics import SCALAR_GROUPS, SCALARS


class Board:
    """Writes one run's event file.

    Args:
        folder: Where to; a resumed run adds to it.
        purge_step: Env steps from which an earlier attempt's values are void.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def begin(self, experiment: Experiment, swept: Mapping[str, Any] | None = None) -> None:
        """Adds the settings as text (those of a sweep first), and the layout of the custom scalars."""
        if swept:
            self._writer.add_text("swept", "\n".join(f"    {key}: {one_line(value)}" for key, value in swept.items()))
        # Indented: TensorBoard renders Markdown, and this is YAML.
        self._writer.add_text("config", textwrap.indent(explained_yaml(experiment), "    "))
        layout = {
            group: {
                metric.key.split("/")[1]: ["Multiline", [metric.key]]
                for metric in SCALARS
                if metric.key.startswith(f"{group}/")
            }
            for group in SCALAR_GROUPS
        }
        self._writer.add_custom_scalars(layout)

    def scalars(self, told: Mapping[str, Any], env_steps: int) -> None:
        """Adds the flat metrics of one iteration; its number is not one of them."""
        for key, value in told.items():
            if "/" in key and key != "throughput/env_steps":
                self._writer.add_scalar(key, value, env_steps)

    def finish(
        self, settings: Mapping[str, Any], scores: Mapping[str, float], figures: Sequence[Path], env_steps: int
    ) -> None:
        """Adds final scores beside the settings (nested, or flat by dotted key), and the figures as images."""
        from matplotlib import image

        settings = dict(_flat(settings))
        # Not by add_hparams, which would make a run of its own beside this one.
        for summary in hparams(settings, dict(scores)):  # type: ignore[no-untyped-call]
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


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float | bool | str]]:
    """Dotted key and value of each setting, lists as text: what HParams takes."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, int | float | bool | str) else str(value)
