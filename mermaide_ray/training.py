"""The jobs behind the command line: train, evaluate, export.

`python -m mermaide_ray.training DIR` trains the run in DIR and does no more: how baselines are trained beside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from mermaide_ray.agent_settings import HELD_OUT, Split
from mermaide_ray.agents.contract import check_own_families
from mermaide_ray.baselines import BASELINES, SCORED_BESIDE
from mermaide_ray.contender import Contender
from mermaide_ray.disk import damaged
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.evaluation import TABLES, Evaluation, Results
from mermaide_ray.experiment import Experiment, elsewhere, variant
from mermaide_ray.kshot import KShot
from mermaide_ray.metrics import score_key
from mermaide_ray.models.method import RATE, Method, split_parameters
from mermaide_ray.progress import Progress, terminal
from mermaide_ray.report.cells import Cells
from mermaide_ray.report.pictures import write_figures
from mermaide_ray.report.terminal import print_scores
from mermaide_ray.storage import (
    RunDirectory,
    checkpoint_seconds,
    load_principal,
    origin_of,
    refuse_changes,
    refuse_used,
    save_principal,
)

_COMPANION, _TRUSTED = "--companion", "--trust-checkpoint"


def train(
    experiment: Experiment,
    out: Path | None = None,
    baselines: Sequence[str] | None = None,
    resume: bool = False,
    trusted: bool = False,
) -> None:
    """Meta-trains a principal and the learned baselines beside it, scores all on held-out agents, reports.

    Args:
        experiment: The settings.
        out: The run's folder: a new one, or with `resume` that of the run.
        baselines: Presets, trained with the same agents, luck and budget, each in a process of its own.
        resume: Go on with the run in `out`.
        trusted: Resume from checkpoints, which are pickles, that others may have written.

    Raises:
        InputError: The folder, a checkpoint or an agent family can't be used.
        RunFault: Training failed.
    """
    torch.set_num_threads(1)
    console = terminal()
    check_own_families(experiment)
    checkpoint_seconds()  # refused before anything is made
    if resume:
        assert out is not None
        run = RunDirectory.open(out, trusted)
        _refuse_scores_alone(run)
        for name in baselines or ():
            if not (run.baselines / name).is_dir():
                raise InputError(f"--baseline must name one that the resumed run already has, got {name!r} ({out})")
    else:
        from mermaide_ray.cluster.resources import check_own_gpu

        check_own_gpu(experiment.env_runners)
        others = {name: _beside(experiment, name) for name in baselines or ()}
        _check_names([experiment.name, *(other.name for other in others.values())])
        run = RunDirectory.create(out, experiment, beside=others)
    console.print(f"results in {run.path}", soft_wrap=True, highlight=False)
    beside = sorted(run.baselines.iterdir()) if run.baselines.is_dir() else []
    with _interruptible(run):
        if _is_finished(run):
            console.print("the run is already finished: nothing is trained or scored again", highlight=False)
        else:
            rivals = [RunDirectory.open(path, trusted) for path in beside]
            with run.alone():
                _train_side_by_side(run, rivals, console)
                _score([run, *rivals])
        _report(run, console)


def evaluate(
    checkpoint: Path,
    ks: Sequence[int] | None = None,
    split: Split = "test",
    tasks: int | None = None,
    episodes: int | None = None,
    out: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Scores a trained principal beside fixed rules and the oracle, and prints the table. Unpickles nothing.

    Args:
        checkpoint: A run, a checkpoint or an exported principal.
        ks: Numbers of support episodes; as in its settings if not given.
        split: Which agents.
        tasks: How many agents; as in its settings if not given.
        episodes: Query episodes per agent and K; as in its settings if not given.
        out: Folder for rows, figures and the settings that they were scored with, or None to print only.
        overrides: Settings of the game or the agents that differ from those of its training, by dotted key.
    """
    torch.set_num_threads(1)
    contender, trained = contender_from(checkpoint)
    given = {"k": list(dict.fromkeys(ks)) if ks else None, "tasks": tasks, "episodes": episodes}
    chosen = {f"evaluation.{key}": value for key, value in given.items() if value is not None}
    experiment = elsewhere(trained, {**(overrides or {}), **chosen})
    check_own_families(experiment)
    contender = contender.at(experiment)
    _check_names([contender.name])
    if out is not None:
        refuse_used(out)
    results = score(experiment, [contender], split, experiment.evaluation.k)
    if out is not None:
        RunDirectory.create(out, experiment)
        results.write(out)
        write_figures(out)
    console = terminal()
    print_scores(Cells.of_run(results.rows), console)
    if out is None:
        console.print("nothing of this is kept: --out DIR keeps rows and figures", highlight=False)


