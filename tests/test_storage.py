"""What a run leaves on disk: whole or not at all, and never over another run's."""

from __future__ import annotations

import errno
import grp
import itertools
import json
import os
import pwd
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import of_mermaide, tiny

from mermaide_ray import disk, storage
from mermaide_ray.disk import one_process, whole_file, whole_folder
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.provenance import refuse_secrets, versions
from mermaide_ray.storage import CHECKPOINT_FORMAT, RunDirectory, clear, first_change, load_principal, save_principal
from mermaide_ray.training import contender_from, export


class StopError(Exception):
    """What goes wrong in these tests."""


def _all_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _interrupted(writing: AbstractContextManager[Path]) -> None:
    """Writes half of what it would, to a file or a folder, and goes wrong."""
    with writing as target:
        half = target / "half" if target.is_dir() else target
        half.write_text("hal")
        raise StopError


@contextmanager
def _no_room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writing fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_whole_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with whole_file(target) as file:
        file.write_text("first")
        assert not target.exists()
    assert target.read_text() == "first"
    with pytest.raises(StopError):
        _interrupted(whole_file(target))
    assert target.read_text() == "first"
    assert _all_below(tmp_path) == ["new", "new/file.txt"]


def test_whole_file_leaves_nothing_where_the_first_attempt_fails(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        _interrupted(whole_file(tmp_path / "file.txt"))
    assert _all_below(tmp_path) == []


def test_whole_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with pytest.raises(StopError):
        _interrupted(whole_folder(target))
    assert _all_below(tmp_path) == ["new"]
    with whole_folder(target) as folder:
        (folder / "one").write_text("x")
        assert not target.exists()
    assert _all_below(target) == ["one"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_whole_folder_replaces_an_older_one_whole_or_keeps_it(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with whole_folder(target) as folder:
        (folder / "one").write_text("x")
    with pytest.raises(StopError):
        _interrupted(whole_folder(target))
    assert _all_below(tmp_path) == ["folder", "folder/one"]
    with whole_folder(target) as folder:
        (folder / "two").write_text("x")
    assert _all_below(tmp_path) == ["folder", "folder/two"]


def _principal(seed: int = 0) -> PrincipalModule:
    return PrincipalModule(model_config={"experiment": tiny(seed=seed).to_dict()})


def test_principal_survives_a_round_trip(tmp_path: Path) -> None:
    arrays = _principal().arrays()
    save_principal(tmp_path / "principal", tiny(), arrays)
    for where in (tmp_path, tmp_path / "principal"):
        experiment, loaded = load_principal(where)
        assert experiment == tiny()
        assert loaded.keys() == arrays.keys()
        for name, value in arrays.items():
            assert loaded[name].shape == value.shape, name
            assert np.array_equal(loaded[name], value), name


def test_full_disk_leaves_the_older_principal_and_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "principal"
    save_principal(target, tiny(), _principal(0).arrays())
    before = _all_below(tmp_path)
    with pytest.raises(OSError, match="File too large"), _no_room(1000):
        save_principal(target, tiny(), _principal(1).arrays())
    assert _all_below(tmp_path) == before
    assert np.array_equal(load_principal(target)[1]["core_input"], _principal(0).arrays()["core_input"])


def test_full_disk_leaves_the_older_checkpoint_and_nothing_half_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.save_checkpoint(1, lambda folder: None)
    before = _all_below(tmp_path)

    def too_much(folder: Path) -> None:
        (folder / "small").write_bytes(b"x")
        (folder / "large").write_bytes(b"x" * 5000)

    with pytest.raises(OSError, match="File too large"), _no_room(1000):
        run.save_checkpoint(2, too_much)
    assert _all_below(tmp_path) == before
    latest = run.latest_checkpoint()
    assert latest is not None
    assert run.check_checkpoint(latest) == 1


def test_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.latest_checkpoint() is None
    (run.checkpoints / "iteration_000001.bak").mkdir(parents=True)  # somebody's own
    for iteration in (9, 10, 999_999, 1_000_000):
        run.save_checkpoint(iteration, lambda folder: None)
        assert run.latest_checkpoint() == run.checkpoints / f"iteration_{iteration:06d}"
    assert _all_below(run.checkpoints) == [
        "iteration_000001.bak",
        "iteration_1000000",
        "iteration_1000000/meta.json",
        "iteration_999999",
        "iteration_999999/meta.json",
    ]


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (None, "a checkpoint must hold meta.json, got"),
        ('{"format": 1, "itera', "a checkpoint must hold a complete meta.json, got a broken one in"),
        ("[]", "a checkpoint must hold an object in meta.json, got list in"),
        (json.dumps({"format": CHECKPOINT_FORMAT + 1}), f"must have format {CHECKPOINT_FORMAT}, got"),
        (
            json.dumps({"format": CHECKPOINT_FORMAT, "iteration": 1, "versions": {"ray": "1.0"}}),
            f"must be resumed with the ray that wrote it (1.0), got {versions()['ray']}",
        ),
        (
            json.dumps({"format": CHECKPOINT_FORMAT, "versions": {**versions(), "mermaide_ray": "0.0.1"}}),
            f"with the mermaide_ray that wrote it (0.0.1), got {versions()['mermaide_ray']}",
        ),
    ],
)
def test_checkpoint_that_this_version_cannot_read_is_refused(tmp_path: Path, meta: str | None, expected: str) -> None:
    if meta is not None:
        (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(InputError) as refused:
        RunDirectory(tmp_path).check_checkpoint(tmp_path)
    assert expected in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_run_never_overwrites_another(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny())
    before = {path: (tmp_path / path).read_bytes() for path in _all_below(tmp_path) if (tmp_path / path).is_file()}
    (tmp_path / "file").write_text("")
    for taken in (run.path, tmp_path / "file"):
        with pytest.raises(InputError, match="--out must be a new or empty folder, got"):
            RunDirectory.create(taken, tiny(seed=1))
    assert {path: (tmp_path / path).read_bytes() for path in before} == before
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path / "empty", tiny()).config.is_file()


def test_a_folder_given_to_two_at_the_same_moment_is_the_first_one_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, looked = tmp_path / "run", storage.refuse_used
    monkeypatch.setattr(storage, "refuse_used", lambda out: None)  # both have looked, and found nothing
    folder.mkdir()
    with storage.one_process(folder), pytest.raises(InputError, match="one process at a time, and one does already"):
        RunDirectory.create(folder, tiny(seed=1))
    assert not (folder / "config.yaml").exists()

    def first(out: Path) -> None:
        """Before the second takes its turn, the first has had its own."""
        monkeypatch.setattr(storage, "refuse_used", looked)
        RunDirectory.create(out, tiny())

    monkeypatch.setattr(storage, "refuse_used", first)
    with pytest.raises(InputError, match="--out must be a new or empty folder"):
        RunDirectory.create(folder, tiny(seed=1))
    assert RunDirectory.open(folder).experiment().seed == 0


def test_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    run, same = RunDirectory.create(tmp_path, tiny()), RunDirectory.open(tmp_path)
    with (
        run.alone(),
        pytest.raises(InputError, match=f"{tmp_path} must be worked in by one process at a time"),
        same.alone(),
    ):
        pass
    with same.alone():  # the first has let go
        pass


def test_a_run_that_is_emptied_is_still_one_process_s(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny())
    with run.alone():
        clear(run.path)
        with pytest.raises(InputError, match="one does already"), run.alone():
            pass
    assert RunDirectory.create(run.path, tiny()).config.is_file()


def test_a_lock_that_is_awaited_is_taken_when_it_is_free(tmp_path: Path) -> None:
    taken = threading.Event()

    def take() -> None:
        with one_process(tmp_path, wait=True):
            taken.set()

    waiting = threading.Thread(target=take)
    with one_process(tmp_path):
        waiting.start()
        assert not taken.wait(0.2)
    waiting.join(10)
    assert taken.is_set()


def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*given: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unknown)
    with (
        pytest.raises(RunFault, match=r"must be on a file system that can lock files \(Function not implemented\)"),
        one_process(tmp_path),
    ):
        pass


