"""Where a sweep's results live: a folder (local or shared by all nodes), or a bucket of an object store.

A folder is worked in directly. In a bucket, a run is a scratch folder that goes there whole: one object while it is
under way, so that no reader ever sees half of it, and its files when it is done.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mermaide_ray.disk import whole_file
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.provenance import refuse_secrets

_UNDER_WAY = "under_way.tar"


class Store:
    """A sweep's folder.

    Args:
        root: A path, or a URI that pyarrow knows (`s3://bucket/folder?endpoint_override=…`, `gs://…`).

    Raises:
        InputError: The URI can't be read, or holds a secret.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.is_folder = "://" not in root
        if self.is_folder:
            self.path = Path(root).absolute()
            return
        refuse_secrets(root)
        from pyarrow.fs import FileSystem

        try:
            self._files, self._prefix = FileSystem.from_uri(root)
        except (ValueError, OSError) as error:
            raise InputError(
                f"--out must be a folder or a URI such as s3://bucket/folder, got {root} ({_first_line(error)})"
            ) from None

    def uri(self, name: str) -> str:
        """What a user calls something in it."""
        return f"{self.root.rstrip('/')}/{name}" if self.is_folder else f"{self.root.partition('?')[0]}/{name}"

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""
        try:
            if self.is_folder:
                return (self.path / name).read_bytes()
            with self._files.open_input_stream(f"{self._prefix}/{name}") as file:
                content: bytes = file.read()
                return content
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RunFault(f"the sweep's storage must be readable, but {self.uri(name)} is not: {error}") from None

    def read_text(self, name: str, what: str) -> str:
        """A file that must be there.

        Raises:
            InputError: It is not.
        """
        content = self.read(name)
        if content is None:
            raise InputError(f"{what} must hold {name}, got {self.root}")
        return content.decode()

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all."""
        try:
            if self.is_folder:
                with whole_file(self.path / name) as unfinished:
                    unfinished.write_bytes(content)
                return
            with self._files.open_output_stream(f"{self._prefix}/{name}") as file:
                file.write(content)
        except OSError as error:
            raise RunFault(f"the sweep's storage must be writable, but {self.uri(name)} is not: {error}") from None

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; none where it does not exist."""
        if self.is_folder:
            here = self.path / folder
            return sorted(path.name for path in here.iterdir()) if here.is_dir() else []
        from pyarrow.fs import FileSelector

        selector = FileSelector(f"{self._prefix}/{folder}", allow_not_found=True)
        return sorted(info.base_name for info in self._files.get_file_info(selector))

    def open_run(self, folder: str) -> Path:
        """A local folder in which the run goes on from what was kept of it."""
        if self.is_folder:
            return self.path / folder
        scratch = Path(tempfile.mkdtemp(prefix="mermaide-run-"))
        kept = self.read(f"{folder}/{_UNDER_WAY}")
        if kept is not None:
            with tarfile.open(fileobj=io.BytesIO(kept)) as archive:
                archive.extractall(scratch, filter="data")
        return scratch

    def keep_run(self, folder: str, local: Path, told: Sequence[str]) -> None:
        """Keeps a run that is under way. A folder needs nothing: it is worked in.

        Args:
            folder: The run's.
            local: Where it is worked in.
            told: Files that others read before it is finished.
        """
        if self.is_folder:
            return
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(local, arcname=".")
        self.write(f"{folder}/{_UNDER_WAY}", packed.getvalue())
        for name in told:
            self.write(f"{folder}/{name}", (local / name).read_bytes())

    def finish_run(self, folder: str, local: Path, without: Path) -> None:
        """Makes the files of a finished run the store's, but for those in one of its folders."""
        if self.is_folder:
            return
        for path in sorted(local.rglob("*")):
            if path.is_file() and without not in path.parents and not path.name.startswith("."):
                self.write(f"{folder}/{path.relative_to(local).as_posix()}", path.read_bytes())

    def drop_kept(self, folder: str) -> None:
        """Deletes what was kept of a run while it was under way."""
        self.delete(f"{folder}/{_UNDER_WAY}")

    def close_run(self, local: Path) -> None:
        """Gives the local folder back."""
        if not self.is_folder:
            shutil.rmtree(local, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Deletes a file or a folder, if it is there."""
        if self.is_folder:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return
        from pyarrow.fs import FileType

        kind = self._files.get_file_info(f"{self._prefix}/{name}").type
        if kind == FileType.File:
            self._files.delete_file(f"{self._prefix}/{name}")
        elif kind == FileType.Directory:
            self._files.delete_dir(f"{self._prefix}/{name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.root,)


def below(root: str, name: str) -> str:
    """A folder in a folder, or in a URI that may end in a query."""
    place, question, query = root.partition("?") if "://" in root else (root, "", "")
    return f"{place.rstrip('/')}/{name}{question}{query}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
