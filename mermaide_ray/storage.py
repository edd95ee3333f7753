"""What a run leaves on disk: written whole or not at all, never over another run's.

    DIR/config.yaml, provenance.json, progress.jsonl, tensorboard/, checkpoints/iteration_000042/{rllib/, principal/,
    meta.json}, principal/{principal.safetensors, principal.json}, rows.parquet, calibration.parquet, profiles.parquet,
    figures/, baselines/NAME/ (runs of the same shape), .lock (held by who works there); of RLlib's own PPO
    module.safetensors in place of checkpoints/ and principal/

RLlib's checkpoints are pickles, which run code when they are loaded: they serve to resume the run that wrote them, and
are taken only from its own folder and from its own user. A principal to share is safetensors and JSON: loading one
unpickles nothing. (Agent families that its settings name by a dotted path are imported, and named before.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mermaide_ray.config_file import dump_yaml, flat, merge, read_yaml
from mermaide_ray.disk import (
    LOCK,
    damaged,
    one_process,
    sync,
    whole_file,
    whole_folder,
    whole_records,
    written_by_others,
)
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.experiment import Experiment, validate
from mermaide_ray.machine import seconds_from
from mermaide_ray.provenance import gone_on, provenance, versions

PRINCIPAL_FORMAT = 1
CHECKPOINT_FORMAT = 1
_KEPT_CHECKPOINTS = 2
_PRINCIPAL = "principal"
_PROVENANCE = "provenance.json"
# What provenance says of a run that RLlib's PPO has trained: it has no checkpoints of ours.
STOCK = "mermaide stock-ppo"
# Its policy, written when it is trained, and what scores such a run again.
STOCK_MODULE, SCORE_STOCK = "module.safetensors", "python -m mermaide_ray.baselines.stock_run"


class RunDirectory:
    """One run's folder.

    Args:
        path: The folder.
        trusted: Whether checkpoints that others wrote may be unpickled.
    """

    def __init__(self, path: Path, trusted: bool = False) -> None:
        self.path, self.trusted = path, trusted

    @classmethod
    def create(
        cls,
        path: Path | None,
        experiment: Experiment,
        origin: dict[str, Any] | None = None,
        beside: Mapping[str, Experiment] | None = None,
    ) -> RunDirectory:
        """A new folder with the config and where it came from.

        Args:
            path: The folder; named after method, seed and time if not given.
            experiment: The settings.
            origin: What `provenance` said where the run was started, if that was elsewhere.
            beside: Settings of the baselines that are trained beside, by name.

        Raises:
            InputError: The folder exists and is not empty, or another process makes it.
            RunFault: It can't be made.
        """
        if path is None:
            stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            path = Path("runs") / f"{experiment.name}-seed{experiment.seed}-{stamp}"
        refuse_used(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFault(
                f"--out must be a folder that can be made and written, got {path} ({error.strerror})"
            ) from None
        with one_process(path):
            refuse_used(path)  # again: another process may have been given the same folder at the same moment
            return cls.begin(path, experiment, origin, beside)

    @classmethod
    def begin(
        cls,
        path: Path,
        experiment: Experiment,
        origin: dict[str, Any] | None = None,
        beside: Mapping[str, Experiment] | None = None,
    ) -> RunDirectory:
        """As `create`, in an empty folder that this process holds already (`one_process`)."""
        run = cls(path)
        shutil.rmtree(run.baselines, ignore_errors=True)  # begun by one that was killed
        run._write_provenance(origin or provenance())
        for name, other in (beside or {}).items():
            cls.create(run.baselines / name, other, origin)
        # Last: a folder without it is none of a run, and may be begun anew.
        run._write_config(experiment)
        return run

    @classmethod
    def open(cls, path: Path, trusted: bool = False) -> RunDirectory:
        """The folder of an earlier run.

        Raises:
            InputError: It is none that could be gone on with.
        """
        run = cls(path, trusted)
        if not run.config.is_file():
            raise InputError(f"a run's folder must hold config.yaml, got {path}")
        if _is_stock(path):
            raise InputError(f"a run must be one of `mermaide train` to be gone on with, got {path}, of {STOCK}")
        return run

    @property
    def config(self) -> Path:
        """The whole effective config."""
        return self.path / "config.yaml"

    @property
    def progress(self) -> Path:
        """One JSON object per iteration."""
        return self.path / "progress.jsonl"

    @property
    def checkpoints(self) -> Path:
        """RLlib's checkpoints, by iteration."""
        return self.path / "checkpoints"

    @property
    def principal(self) -> Path:
        """The trained principal, to share."""
        return self.path / _PRINCIPAL

    @property
    def can_go_on(self) -> bool:
        """Whether there is something to go on from: a checkpoint, or the trained principal, which may yet be scored."""
        return self.principal.is_dir() or self.latest_checkpoint() is not None

    @property
    def baselines(self) -> Path:
        """Runs of the learned baselines that were trained beside."""
        return self.path / "baselines"

    def experiment(self) -> Experiment:
        """The settings that the run was started with."""
        return validate(completed(read_yaml(self.config)), where=str(self.config))

    @contextmanager
    def alone(self, wait: bool = False) -> Iterator[None]:
        """While this process trains the run, no other may: two would write over each other's progress.

        Args:
            wait: Until another one that does has ended.

        Raises:
            InputError: Another one does.
        """
        with one_process(self.path, wait):
            # What a killed process left half-written.
            for left in self.checkpoints.glob(".iteration_*"):
                shutil.rmtree(left)
            yield

    def keep_settings(self, experiment: Experiment, told: str) -> None:
        """Goes on with the settings that the run of a sweep has, but for who does the work, which may change.

        Args:
            experiment: The settings to go on with.
            told: The folder as the user knows it.

        Raises:
            InputError: More has changed.
        """
        before = self.experiment()
        refuse_changes(before, told, experiment, "the sweep")
        if before != experiment:
            self._write_config(experiment)

    def note_other_code(self) -> None:
        """Puts on record that the run goes on with other code, or other versions, than it was begun with."""
        file = self.path / _PROVENANCE
        self._write_provenance(gone_on(_read_json(file, "a run's folder") if file.is_file() else {}))

    def _write_provenance(self, record: Mapping[str, Any]) -> None:
        with whole_file(self.path / _PROVENANCE) as file:
            file.write_text(json.dumps(record, indent=1), encoding="utf-8")

    def _write_config(self, experiment: Experiment) -> None:
        with whole_file(self.config) as file:
            file.write_text(dump_yaml(experiment.to_dict()), encoding="utf-8")

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        found = self._by_iteration()
        return found[-1] if found else None

    def _by_iteration(self) -> list[Path]:
        """The complete checkpoints, the oldest first."""
        numbers = {path: path.name.removeprefix("iteration_") for path in self.checkpoints.glob("iteration_*")}
        return sorted((path for path in numbers if numbers[path].isdecimal()), key=lambda path: int(numbers[path]))

    def save_checkpoint(self, iteration: int, write: Callable[[Path], None]) -> Path:
        """Writes a checkpoint beside the others, then drops the oldest.

        Args:
            iteration: Meta-iterations done.
            write: Fills an empty folder.
        """
        target = self.checkpoints / f"iteration_{iteration:06d}"
        if self.progress.exists():
            sync(self.progress)  # what was told up to here will not be told again
        with whole_folder(target) as folder:
            write(folder)
            meta = {"format": CHECKPOINT_FORMAT, "iteration": iteration, "versions": versions()}
            (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        for old in self._by_iteration()[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        return target

    def check_checkpoint(self, checkpoint: Path) -> int:
        """The iteration of a checkpoint that this version can read, and that may be unpickled.

        Raises:
            InputError: It is somebody else's, incomplete, of another format, or of another version of Ray or of this
                package.
        """
        if not self.trusted and (foreign := written_by_others(checkpoint, self.path)):
            raise InputError(
                "a checkpoint holds pickles, which run code when they are loaded: it must lie in its run's own folder "
                f"and be yours alone to write, but {foreign} (--trust-checkpoint loads it all the same)"
            )
        meta = _read_json(checkpoint / "meta.json", "a checkpoint")
        if meta.get("format") != CHECKPOINT_FORMAT:
            raise InputError(
                f"a checkpoint must have format {CHECKPOINT_FORMAT}, got {meta.get('format')} ({checkpoint})"
            )
        for package in ("ray", "mermaide_ray"):
            mine, theirs = versions()[package], meta.get("versions", {}).get(package)
            if mine != theirs:
                raise InputError(
                    f"a checkpoint must be resumed with the {package} that wrote it ({theirs}), got {mine} "
                    f"({checkpoint})"
                )
        if not isinstance(meta.get("iteration"), int):
            raise InputError(f"a checkpoint's meta.json must hold its iteration, got none ({checkpoint})")
        return int(meta["iteration"])

    def read_progress(self) -> list[dict[str, Any]]:
        """All iterations told so far."""
        if not self.progress.exists():
            return []
        try:
            return whole_records(self.progress.read_bytes())
        except ValueError as error:
            raise damaged(self.progress, error, "delete that line") from None

    def rewind_progress(self, iteration: int) -> None:
        """Forgets what was told after a checkpoint: it will be told again."""
        kept = [told for told in self.read_progress() if told["iteration"] <= iteration]
        with whole_file(self.progress) as file:
            file.write_text("".join(json.dumps(told) + "\n" for told in kept), encoding="utf-8")

    def tell(self, told: dict[str, Any]) -> None:
        """Adds an iteration."""
        with self.progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


def checkpoint_seconds() -> float:
    """Seconds between checkpoints: the environment variable MERMAIDE_CHECKPOINT_SECONDS, or a minute."""
    return seconds_from("MERMAIDE_CHECKPOINT_SECONDS", 60.0)


def first_change(then: Experiment, now: Experiment) -> str | None:
    """The first setting, by its dotted key, of what is done that has changed; who does the work may change."""
    before, after = (dict(flat(each.what_is_done(), whole=("families",))) for each in (then, now))
    return next((key for key in after | before if after.get(key) != before.get(key)), None)


def refuse_changes(then: Experiment, there: Path | str, now: Experiment, here: Path | str) -> None:
    """Refuses to go on with a run whose settings have changed since.

    Args:
        then: The settings of what is done already.
        there: Where that is, as the user knows it.
        now: The settings to go on with.
        here: Where they are given.

    Raises:
        InputError: What is done has changed.
    """
    if key := first_change(then, now):
        raise InputError(f"a resumed run must keep its settings, but `{key}` of {here} is not that of {there}")


def refuse_used(out: Path, hint: str = "") -> None:
    """Refuses a place of results that holds something; with a hint where that is nothing of ours.

    Raises:
        InputError: It does.
    """
    if out.exists() and not (out.is_dir() and _is_unused(out)):
        raise InputError(f"--out must be a new or empty folder, got {out}{what_is(out) or hint}")


def _is_unused(folder: Path) -> bool:
    """Whether a folder holds nothing, or no more than a kill has left of the beginning of a run or a sweep."""
    begun = {_PROVENANCE, "baselines"} if (folder / _PROVENANCE).is_file() else set()
    if any(path.name not in begun and not path.name.startswith(".") for path in folder.iterdir()):
        return False
    untrained = ("config.yaml", _PROVENANCE)
    beside = (path for path in (folder / "baselines").rglob("[!.]*") if path.is_file())
    return all(path.name in untrained for path in beside)


def clear(folder: Path) -> None:
    """Deletes all that is in a run's folder; the lock stays with who holds it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def save_principal(
    folder: Path, experiment: Experiment, state: dict[str, Any], origin: Mapping[str, Any] | None = None
) -> None:
    """Writes a principal as safetensors and JSON.

    Args:
        folder: To be made; an older one there is replaced.
        experiment: Settings that it was trained with.
        state: Parameters by name, as `PrincipalModule.arrays()` returns them.
        origin: What `origin_of` told of it, if it wasn't trained by this process.
    """
    import numpy as np
    from safetensors.numpy import save

    with whole_folder(folder) as new:
        # Not ascontiguousarray, which gives a 0-dim rate an axis.
        arrays = {name: np.asarray(value, order="C") for name, value in state.items()}
        # Written by Python, so that a full disk is an OSError like any other.
        (new / "principal.safetensors").write_bytes(save(arrays))
        origin = {"versions": versions()} if origin is None else origin
        about = {"format": PRINCIPAL_FORMAT, **origin, "experiment": experiment.to_dict()}
        (new / "principal.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def load_principal(folder: Path) -> tuple[Experiment, dict[str, Any]]:
    """Reads a principal; unpickles nothing.

    Args:
        folder: A principal's folder, a checkpoint's or a run's.

    Raises:
        InputError: Nothing there, truncated, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = _principal_in(folder)
    about = _read_json(folder / "principal.json", "a principal")
    if about.get("format") != PRINCIPAL_FORMAT:
        raise InputError(f"a principal must have format {PRINCIPAL_FORMAT}, got {about.get('format')} ({folder})")
    try:
        state = load_file(folder / "principal.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"a principal must be a complete safetensors file, got {folder} ({error})") from None
    if not isinstance(about.get("experiment"), dict):
        raise InputError(f"principal.json must hold the settings as `experiment`, got none ({folder})")
    return validate(completed(about["experiment"]), where=str(folder / "principal.json")), state


def origin_of(folder: Path) -> dict[str, Any]:
    """Where a principal comes from: the `versions` that trained it, and, if it is known, the `provenance` of its run.

    Args:
        folder: As of `load_principal`. An export holds its origin, a run and its checkpoints have it beside.

    Raises:
        InputError: Nothing there, or what should tell it is broken.
    """
    folder = _principal_in(folder).resolve()
    about = _read_json(folder / "principal.json", "a principal")
    told = {key: about[key] for key in ("versions", "provenance") if isinstance(about.get(key), dict)}
    if "provenance" not in told and folder.name == _PRINCIPAL:
        run, above = folder.parent, folder.parent.parent
        run = above.parent if above.name == "checkpoints" else run
        if (run / _PROVENANCE).is_file():
            told["provenance"] = _read_json(run / _PROVENANCE, "a run's folder")
    return told


def _principal_in(folder: Path) -> Path:
    """The folder that holds principal.json: the one given, or within that of a run or a checkpoint."""
    if not (folder / "principal.json").is_file() and (folder / _PRINCIPAL).is_dir():
        folder = folder / _PRINCIPAL
    if not (folder / "principal.json").is_file() and (latest := RunDirectory(folder).latest_checkpoint()):
        raise InputError(f"a run must be finished to be loaded, {folder} is not: resume it, or give {latest}")
    if not (folder / "principal.json").is_file():
        raise InputError(f"a run, a checkpoint or an export must hold principal.json, got {folder}{what_is(folder)}")
    return folder


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were meant: before there were these, nothing had a model of learners, planned or rehearsed."""
    return merge({"world_model": {"kind": "recurrent"}, "evaluation": {"planning": False, "rehearsals": 0}}, settings)


def what_is(path: Path) -> str:
    """What lies there and which command takes it, to stand behind the path in a message; empty if nothing of ours."""
    if path.is_file():
        return ", a file"
    if (path / "sweep.yaml").is_file():
        return f", the folder of a sweep (mermaide sweep --resume {path} goes on with it; its runs are in {path}/runs)"
    run = RunDirectory(path)
    # Scores without checkpoints are of no training that could go on.
    if run.config.is_file() and (run.checkpoints.is_dir() or not (path / "rows.parquet").is_file()):
        if _is_stock(path):
            if (path / STOCK_MODULE).is_file():
                return f", the folder of a run of {STOCK}, trained but not scored ({SCORE_STOCK} {path} scores it)"
            return (
                f", the folder of an unfinished run of {STOCK}, which nothing goes on with (unless it is under way, "
                f"delete it and run {STOCK} again)"
            )
        if run.can_go_on:
            return f", the folder of a run (mermaide train --resume {path} goes on with it)"
        return (
            ", the folder of a run without a checkpoint (unless it is under way, delete it, or begin it again by "
            f"mermaide train --resume {path})"
        )
    return ""


def _is_stock(folder: Path) -> bool:
    """Whether a run is one that RLlib's PPO has trained, or was to train."""
    origin = folder / _PROVENANCE
    return origin.is_file() and _read_json(origin, "a run's folder").get("trained_by") == STOCK


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{what} must hold {path.name}, got {path.parent}") from None
    except ValueError:
        raise InputError(f"{what} must hold a complete {path.name}, got a broken one in {path.parent}") from None
    if not isinstance(content, dict):
        raise InputError(f"{what} must hold an object in {path.name}, got {type(content).__name__} in {path.parent}")
    return content