def export(checkpoint: Path, out: Path) -> None:
    """Writes a run's or a checkpoint's principal as safetensors and JSON, to share, and where it comes from."""
    refuse_used(out)
    if out.is_dir() and (found := sorted(path.name for path in out.iterdir())):  # the folder is replaced whole
        raise InputError(f"--out must be a new or empty folder, got {out}, which holds {found[0]}")
    experiment, parameters = load_principal(checkpoint)
    save_principal(out, experiment, parameters, origin_of(checkpoint))
    Console().print(f"principal in {out}", soft_wrap=True, highlight=False)


def contender_from(folder: str | os.PathLike[str], name: str | None = None) -> tuple[Contender, Experiment]:
    """A trained principal, ready to be scored, and the settings that it was trained with.

    Args:
        folder: A run, a checkpoint or an exported principal.
        name: Its name in the rows; that of its settings if not given.

    Raises:
        InputError: Not a principal, or one whose arrays don't fit its settings or are not finite.
    """
    experiment, arrays = load_principal(Path(folder))
    method = Method.of(experiment)
    parameters = {key: torch.from_numpy(value) for key, value in arrays.items()}
    expected = method.architecture.shapes() | {RATE + name: () for name in method.adaptable()}
    given = {key: tuple(value.shape) for key, value in parameters.items() if key in expected}
    if given != expected:
        wrong = sorted(key for key in expected if given.get(key) != expected[key])
        raise InputError(
            f"a principal's arrays must fit its settings: {wrong[0]} must have shape {expected[wrong[0]]}, "
            f"got {given.get(wrong[0], 'none')} ({folder})"
        )
    if broken := sorted(name for name in expected if not parameters[name].isfinite().all()):
        raise InputError(f"a principal's arrays must be finite, got NaN or infinity in {broken[0]} ({folder})")
    weights, rates = split_parameters(method, parameters)
    kshot = KShot(experiment.environment, method, experiment.evaluation.planned_rehearsals)
    return Contender(name or experiment.name, experiment.seed, kshot, weights, rates), experiment


def score(
    experiment: Experiment,
    contenders: Sequence[Contender],
    split: Split,
    ks: Sequence[int],
    tasks: int | None = None,
    episodes: int | None = None,
) -> Results:
    """Rows of trained principals, all fixed rules and all oracles, on the same agents with the same luck."""
    evaluation = Evaluation(experiment, split, tasks, episodes)
    parts = [evaluation.contender(contender, ks) for contender in contenders]
    return Results.together([*parts, *(evaluation.baseline(name) for name in SCORED_BESIDE)])


def meta_train(run: RunDirectory, console: Console, check: Callable[[], None] = lambda: None) -> None:
    """Trains the principal of one run from its latest checkpoint (or from nothing) to the end of its budget.

    Args:
        run: The run.
        console: Where progress is told.
        check: Called in each iteration; raises if going on is of no use.
    """
    from mermaide_ray.cluster.join import ray_running
    from mermaide_ray.session import Session

    run.note_other_code()
    with ray_running(run.experiment().env_runners.actors, console), Session(run, checkpoint_seconds()) as session:
        total = session.total * session.experiment.env_steps_per_iteration
        progress = Progress(console, session.experiment.name, total, session.env_steps)
        try:
            while not session.is_done:
                check()
                told = session.iterate()
                progress.update(session.iteration, session.env_steps, told)
            session.export()
        finally:
            progress.close()


