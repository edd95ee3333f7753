"""One training run of a sweep, from its settings to its rows: trained in the store, scored in every condition.

A run's outcome is a pure function of its settings, and the store remembers it. So a sweep that is started again asks
every run again: a finished one answers at once from `status.json` (where a scheduler listens, with its milestones
first), one that was under way tells its milestones again and goes on from its checkpoint, and nothing is counted twice.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from ray.exceptions import RayActorError, RayTaskError

from mermaide_ray.cluster.nodes import last_line
from mermaide_ray.config_file import explained_yaml
from mermaide_ray.disk import whole_file, whole_folder
from mermaide_ray.evaluation import Evaluation, Results
from mermaide_ray.metrics import STEPS, score_key
from mermaide_ray.provenance import latest, sources_digest
from mermaide_ray.report.names import SCORE
from mermaide_ray.report.pictures import write_figures
from mermaide_ray.report.statistics import interquartile_mean
from mermaide_ray.session import Session
from mermaide_ray.storage import RunDirectory, checkpoint_seconds, clear
from mermaide_ray.sweep.plan import Plan, Setting, budget_of
from mermaide_ray.sweep.results import read_milestones, to_parquet
from mermaide_ray.sweep.sections import typed
from mermaide_ray.sweep.status import DONE, FAILED, STOPPED, UNFINISHED, RunStatus, read_status
from mermaide_ray.sweep.store import Store
from mermaide_ray.tensorboard import Board
from mermaide_ray.training import contender_from

CLOCK = "clock.json"
# Of the code that this process has imported, whatever becomes of its files later.
_SOURCES = sources_digest()
# Drawing takes seconds per run: in a larger sweep nobody looks at every run's figures, and the report has them.
MOST_RUNS_WITH_FIGURES = 50

Told = dict[str, float]


def origin_of(store: Store) -> dict[str, Any]:
    """Where the sweep was started, or gone on with: a worker knows no command, and its own arguments are Ray's."""
    return dict(latest(json.loads(store.read("provenance.json") or b"{}")))


def _trained_by(run: Path) -> dict[str, Any]:
    """Where a run's principal was trained: in that run, or in the one from which it was adopted."""
    record: dict[str, Any] = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    origin: dict[str, Any] = record.get("principal", record)
    return origin


def line_of(error: BaseException) -> str:
    """An error in a line: what a process has raised, where Ray tells of it with frames of its own around it."""
    if isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed):
        return last_line(error)
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


