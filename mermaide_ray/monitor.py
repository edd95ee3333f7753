"""The job behind `mermaide tensorboard`: serves the TensorBoard events of runs and sweeps to this machine's browser."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from mermaide_ray.config_file import read_yaml
from mermaide_ray.errors import InputError, RunFault

_EVENTS = "events.out.tfevents.*"


def monitor(folders: Sequence[str], port: int | None = None) -> None:
    """Serves TensorBoard until it is interrupted.

    Args:
        folders: Runs, sweeps, or folders of them.
        port: Where to listen, 0 for any free port; 6006 or the next free one if not given.

    Raises:
        InputError: There is nothing to show.
        RunFault: The port can't be had.
    """
    sources = event_folders(folders)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="mermaide-") as scratch:
        url = _served(_logdir(sources, Path(scratch)), port)
        print(f"TensorBoard at {url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def event_folders(folders: Sequence[str]) -> dict[str, Path]:
    """What TensorBoard is to show: name -> a folder with events, or one of runs with events (a sweep's).

    Raises:
        InputError: A folder does not exist, or holds no events.
    """
    for folder in folders:
        if "://" in folder:
            raise InputError(
                f"TensorBoard needs a folder on this machine, got {folder} (copy it here first, such as with "
                "`aws s3 sync` or `gcloud storage rsync`)"
            )
        if not Path(folder).is_dir():
            raise InputError(f"TensorBoard needs the folder of a run or a sweep, got {folder}, where there is none")
    paths = [Path(folder).resolve() for folder in folders]
    above = os.path.commonpath([path.parent for path in paths])
    shown: dict[str, Path] = {}
    for path, folder in zip(paths, folders, strict=True):
        sources = dict(_sources(path, str(path.relative_to(above))))
        if not any(next(source.rglob(_EVENTS), None) for source in sources.values()):
            raise InputError(f"TensorBoard needs a run or a sweep that has begun, got {folder}, which holds no events")
        shown |= sources
    return shown


def _sources(path: Path, name: str, deeper: bool = True) -> Iterator[tuple[str, Path]]:
    """The events of a sweep; of a run and the baselines trained beside it; or of all such in a folder."""
    if (path / "sweep.yaml").is_file():
        # Not run by run: those that start later are to appear too.
        yield name, path / "runs"
    elif (path / "tensorboard").is_dir():
        for run in (path, *sorted((path / "baselines").glob("*"))):
            yield f"{name}/{read_yaml(run / 'config.yaml')['name']}", run / "tensorboard"
    elif next(path.glob(_EVENTS), None):  # one run of a sweep
        yield name, path
    elif deeper:
        for inner in sorted(path.iterdir()):
            yield from _sources(inner, f"{name}/{inner.name}", deeper=False)


def _logdir(sources: dict[str, Path], scratch: Path) -> Path:
    """One folder in which TensorBoard finds all by their names; a lone sweep's runs need no name before their own."""
    if len(sources) == 1:
        [folder] = sources.values()
        if next(folder.glob(_EVENTS), None) is None:
            return folder
    for name, folder in sources.items():
        if any(folder != other and folder.is_relative_to(other) for other in sources.values()):
            continue  # shown as part of the other, into which its link would be written
        # Links, since TensorBoard's own way to name folders (--logdir_spec) takes the commas in them for its own.
        link = scratch / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
    return scratch


def _served(logdir: Path, port: int | None) -> str:
    """The address at which TensorBoard answers from now on, until this process ends."""
    from tensorboard.program import TensorBoard, TensorBoardServerException

    arguments = ["tensorboard", "--logdir", str(logdir), "--host", "127.0.0.1"]
    board = TensorBoard()
    board.configure([*arguments, *([] if port is None else ["--port", str(port)])])
    try:
        # What it says of its data server is of no use to a reader of events.
        with contextlib.redirect_stderr(io.StringIO()):
            url: str = board.launch()
    except TensorBoardServerException as error:
        raise RunFault(f"TensorBoard must be able to listen (--port): {error.msg}") from None
    return url