@pytest.mark.parametrize("written", range(4))
def test_a_run_that_is_killed_while_it_is_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    replace, left = Path.replace, itertools.count(written, -1)

    def killed(path: Path, target: Path) -> Path:
        if not next(left):
            raise StopError
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(StopError):
        RunDirectory.create(tmp_path / "run", tiny(), beside={"rl2": tiny()})
    monkeypatch.undo()
    (tmp_path / "run" / ".config.yaml.x").touch()
    run = RunDirectory.create(tmp_path / "run", tiny(), beside={"maml": tiny()})
    assert [path.name for path in run.baselines.iterdir()] == ["maml"]
    assert {"config.yaml", "provenance.json"} <= {path.name for path in run.path.iterdir()}


@pytest.mark.parametrize("name", ["baselines/rl2/config.yaml", "baselines/rl2/progress.jsonl"])
def test_what_is_not_the_beginning_of_a_run_is_left_alone(tmp_path: Path, name: str) -> None:
    """Baselines of another's making, or trained ones whose run has lost its config."""
    with whole_file(tmp_path / name) as file:
        file.touch()
    if "progress" in name:
        (tmp_path / "provenance.json").touch()
    with pytest.raises(InputError, match="must be a new or empty folder"):
        RunDirectory.create(tmp_path, tiny())
    assert (tmp_path / name).is_file()