class SweepRun:
    """A run, told and gone on with from milestone to milestone.

    Args:
        plan: The sweep's.
        setting: What is trained.
        seed: Training seed.
        store: The sweep's.
        changed: Whether the settings may differ from those of its checkpoint (population based training).
        trusted: Whether checkpoints that others may have written may be unpickled.
    """

    def __init__(
        self, plan: Plan, setting: Setting, seed: int, store: Store, changed: bool = False, trusted: bool = False
    ) -> None:
        self._plan, self._setting, self.seed, self._store = plan, setting, seed, store
        self._changed, self._trusted = changed, trusted
        self.name = setting.run_name(seed)
        self._folder = f"runs/{self.name}"
        self._experiment = setting.with_seed(seed)
        self.error: str | None = None
        """Why the run has failed, in a line."""
        self.env_steps = 0
        """Environment steps at the milestone told last; none of those that another sweep has trained."""
        self._trained_sources: str | None = None
        self._held = ExitStack()
        self._session: Session | None = None
        self._told_before: list[Told] = []
        self._clock = {"wall_s": 0.0, "cpu_s": 0.0}
        self._outcome: Told | None = None
        self.is_scored = False
        """Whether its rows are in the store."""
        self._recall()

    def _recall(self) -> None:
        """Takes what is on record of a run that has ended."""
        status = read_status(self._store, self.name)
        if status is None:
            return
        self._trained_sources = status.trained_sources
        if not status.has_ended:
            return
        self._outcome, self.is_scored = status.metrics, status.is_done
        if self._plan.sweep.tune.scheduler == "asha":
            # It compares trials milestone by milestone: of one that it hears of at its end alone it would know nothing.
            milestones = read_milestones(self._store, self.name, self._experiment)
            self._told_before = [told for told in milestones if told[STEPS] > self.env_steps]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do or to tell: it is scored, or was stopped."""
        return self._outcome is not None and not self._told_before

    def advance(self) -> Told:
        """Goes on to the next milestone and returns its metrics; scores the run where that is its last."""
        told = self._advance()
        if self._trained_sources is None:
            self.env_steps = int(told[STEPS])
        return told

    def _advance(self) -> Told:
        session = None if self._outcome is not None else self._open()
        if session is None:
            assert self._outcome is not None
            return self._told_before.pop(0) if self._told_before else self._outcome
        with self._clocked():
            if self._told_before:
                told = self._told_before.pop(0)
            else:
                told = session.iterate()
                while not session.experiment.is_milestone(session.iteration):
                    if session.saved_at == session.iteration:
                        self._keep()
                    told = session.iterate()
                if session.saved_at != session.iteration:
                    session.save()
        self._keep()
        stop = self._plan.sweep.tune.stop
        good_enough = any(told.get(metric, float("-inf")) >= value for metric, value in stop.items())
        if not self._told_before and (session.is_done or good_enough):
            self._finish(session, told)
        return told

    def adopt(self, source: Path) -> None:
        """Takes the principal of a finished run with the same settings: what is left is to score it, with `advance`.

        Args:
            source: That run's folder.
        """
        theirs = _trained_by(source)
        local = self._hold()
        self._recall()
        if self._outcome is not None:  # by a process that was still dying
            self.close()
            return
        run = self._begin(local, principal=theirs)
        shutil.copy(source / run.progress.name, run.progress)
        with whole_folder(run.principal) as unfinished:  # last: with it there is nothing left to train
            shutil.copytree(source / run.principal.name, unfinished, dirs_exist_ok=True)
        self._store.keep_run(self._folder, local, told=(run.progress.name,))
        self._trained_sources = str(theirs.get("sources", "unknown"))
        self._write_status(UNFINISHED, {}, None)  # begun: its steps are no measure of speed here
        self.close()

    def fail(self, error: BaseException) -> None:
        """Puts the failure on record, with settings and traceback. Env steps that it did no longer count."""
        self.error = line = line_of(error)
        trace = "".join(traceback.format_exception(error))
        report = f"{self.name}: {line}\n\n{trace}\n{explained_yaml(self._experiment)}"
        self._store.write(f"failures/{self.name}.txt", report.encode())
        self.env_steps = 0
        self._write_status(FAILED, {}, line)
        self.close()  # not before: another trial with these settings may wait for the run

    def stop(self, told: Told, by_budget: bool = False) -> None:
        """Puts on record that it is not to be gone on with.

        Args:
            told: Its metrics at its last milestone.
            by_budget: Whether the sweep's budget was spent: with a larger one it would go on.
        """
        self._clock |= json.loads(self._store.read(f"{self._folder}/{CLOCK}") or b"{}")
        self._write_status(STOPPED, told, None, by_budget=by_budget)

    def close(self) -> None:
        """Frees what it holds; it can be gone on with."""
        self._session = None
        self._held.close()

    def save_to(self, folder: Path) -> None:
        """Copies what the run would go on from; nothing of one that is scored or has failed."""
        if self.is_scored or self.error is not None:
            return
        local = self._store.open_run(self._folder)
        run = RunDirectory(local)
        latest = run.latest_checkpoint()
        assert latest is not None, "every milestone is saved"
        shutil.copytree(latest, folder / latest.name)
        shutil.copy(run.progress, folder)
        self._store.close_run(local)

    def load_from(self, folder: Path) -> None:
        """Goes on from a copy that `save_to` made of any run of the same architecture, with this run's settings.

        A run that is scored keeps what it has: Tune may remember less of it than the store.
        """
        if self.is_scored or not folder.is_dir():
            return
        local = self._hold()
        run = self._begin(local)
        for checkpoint in folder.glob("iteration_*"):
            shutil.copytree(checkpoint, run.checkpoints / checkpoint.name)
        shutil.copy(folder / run.progress.name, run.progress)
        self._store.keep_run(self._folder, local, told=(run.progress.name,))
        self.close()

    def _open(self) -> Session | None:
        """The session to go on with; None where nothing is left to train.

        Another trial with the same settings has brought the run to its end, or its principal is another sweep's.
        """
        if self._session is not None:
            return self._session
        local = self._hold()
        self._recall()
        if self._outcome is not None:
            self.close()
            return None
        run = RunDirectory(local, self._trusted)
        has_checkpoint = run.latest_checkpoint() is not None
        trained = run.principal.is_dir() and not has_checkpoint
        if not (has_checkpoint or trained):
            run = self._begin(local)
        elif not self._changed:
            run.keep_settings(self._experiment, self._store.uri(self._folder))
        if (local / CLOCK).is_file():
            self._clock = json.loads((local / CLOCK).read_text(encoding="utf-8"))
        self._trained_sources = str(_trained_by(local).get("sources", "unknown")) if trained else None
        self._write_status(UNFINISHED, {}, None)
        if trained:
            self._finish_adopted(run)
            return None
        with self._clocked():
            session = self._session = self._held.enter_context(
                Session(
                    run,
                    checkpoint_seconds(),
                    board=run.path,
                    swept=self._swept(),
                    question=self._plan.sweep.question,
                    changed=self._changed,
                )
            )
        if not self._changed:  # else they are another run's
            milestones = [
                told for told in run.read_progress() if session.experiment.is_milestone(int(told["iteration"]))
            ]
            # All in a new process; in one that only let go of the run, what it has not told yet.
            self._told_before = [told for told in milestones if told[STEPS] > self.env_steps]
        return session

    def _hold(self) -> Path:
        """The run's local folder, in which no other process works until `close` (a bucket's is this process's own).

        Waits for as long as one does: it is another trial that drew the same settings, or what a killed sweep left and
        is still dying. Whoever starts the sweep twice is told so before.
        """
        self.close()  # else it might wait for itself
        local = self._store.open_run(self._folder)
        self._held.callback(self._store.close_run, local)
        local.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(RunDirectory(local).alone(wait=True))
        return local

    def _begin(self, local: Path, **about: Any) -> RunDirectory:
        """The run from nothing, whatever an earlier attempt has left."""
        clear(local)
        # The code that trains it may be newer than that of the driver.
        origin = origin_of(self._store) | {"sources": _SOURCES} | about
        return RunDirectory.begin(local, self._experiment, origin)

    def _keep(self) -> None:
        if self._session is not None:
            local = self._session.run.path
            with whole_file(local / CLOCK) as file:
                file.write_text(json.dumps(self._clock), encoding="utf-8")
            self._store.keep_run(self._folder, local, told=(CLOCK, self._session.run.progress.name))

    @contextmanager
    def _clocked(self) -> Iterator[None]:
        """Counts the time spent within; over all attempts, but for what a kill took with it."""
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self._clock["wall_s"] += time.monotonic() - wall
        self._clock["cpu_s"] += time.process_time() - cpu

    def _swept(self) -> dict[str, Any]:
        """What tells this run from the others of the sweep."""
        values = {key: typed(label) for key, label in self._setting.values.items()}
        return {"method": self._experiment.name, **values, "seed": self.seed}

    def _words(self) -> dict[str, list[str]]:
        """All values in the sweep of what is told apart by words."""
        swept = {key: list(d.alternatives or ()) for key, d in self._plan.dimensions.items()}
        values = {"method": self._plan.method_names, **swept}
        return {key: found for key, found in values.items() if found and isinstance(self._swept()[key], str)}

    def _finish(self, session: Session, told: Told) -> None:
        """Scores the run and makes its files the store's."""
        with self._clocked():
            session.export()
            outcome = self._scored(session.run, session.board, told, session.env_steps)
        self._conclude(session.run, outcome)

    def _finish_adopted(self, run: RunDirectory) -> None:
        """Scores a run whose principal another sweep has trained."""
        told = run.read_progress()[-1]
        board = Board(run.path)
        self._held.callback(board.close)
        board.begin(self._experiment, self._swept(), self._plan.sweep.question)
        with self._clocked():
            outcome = self._scored(run, board, told, int(told[STEPS]))
        board.flush()
        self._conclude(run, outcome)

    def _scored(self, run: RunDirectory, board: Board, told: Told, env_steps: int) -> Told:
        """Scores the run's principal in every condition, writes the tables, and returns all that is to be told."""
        results = self._score(run)
        results.write(run.path)
        scores = _scores(results.rows)
        figures = write_figures(run.path) if self._plan.num_runs <= MOST_RUNS_WITH_FIGURES else []
        board.finish(self._swept(), scores, figures, env_steps, self._words())
        return {**told, **scores, STEPS: float(env_steps)}

    def _conclude(self, run: RunDirectory, outcome: Told) -> None:
        """Makes the run's files the store's, then says so, and only then lets go of what it could have gone on from."""
        self._store.finish_run(self._folder, run.path, without=run.checkpoints)
        self._write_status(DONE, outcome, None)
        self._store.drop_kept(self._folder)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        self._store.delete(f"failures/{self.name}.txt")
        self._outcome, self.is_scored = outcome, True
        self.close()

    def _score(self, run: RunDirectory) -> Results:
        """Rows of the run in every condition; those of the fixed rules too, where nobody has made them yet."""
        contender, _ = contender_from(run.principal)
        parts = []
        for condition, experiment, ks in self._plan.scored_in(self._setting):
            evaluation = Evaluation(experiment, self._plan.split(condition), condition=condition)
            parts.append(evaluation.contender(contender.at(experiment), ks))
            self._score_baselines(evaluation, self._plan.game_key(condition, experiment))
        return Results.together(parts)

    def _score_baselines(self, evaluation: Evaluation, key: str) -> None:
        names = self._plan.baselines
        if not names or f"{key}.rows.parquet" in self._store.names("baselines"):
            return
        results = Results.together([evaluation.baseline(name) for name in names])
        # Rows last: they say that all is there.
        self._store.write(f"baselines/{key}.profiles.parquet", to_parquet(results.profiles))
        self._store.write(f"baselines/{key}.rows.parquet", to_parquet(results.rows))

    def _write_status(self, status: str, metrics: Told, error: str | None, **further: Any) -> None:
        RunStatus(
            setting=self._setting.name,
            method=self._experiment.name,
            preset=self._setting.preset,
            seed=self.seed,
            values=self._setting.values,
            status=status,
            error=error,
            env_steps=int(metrics.get(STEPS, 0)),
            budget=budget_of(self._experiment),
            wall_s=self._clock["wall_s"],
            cpu_s=self._clock["cpu_s"],
            hostname=platform.node(),
            sources=_SOURCES,
            trained_sources=self._trained_sources,
            metrics=metrics,
            **further,
        ).write(self._store, self.name)


def _scores(rows: pd.DataFrame) -> Told:
    """Normalised score (interquartile mean over tasks) by condition and K, as flat metrics."""
    scored = rows.dropna(subset=SCORE)
    return {
        score_key(str(condition), int(str(k))): interquartile_mean(of_one[SCORE].to_numpy()[None])
        for (condition, k), of_one in scored.groupby(["condition", "k"], sort=False)
    }
