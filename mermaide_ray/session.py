"""One training run under way: iterates, validates at milestones, tells of it, checkpoints. Knows no console, no Tune.

`training.py` runs one to its end; a trial of a sweep runs several side by side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from ray.exceptions import RayActorError

from mermaide_ray.algorithm import Mermaide, MermaideConfig, flat_metrics, lost
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.storage import RunDirectory, load_principal, refuse_changes, save_principal
from mermaide_ray.tensorboard import Board


class Session:
    """A run that goes on from its latest checkpoint, or from nothing. Ray must be up.

    Args:
        run: The run's folder.
        checkpoint_every: Seconds between checkpoints, which a crash can cost.
        board: Folder of the TensorBoard events; the run's own if not given.
        swept: The settings that tell this run from others beside it, for TensorBoard's HParams; all if not given.
        question: What the sweep that the run belongs to asks, to be shown with it.
        changed: Whether the settings may differ from the checkpoint's, which then only lends weights and optimiser.
    """

    def __init__(
        self,
        run: RunDirectory,
        checkpoint_every: float,
        board: Path | None = None,
        swept: Mapping[str, Any] | None = None,
        question: str | None = None,
        changed: bool = False,
    ) -> None:
        self.run = run
        self.experiment = run.experiment()
        self._checkpoint_every = checkpoint_every
        # A sweep's process goes on when one of its runs can't: no actors may be left of that one.
        with ExitStack() as held:
            self._algorithm = _algorithm(run, changed)
            held.callback(self._algorithm.stop)
            self.total = self.experiment.num_iterations
            run.rewind_progress(self.iteration)
            self.board = Board(board or run.path / "tensorboard", purge_step=self.env_steps + 1)
            held.callback(self.board.close)
            if not self.iteration:
                self.board.begin(self.experiment, swept, question)
            self._held = held.pop_all()
        self._saved, self.saved_at = time.monotonic(), self.iteration

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def iteration(self) -> int:
        """Meta-iterations done."""
        return self._algorithm.meta_iteration

    @property
    def env_steps(self) -> int:
        """Environment steps done."""
        return self.iteration * self.experiment.env_steps_per_iteration

    @property
    def is_done(self) -> bool:
        """Whether the budget is spent."""
        return self.iteration >= self.total

    def iterate(self) -> dict[str, float]:
        """One meta-iteration; returns its flat metrics, at a milestone with the validation scores."""
        with _losses_told():
            told = flat_metrics(self._algorithm.train())
        wrong = [key for key, value in told.items() if not math.isfinite(value)]
        if wrong:
            raise RunFault(
                f"every metric must be finite, got {wrong[0]} = {told[wrong[0]]} at iteration {self.iteration}: "
                "lower training.meta_lr or meta_learning.inner_lr"
            )
        if self.experiment.is_milestone(self.iteration):
            told |= {key: score for key, score in self._algorithm.evaluate().items() if math.isfinite(score)}
        self.run.tell({"iteration": self.iteration, **told})
        self.board.scalars(told, self.env_steps)
        if self.is_done or time.monotonic() - self._saved > self._checkpoint_every:
            self.save()
        return told

    def save(self) -> None:
        """Writes a checkpoint."""

        def write(folder: Path) -> None:
            with _losses_told():
                self._algorithm.save_to_path(str((folder / "rllib").absolute()))
            save_principal(folder / "principal", self.experiment, self._algorithm.principal().arrays())

        self.run.save_checkpoint(self.iteration, write)
        self.board.flush()
        self._saved, self.saved_at = time.monotonic(), self.iteration

    def export(self) -> None:
        """Writes the trained principal, unless an earlier attempt has."""
        if not self.run.principal.is_dir():
            save_principal(self.run.principal, self.experiment, self._algorithm.principal().arrays())

    def close(self) -> None:
        """Frees what the run holds; nothing is saved."""
        self._held.close()


@contextmanager
def _losses_told() -> Iterator[None]:
    """Actors that are found gone, wherever that is, are told in one sentence."""
    try:
        yield
    except RayActorError as error:
        raise lost(error) from None


def _algorithm(run: RunDirectory, changed: bool) -> Mermaide:
    experiment, latest = run.experiment(), run.latest_checkpoint()
    iteration = 0 if latest is None else run.check_checkpoint(latest)
    if latest is not None and not changed:
        # Who does the work may change between the two halves of a run; what is done may not.
        trained, _ = load_principal(latest)
        refuse_changes(trained, latest, experiment, run.config)
    with _losses_told():
        algorithm: Mermaide = MermaideConfig.of(experiment).build_algo()
        if latest is None:
            return algorithm
        try:
            algorithm.restore_from_path(str((latest / "rllib").absolute()))
        except Exception as error:
            algorithm.stop()
            if isinstance(error, RayActorError | RunFault):
                raise  # no fault of the checkpoint
            raise InputError(
                f"a checkpoint must be complete, got a broken one in {latest} ({type(error).__name__}: {error}); "
                "delete it to go on from the one before"
            ) from error
    assert algorithm.meta_iteration == iteration
    return algorithm