def test_nothing_gets_its_name_before_the_disk_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (held.append(os.fstat(handle).st_ino), fsync(handle)))

    def renamed(path: Path, target: Path) -> Path:
        assert {each.stat().st_ino for each in (path, *path.rglob("*")) if each.is_file()} <= set(held)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", renamed)
    run = RunDirectory.create(tmp_path / "run", tiny())
    run.tell({"iteration": 1})
    run.save_checkpoint(1, lambda folder: (folder / "state").touch())
    assert run.progress.stat().st_ino in held


def test_unfinished_run_has_no_principal_and_names_its_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, tiny())
    checkpoint = run.save_checkpoint(
        3, lambda folder: save_principal(folder / "principal", tiny(), _principal().arrays())
    )
    with pytest.raises(InputError, match=f"must be finished to be loaded, {tmp_path} is not: .* give {checkpoint}"):
        load_principal(tmp_path)
    assert load_principal(checkpoint)[0] == tiny()


def test_a_principal_from_before_the_model_of_learners_has_none(tmp_path: Path) -> None:
    save_principal(tmp_path / "principal", tiny(), _principal().arrays())
    about = json.loads((tmp_path / "principal/principal.json").read_text())
    del about["experiment"]["world_model"]["kind"], about["experiment"]["evaluation"]["planning"]
    (tmp_path / "principal/principal.json").write_text(json.dumps(about))
    assert load_principal(tmp_path / "principal")[0] == tiny()


