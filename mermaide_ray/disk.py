"""Files and folders that are written whole or not at all, by one process at a time; what is said of damaged ones."""

from __future__ import annotations

import fcntl
import grp
import json
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from mermaide_ray.errors import InputError, RunFault

# In a folder, held by who works there.
LOCK = ".lock"
_OF_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` only if nothing goes wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(0o644)  # mkstemp's files are their owner's alone
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `target` only if nothing goes wrong; one already there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if not path.is_symlink():  # it has no rights of its own
                # Pickles that a generous umask lets a group write would not be loaded again (`written_by_others`).
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OF_OTHERS)
            if path.is_file():
                sync(path)
        temporary.chmod(0o755)
        if target.exists():
            aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            target.rename(aside / "old")
            temporary.rename(target)
            shutil.rmtree(aside)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def whole_records(content: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a file that is added to line by line. A last line cut short, as by a kill, is left out.

    Raises:
        ValueError: Another line is none.
    """
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is no JSON object: {line[:40].decode(errors='replace').strip()!r}")
        records.append(record)
    return records


def damaged(file: Path | str, error: Exception, remedy: str) -> InputError:
    """What is said of a file of results that can't be read, and what to do about it."""
    why = next(iter(str(error).splitlines()), type(error).__name__)
    return InputError(f"files of results must be whole, but {file} is damaged ({why}): {remedy}")


def sync(path: Path) -> None:
    """Waits until the disk holds a file: after a power cut, its name might else be there without its content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def one_process(folder: Path, wait: bool = False) -> Iterator[None]:
    """While this process works in the folder of a run or a sweep, no other may.

    Args:
        folder: It exists.
        wait: Until another one that does has ended, however long that takes.

    Raises:
        InputError: Another one does.
        RunFault: The file system locks no files.
    """
    # A file open for writing: NFS tells other machines of no other lock. It is never deleted: who then made a new one
    # would hold that while the old one is still held.
    with (folder / LOCK).open("a") as held:
        try:
            # Freed by the kernel when the process ends, however it ends.
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(f"{folder} must be worked in by one process at a time, and one does already") from None
        except OSError as error:
            raise RunFault(f"{folder} must be on a file system that can lock files ({error.strerror})") from None
        yield


def written_by_others(folder: Path, home: Path) -> str | None:
    """Why somebody else may have written what is in a folder, which should lie within `home`; None if nobody else."""
    for path in (folder, *sorted(folder.rglob("*"))):
        if not path.resolve().is_relative_to(home.resolve()):
            return f"{path} leads to {path.resolve()}"
        about = path.lstat()
        # Root could replace this very program: its files are as good as one's own.
        if about.st_uid not in (os.geteuid(), 0):
            return f"{path} belongs to user {about.st_uid}"
        if stat.S_ISLNK(about.st_mode):
            continue
        if about.st_mode & stat.S_IWOTH:
            return f"everybody may write to {path}"
        if about.st_mode & stat.S_IWGRP and (group := _shared_group(about.st_gid)):
            return f"group {group} may write to {path}"
    return None


@cache
def _shared_group(number: int) -> str | None:
    """What a group is called that holds somebody beside this user and root, or may; None if there is nobody else.

    Where each user has a group of his own, as on most Linux machines, what he writes may well be writable by it.
    """
    me = os.geteuid()
    try:
        group = grp.getgrgid(number)
    except KeyError:  # a container, which knows few of the host's names: by custom such a group has its user's number
        return None if number == me else str(number)
    accounts = pwd.getpwall()
    mine = {account.pw_name for account in accounts if account.pw_uid == me}
    with suppress(KeyError):
        mine.add(pwd.getpwuid(me).pw_name)
    if set(group.gr_mem) - mine - {"root"}:
        return group.gr_name
    if group.gr_name in mine:
        return None
    # A group doesn't list those whose first one it is. A directory service may list no accounts at all.
    others = any(account.pw_gid == number and account.pw_uid not in (me, 0) for account in accounts)
    am_listed = any(account.pw_uid == me for account in accounts)
    return None if am_listed and not others else group.gr_name