@contextmanager
def _interruptible(run: RunDirectory) -> Iterator[None]:
    """Whoever interrupts the run is told how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        begins = f"no checkpoint is there yet (one each {checkpoint_seconds():g} s), so the run begins again"
        how = "the run goes on" if run.can_go_on else begins
        raise KeyboardInterrupt(f"{how} with: mermaide train --resume {run.path}") from None


def _is_finished(run: RunDirectory) -> bool:
    """Whether a run is trained and scored."""
    return all((run.path / f"{name}.parquet").is_file() for name in TABLES) and _is_trained(run)


def _is_trained(run: RunDirectory) -> bool:
    """Whether a run has come to the end of its training.

    Raises:
        InputError: It has, with other settings than it has now.
    """
    if not run.principal.is_dir():
        return False
    trained, _ = load_principal(run.principal)
    refuse_changes(trained, run.principal, run.experiment(), run.config)
    return True


def _refuse_scores_alone(run: RunDirectory) -> None:
    """Refuses to go on with what `mermaide evaluate` has left, or a sweep of a run that is done."""
    if run.latest_checkpoint() or not (run.path / "rows.parquet").is_file():
        return
    if (run.path / "status.json").is_file():
        raise InputError(f"--resume must be the folder of a run of `mermaide train`, got {run.path}, a sweep's")
    if not run.can_go_on:
        raise InputError(
            "--resume must be the folder of a run, with its checkpoints or its principal, "
            f"got {run.path}, with scores alone"
        )


def _score(runs: Sequence[RunDirectory]) -> None:
    """Scores a run and those beside it."""
    experiment = runs[0].experiment()
    contenders = [contender_from(each.principal)[0] for each in runs]
    results = Results.together([score(experiment, contenders, split, experiment.evaluation.k) for split in HELD_OUT])
    results.write(runs[0].path)


def _report(run: RunDirectory, console: Console) -> None:
    """Draws and prints what scoring has written."""
    experiment, file = run.experiment(), run.path / "rows.parquet"
    try:
        rows = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise damaged(file, error, "delete it, and the same command scores the run again") from None
    figures = write_figures(run.path)
    from mermaide_ray.tensorboard import Board

    board = Board(run.path / "tensorboard")
    cells = Cells.of_run(rows)
    levels = {cell: cells.interval([cell]) for cell in cells if cell.method == experiment.name}
    scores = {score_key(cell.condition, cell.k): level.value for cell, level in levels.items() if level}
    board.finish(experiment.to_dict(), scores, figures, experiment.num_iterations * experiment.env_steps_per_iteration)
    board.close()
    print_scores(cells, console, experiment.name)
    console.print(f"rows, figures and TensorBoard events in {run.path}", soft_wrap=True, highlight=False)


def _beside(experiment: Experiment, preset: str) -> Experiment:
    """A learned baseline: the preset's method on the main run's game, agents and budget."""
    baseline = variant(experiment, preset)
    if (baseline.environment, baseline.agents) != (experiment.environment, experiment.agents):
        raise InputError(
            f"--baseline must be a preset that keeps the game and the agents, got {preset!r}, which changes them"
        )
    return baseline


def _train_side_by_side(run: RunDirectory, rivals: Sequence[RunDirectory], console: Console) -> None:
    """Trains a run, and its rivals in processes of their own; not what is trained already, by whatever code."""
    from mermaide_ray.cluster.join import joins_cluster, ray_running

    mine, others = ([each for each in runs if not _is_trained(each)] for runs in ([run], rivals))
    if not mine:
        run.note_other_code()  # which scores it
    actors = [actor for each in (*mine, *others) for actor in each.experiment().env_runners.actors]
    # On a cluster, room for all of them before any begins: else each might get some of its actors, and wait for the
    # rest for ever. Without one, each has a Ray of its own.
    room = ray_running(actors, console) if others and actors and joins_cluster() else nullcontext()
    with room, _Companions(others) as companions:
        for each in mine:
            meta_train(each, console, companions.check)
        companions.wait(console)


class _Companions:
    """Other runs, trained in processes of their own while this one trains its own; ended with the context."""

    def __init__(self, runs: Sequence[RunDirectory]) -> None:
        self._runs = runs
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Companions:
        try:
            for run in self._runs:
                with (run.path / "log.txt").open("ab") as log:
                    command = [sys.executable, "-m", "mermaide_ray.training", str(run.path), _COMPANION]
                    command += [_TRUSTED] if run.trusted else []
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
                    self._processes.append(process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()

    def check(self) -> None:
        """Raises if one of them has failed: without it there is nothing to compare with in the end."""
        for run, process in zip(self._runs, self._processes, strict=True):
            if process.poll():
                log = run.path / "log.txt"
                last = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
                raise RunFault(f"the baseline {run.path.name} failed: {last} (see {log})")

    def wait(self, console: Console) -> None:
        """Waits until all are done."""
        for run, process in zip(self._runs, self._processes, strict=True):
            if process.poll() is None:
                console.print(f"waiting for {run.path.name} …", highlight=False)
                process.wait()
        self.check()


def _check_names(names: Sequence[str]) -> None:
    """Refuses names that the final table could not tell apart."""
    for place, name in enumerate(names):
        if name in BASELINES or name in names[:place]:
            whose = ", that of a fixed rule or an oracle" if name in BASELINES else " twice"
            raise InputError(f"methods must have names of their own, got {name!r}{whose} (`name`, --baseline)")


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: a resumed run would start another in the same folder."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # a pipe that nobody writes to; it ends with the parent, however that ended
        os._exit(RunFault.exit_code)

    threading.Thread(target=wait, daemon=True).start()


def _train_only(arguments: Sequence[str]) -> int:
    torch.set_num_threads(1)
    if _COMPANION in arguments[1:]:
        _end_with_parent()
    try:
        run = RunDirectory.open(Path(arguments[0]), trusted=_TRUSTED in arguments[1:])
        with run.alone():
            meta_train(run, Console(force_terminal=False))
    except (InputError, RunFault) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_train_only(sys.argv[1:]))