def test_an_export_tells_where_its_principal_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, trained = _principal().arrays(), versions()
    run = RunDirectory.create(tmp_path / "run", tiny())
    save_principal(run.principal, tiny(), arrays)
    checkpoint = run.save_checkpoint(3, lambda folder: save_principal(folder / "principal", tiny(), arrays))
    origin = json.loads((run.path / "provenance.json").read_text())
    monkeypatch.setattr(storage, "versions", lambda: {"ray": "that of whoever exports it"})
    sources = [run.path, run.principal, checkpoint, checkpoint / "principal", tmp_path / "export0"]
    for place, source in enumerate(sources):
        export(source, tmp_path / f"export{place}")
        about = json.loads((tmp_path / f"export{place}" / "principal.json").read_text())
        assert (about["versions"], about["provenance"]) == (trained, origin)
        experiment, loaded = load_principal(tmp_path / f"export{place}")
        assert experiment == tiny()
        assert all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
    # One whose run is not known, as exports were before: it says no more than it knows.
    shutil.copytree(run.principal, tmp_path / "alone")
    export(tmp_path / "alone", tmp_path / "again")
    about = json.loads((tmp_path / "again" / "principal.json").read_text())
    assert about.keys() == {"format", "versions", "experiment"}
    assert about["versions"] == trained


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_principal_that_is_not_finite_is_not_scored(tmp_path: Path, value: float) -> None:
    arrays = _principal().arrays()
    name = max(arrays, key=lambda name: arrays[name].ndim)
    save_principal(tmp_path / "mine", tiny(), arrays)
    assert contender_from(tmp_path / "mine")[1] == tiny()
    arrays[name] = np.array(arrays[name])
    arrays[name].flat[-1] = value
    save_principal(tmp_path / "mine", tiny(), arrays)
    with pytest.raises(InputError) as refused:
        contender_from(tmp_path / "mine")
    expected = f"a principal's arrays must be finite, got NaN or infinity in {name} ({tmp_path / 'mine'})"
    assert str(refused.value) == expected


def test_runs_settings_and_origin_are_kept(tmp_path: Path) -> None:
    experiment = tiny(seed=3, environment={"delta": 0.5})
    run = RunDirectory.create(tmp_path / "run", experiment)
    assert RunDirectory.open(run.path).experiment() == experiment
    assert yaml.safe_load(run.config.read_text()) == experiment.to_dict()
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert provenance["versions"] == versions()
    assert {"commit", "command", "started", "machine"} <= provenance.keys()
    with pytest.raises(InputError, match=r"must hold config\.yaml"):
        RunDirectory.open(tmp_path)


def test_going_on_with_other_code_is_put_on_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny())
    file = run.path / "provenance.json"
    begun = json.loads(file.read_text())
    run.note_other_code()
    assert json.loads(file.read_text()) == begun
    monkeypatch.setattr("mermaide_ray.provenance.sources_digest", lambda: "other")
    for _ in range(2):
        run.note_other_code()
    record = json.loads(file.read_text())
    assert [one["sources"] for one in record.pop("continued")] == ["other"]
    assert record == begun


