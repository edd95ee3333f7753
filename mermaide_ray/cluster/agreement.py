"""Whether all nodes run the same code and write to the same place. Ray must be up."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from mermaide_ray.cluster.nodes import last_line, nodes, on_every_node
from mermaide_ray.errors import InputError, RunFault


def check_versions() -> None:
    """Makes sure that every node runs the code that this process runs.

    Ray itself refuses other versions of Ray and Python; the rest would give other numbers, or fail midway.

    Raises:
        RunFault: A node has another version, or none.
    """

    def versions() -> dict[str, str]:
        from importlib.metadata import version

        from mermaide_ray import __version__
        from mermaide_ray.provenance import sources_digest

        mine = {name: version(name) for name in ("torch", "numpy")}
        return {**mine, "mermaide_ray": f"{__version__} (sources {sources_digest()})"}

    here = versions()
    for node, there in on_every_node(versions):
        if isinstance(there, Exception):
            raise RunFault(f"every node must have this package and Torch, but {node} has not: {last_line(there)}")
        wrong = next((name for name in here if there[name] != here[name]), None)
        if wrong:
            raise RunFault(
                f"every node must run the {wrong} of this process, {here[wrong]}, but {node} has {there[wrong]}: bring "
                "it up to date (`ray up` again, or a new image)"
            )


def check_gpus() -> None:
    """Makes sure that Torch can use the GPUs of every node that has some.

    Raises:
        RunFault: A node has GPUs, and a Torch without CUDA.
    """

    def can_use_them() -> bool:
        import torch

        return bool(torch.backends.cuda.is_built())  # type: ignore[no-untyped-call]

    with_gpus = {node.name for node in nodes() if node.resources.get("GPU")}
    for node, answer in on_every_node(can_use_them):
        if node in with_gpus and answer is not True:
            raise RunFault(
                f"every node with a GPU must have PyTorch with CUDA, but {node} has not: install PyPI's own, without "
                "--extra-index-url (setup_commands of the cluster's file)"
            )


def check_storage(root: str) -> None:
    """Makes sure that every node writes to the same place, and sees what others wrote there.

    With folders of their own, a sweep on several nodes starts well and fails at its first checkpoint.

    Args:
        root: A folder, or a URI that pyarrow knows.

    Raises:
        InputError: A node can't write there, or sees another folder.
    """
    if len(nodes()) < 2:
        return

    def answered(place: str, question: str) -> str:
        import uuid

        from pyarrow.fs import FileSystem, LocalFileSystem

        files, base = FileSystem.from_uri(place) if "://" in place else (LocalFileSystem(), place)
        with files.open_input_stream(f"{base}/{question}") as file:
            file.read()
        answer = f".answer-{uuid.uuid4().hex}"
        with files.open_output_stream(f"{base}/{answer}") as file:
            file.write(b"seen")
        return answer

    from pyarrow.fs import FileSystem, FileType, LocalFileSystem

    place = root if "://" in root else os.path.abspath(root)
    files, base = FileSystem.from_uri(place) if "://" in place else (LocalFileSystem(), place)
    made = "://" not in place and not Path(base).exists()
    question, advice = f".question-{uuid.uuid4().hex}", "results must go where every node writes"
    left = [f"{base}/{question}"]
    try:
        if made:
            files.create_dir(base)
        with files.open_output_stream(left[0]) as file:
            file.write(b"seen?")
        for node, answer in on_every_node(answered, place, question):
            if isinstance(answer, Exception):
                raise InputError(
                    f"{advice}, but {node} does not see {root} as this machine does ({last_line(answer)}): "
                    "--out must be a folder that all nodes share, or a bucket (s3://…)"
                )
            left.append(f"{base}/{answer}")
            if files.get_file_info(left[-1]).type == FileType.NotFound:
                raise InputError(
                    f"{advice}, but what {node} wrote to {root} is not seen here: --out must be a folder that all "
                    "nodes share, or a bucket (s3://…)"
                )
    except OSError as error:
        raise InputError(f"{advice}, but this machine can't write to {root}: {error}") from None
    finally:
        for path in left:
            with contextlib.suppress(OSError):
                files.delete_file(path)
        if made:
            with contextlib.suppress(OSError):
                Path(base).rmdir()
