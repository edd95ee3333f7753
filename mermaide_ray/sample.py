"""What a sampling actor brings: its share of a meta-batch. Who only shares work out needs neither Torch nor RLlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mermaide_ray.errors import RunFault


@dataclass(frozen=True)
class Sample:
    """One runner's share of a meta-batch: what crosses the network.

    Attributes:
        tasks: Task ids, [B].
        weights_version: The weights that it was sampled with.
        columns: Of the episodes `support` (none for K = 0) and `query`, see `Trajectories.columns`; with a model of
            learners `support_latents` [B, L], what was inferred from the support.
        failure: The traceback, if sampling raised an error; columns are then empty.
    """

    tasks: tuple[int, ...]
    weights_version: int
    columns: dict[str, NDArray[Any]]
    failure: str | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the columns."""
        return sum(column.nbytes for column in self.columns.values())

    def checked(self) -> Sample:
        """Itself.

        Raises:
            RunFault: Sampling failed.
        """
        if self.failure:
            raise RunFault(f"a sampling runner failed on tasks {list(self.tasks)[:4]} …:\n{self.failure}")
        return self


def concatenated(samples: Sequence[Sample], tasks: Sequence[int]) -> dict[str, NDArray[Any]]:
    """The columns of all samples, tasks in the given order."""
    position = {task: row for row, task in enumerate(task for sample in samples for task in sample.tasks)}
    order = [position[task] for task in tasks]
    return {key: np.concatenate([sample.columns[key] for sample in samples])[order] for key in samples[0].columns}