def test_progress_after_the_checkpoint_is_forgotten_and_half_a_line_ignored(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_progress() == []
    for iteration in (1, 2, 3):
        run.tell({"iteration": iteration, "principal/return": 0.5})
    with run.progress.open("a") as file:
        file.write('{"iteration": 4, "princ')
    assert [told["iteration"] for told in run.read_progress()] == [1, 2, 3]
    run.rewind_progress(2)
    run.tell({"iteration": 3})
    assert [told["iteration"] for told in run.read_progress()] == [1, 2, 3]
    assert _all_below(tmp_path) == ["progress.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("principal.json", None, "a run, a checkpoint or an export must hold principal.json, got"),
        ("principal.json", b'{"format": 1', "must hold a complete principal.json, got a broken one"),
        ("principal.json", b'{"format": 99}', "a principal must have format 1, got 99"),
        ("principal.safetensors", None, "must be a complete safetensors file"),
        ("principal.safetensors", b"\x80\x04", "must be a complete safetensors file"),
    ],
)
def test_broken_principal_is_refused(tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    save_principal(tmp_path, tiny(), _principal().arrays())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_principal(tmp_path)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_broken_progress_is_one_sentence(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny())
    run.progress.write_text('{"iteration": 1}\n{"itera\n{"iteration": 3}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"is damaged \(line 2 is no JSON object: .*\): delete that line"):
        run.read_progress()


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", tiny())
    whole = run.save_checkpoint(3, lambda folder: None)
    (run.checkpoints / ".iteration_000004.x").mkdir()
    with run.alone():
        assert list(run.checkpoints.iterdir()) == [whole]


def _checkpoint(run: RunDirectory) -> Path:
    def write(folder: Path) -> None:
        (folder / "rllib").mkdir()
        (folder / "rllib" / "state.pkl").write_text("x")

    return run.save_checkpoint(1, write)


def _linked(checkpoint: Path, elsewhere: Path) -> str:
    (elsewhere / "evil.pkl").write_text("x")
    (checkpoint / "rllib" / "state.pkl").unlink()
    (checkpoint / "rllib" / "state.pkl").symlink_to(elsewhere / "evil.pkl")
    return f"leads to {elsewhere / 'evil.pkl'}"


def _linked_whole(checkpoint: Path, elsewhere: Path) -> str:
    checkpoint.rename(elsewhere / "theirs")
    checkpoint.symlink_to(elsewhere / "theirs")
    return f"{checkpoint} leads to {elsewhere / 'theirs'}"


def _open_to_all(checkpoint: Path, elsewhere: Path) -> str:
    (checkpoint / "rllib").chmod(0o777)
    return f"everybody may write to {checkpoint / 'rllib'}"


def _open_to_a_group(checkpoint: Path, elsewhere: Path) -> str:
    (checkpoint / "rllib" / "state.pkl").chmod(0o664)
    return f"group lab may write to {checkpoint / 'rllib' / 'state.pkl'}"


def _of_another_user(checkpoint: Path, elsewhere: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(checkpoint / "rllib" / "state.pkl", 12345, -1)
    return "belongs to user 12345"


@pytest.mark.parametrize("spoil", [_linked, _linked_whole, _open_to_all, _open_to_a_group, _of_another_user])
def test_checkpoint_that_others_may_have_written_needs_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, Path], str]
) -> None:
    """It is a pickle: whoever wrote it runs code in the process that loads it."""
    monkeypatch.setattr(disk, "_shared_group", lambda number: "lab")
    run, elsewhere = RunDirectory.create(tmp_path / "run", tiny()), tmp_path / "elsewhere"
    elsewhere.mkdir()
    checkpoint = _checkpoint(run)
    assert run.check_checkpoint(checkpoint) == 1
    expected = spoil(checkpoint, elsewhere)
    with pytest.raises(InputError) as refused:
        run.check_checkpoint(checkpoint)
    assert expected in str(refused.value)
    assert "(--trust-checkpoint loads it all the same)" in str(refused.value)
    assert RunDirectory.open(run.path, trusted=True).check_checkpoint(checkpoint) == 1


ME, BOB = 1000, 1001


@pytest.mark.parametrize(
    ("group", "members", "accounts", "shared"),
    [
        # (name, number, number of the first group) of each account that the machine lists
        ("ann", [], [("ann", ME, 1000), ("bob", BOB, 1001)], False),  # a group of one's own, with umask 002
        ("ann", ["ann", "root"], [("ann", ME, 1000)], False),
        ("ann", [], [], False),  # the directory lists no accounts, but the name says whose it is
        ("ann", ["bob"], [("ann", ME, 1000), ("bob", BOB, 1001)], True),
        ("users", [], [("ann", ME, 1000)], False),  # a container: nobody else is in it
        ("users", [], [("ann", ME, 1000), ("root", 0, 1000)], False),
        ("lab", ["ann"], [("ann", ME, 7), ("bob", BOB, 1001)], False),
        ("lab", ["ann", "bob"], [("ann", ME, 7), ("bob", BOB, 1001)], True),
        ("lab", [], [("ann", ME, 1000), ("bob", BOB, 1000)], True),  # the first group of both, which lists neither
        ("lab", [], [("bob", BOB, 1001)], True),  # the directory lists no accounts: nobody knows
        (None, [], [], False),  # a container that runs as a user of its host: number for number
        (None, [], [("ann", ME, 1000)], False),
    ],
)
def test_a_group_that_holds_nobody_else_is_as_good_as_one_s_own(
    monkeypatch: pytest.MonkeyPatch,
    group: str | None,
    members: list[str],
    accounts: list[tuple[str, int, int]],
    shared: bool,
) -> None:
    def group_of(number: int) -> grp.struct_group:
        if group is None:
            raise KeyError
        return grp.struct_group((group, "x", number, members))

    listed = [pwd.struct_passwd((name, "x", user, first, "", "", "")) for name, user, first in accounts]
    monkeypatch.setattr(disk.os, "geteuid", lambda: ME)
    monkeypatch.setattr(disk.grp, "getgrgid", group_of)
    monkeypatch.setattr(disk.pwd, "getpwall", lambda: listed)
    monkeypatch.setattr(disk.pwd, "getpwuid", lambda user: pwd.struct_passwd(("ann", "x", user, 1000, "", "", "")))
    disk._shared_group.cache_clear()
    try:
        assert disk._shared_group(1000) == ((group or "1000") if shared else None)
        if group is None:
            assert disk._shared_group(7) == "7"  # a number that tells nothing
    finally:
        disk._shared_group.cache_clear()


def test_a_checkpoint_is_written_for_its_owner_alone_to_change(tmp_path: Path) -> None:
    """Under a umask with which a lab shares its files."""
    run, before = RunDirectory.create(tmp_path / "run", tiny()), os.umask(0o002)
    try:
        checkpoint = _checkpoint(run)
    finally:
        os.umask(before)
    for path in (checkpoint, *checkpoint.rglob("*")):
        assert not path.stat().st_mode & 0o022, path
        assert path.stat().st_mode & 0o044 == 0o044, path


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("--out=s3://KEY:SECRET@bucket/x?secret_key=SECRET&region=y", "--out=s3://bucket/x"),
        ("https://ann:SECRET@host/x and gs://bucket/y", "https://host/x and gs://bucket/y"),
        ("abfs://container@account.net/y", "abfs://container@account.net/y"),
        ("runs/mine@home?x", "runs/mine@home?x"),
        ("http://host:8080?x=a@b", "http://host:8080"),
    ],
)
def test_provenance_holds_no_credentials(
    given: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mermaide", given])
    run = RunDirectory.create(tmp_path / "run", tiny())
    assert json.loads((run.path / "provenance.json").read_text())["command"] == ["mermaide", kept]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:SECRET@bucket/x",
        "s3://KEY:SEC/RET/SECRET@bucket/x",
        "s3://bucket/x?secret_key=SECRET",
        "abfs://x?sas_token=S",
    ],
)
def test_place_with_a_secret_in_it_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(InputError, match="must hold no secret") as refused:
        refuse_secrets(uri)
    assert "SECRET" not in str(refused.value)
    refuse_secrets("s3://bucket/x?endpoint_override=host:9000&scheme=http&region=us-east-1")
    refuse_secrets("abfs://container@account.dfs.core.windows.net/x")
    refuse_secrets("hdfs://host:8020/home/me@work")


def test_a_run_from_before_models_of_learners_is_read_as_it_was(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", of_mermaide({}))
    settings = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    del settings["world_model"]["kind"], settings["evaluation"]["planning"]
    run.config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert run.experiment() == of_mermaide({})


@pytest.mark.parametrize(
    ("sections", "changed"),
    [
        ({}, None),
        ({"env_runners": {"num_env_runners": 3}}, None),
        ({"evaluation": {"rehearsals": 7}}, None),  # of a run that does not plan
        ({"training": {"gamma": 0.5}}, "training.gamma"),
        ({"agents": {"population": {"train": 3}}}, "agents.population.train"),
        ({"seed": 1}, "seed"),
    ],
)
def test_what_may_not_change_in_a_run_is_what_it_does(sections: dict[str, Any], changed: str | None) -> None:
    assert first_change(tiny(), tiny(**sections)) == first_change(tiny(**sections), tiny()) == changed
