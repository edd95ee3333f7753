"""What must hold before work starts on several nodes: room, versions, storage; and that nodes change no result."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny
from numpy.typing import NDArray
from rich.console import Console

import mermaide_ray
from mermaide_ray.cli import main
from mermaide_ray.cluster import agreement, resources
from mermaide_ray.cluster.join import ray_running
from mermaide_ray.cluster.nodes import Node
from mermaide_ray.cluster.resources import await_resources, fits
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.sweep.store import Store

HEAD = Node("head (10.0.0.1)", {"memory": 1e9})


def worker(cpus: float, gpus: float = 0) -> Node:
    return Node("worker (10.0.0.2)", {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus})


@pytest.mark.parametrize(
    ("needs", "on", "expected"),
    [
        ([], [], True),
        ([1, 1, 1], [2, 1], True),
        ([1, 1, 1, 1], [2, 1], False),
        ([3], [2, 2], False),  # one process can't be split over nodes
        ([1, 3, 1], [2, 3], True),  # the large one first, or it finds no room
        ([1], [], False),
    ],
)
def test_bundles_fit_where_each_finds_room_on_one_node(needs: list[int], on: list[int], expected: bool) -> None:
    assert fits([{"CPU": need} for need in needs], [HEAD, *map(worker, on)]) is expected


def test_gpus_are_room_of_their_own() -> None:
    assert fits([{"CPU": 1, "GPU": 1}, {"CPU": 1}], [worker(1), worker(1, gpus=1)])
    assert not fits([{"CPU": 1, "GPU": 1}], [worker(8)])
    # Who needs no GPU leaves the node that has one to who does.
    assert fits([{"CPU": 4}, {"CPU": 1, "GPU": 1}], [worker(4, gpus=1), worker(4)])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed, in a time where half a second passes at once."""
    now = [0.0]
    monkeypatch.setattr(resources.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(resources.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return io.StringIO()


def joining(monkeypatch: pytest.MonkeyPatch, stages: Sequence[list[Node]], most: list[Node] | None) -> list[Any]:
    """A cluster that grows by a stage each time it is looked at; returns what the autoscaler is asked for."""
    left, asked = list(stages), []
    monkeypatch.setattr(resources, "nodes", lambda: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(resources, "_most", lambda there, bundles: most)
    monkeypatch.setattr(resources, "_ask_autoscaler", lambda bundles: asked.append(len(bundles)))
    return asked


def test_run_waits_for_nodes_that_join(monkeypatch: pytest.MonkeyPatch, told: io.StringIO) -> None:
    joining(monkeypatch, [[HEAD]] * 40 + [[HEAD, worker(2)]] * 40 + [[HEAD, worker(2), worker(2)]], None)
    await_resources([{"CPU": 1}] * 3, Console(file=told, width=200), seconds=60)
    assert told.getvalue().splitlines() == [
        "waiting for 3 CPUs in 3 processes: 0 CPUs on 0 nodes so far, 1:00 left",
        "waiting for 3 CPUs in 3 processes: 0 CPUs on 0 nodes so far, 0:45 left",
        "waiting for 3 CPUs in 3 processes: 2 CPUs on 1 node so far, 0:30 left",
    ]


def test_run_gives_up_when_time_is_up(monkeypatch: pytest.MonkeyPatch, told: io.StringIO) -> None:
    joining(monkeypatch, [[HEAD, worker(2)]], None)
    monkeypatch.setenv("MERMAIDE_WAIT_SECONDS", "30")
    with pytest.raises(RunFault) as fault:
        await_resources([{"CPU": 1}] * 3, Console(file=told))
    assert str(fault.value) == (
        "the cluster must have room for 3 CPUs in 3 processes within 0:30 (MERMAIDE_WAIT_SECONDS), but it has 2 CPUs "
        "on 1 node: see `ray status` on the head"
    )
    monkeypatch.setenv("MERMAIDE_WAIT_SECONDS", "long")
    with pytest.raises(InputError, match="must be a number of seconds >= 0, got 'long'"):
        await_resources([{"CPU": 1}] * 3, Console(file=told))


def test_what_can_never_be_had_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, told: io.StringIO) -> None:
    asked = joining(monkeypatch, [[HEAD]], [HEAD, worker(16), worker(16)])
    with pytest.raises(InputError) as refused:
        await_resources([{"CPU": 1, "GPU": 1}, *[{"CPU": 1}] * 40], Console(file=told))
    assert (
        "must have room for 41 CPUs and 1 GPU in 41 processes at the same time, but it has 32 CPUs on 2 nodes"
        in str(refused.value)
    )
    assert (told.getvalue(), asked) == ("", [])
    with pytest.raises(InputError, match="this machine must have room for 1 CPU and 1 GPU in 1 process"):
        await_resources([{"CPU": 1, "GPU": 1}], Console(file=told), grows=False)


def test_machines_are_asked_for_while_the_run_waits(monkeypatch: pytest.MonkeyPatch, told: io.StringIO) -> None:
    asked = joining(monkeypatch, [[HEAD], [HEAD], [HEAD, worker(4)]], [HEAD, worker(16)])
    await_resources([{"CPU": 1}] * 3, Console(file=told))
    assert asked == [3, 0]


@pytest.mark.parametrize("ended", [RunFault, InputError, KeyboardInterrupt])
def test_machines_are_no_longer_asked_for_once_the_run_has_given_up(
    ended: type[BaseException], monkeypatch: pytest.MonkeyPatch, told: io.StringIO
) -> None:
    asked = joining(monkeypatch, [[HEAD]], [HEAD, worker(16)])
    if ended is InputError:  # the cluster's file, changed meanwhile
        most = [[HEAD, worker(16)], [HEAD, worker(2)]]
        monkeypatch.setattr(resources, "_most", lambda there, bundles: most.pop(0))
    if ended is KeyboardInterrupt:

        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(resources.time, "sleep", interrupt)
    with pytest.raises(ended):
        await_resources([{"CPU": 1}] * 3, Console(file=told), seconds=30)
    assert asked == [3, 0]


def test_ray_that_starts_too_slowly_is_to_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: Any) -> None:
        raise RuntimeError("The current node timed out during startup. This could happen so.\nOr so.")

    monkeypatch.setattr("ray.init", slow)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(RunFault) as fault, ray_running([], Console()):
        pass
    assert str(fault.value) == (
        "Ray must start, got: The current node timed out during startup. This could happen so (start it again, "
        "best when the machine is less busy)"
    )


class _Ray:
    """A cluster with this machine as its head, as far as `_most` looks."""

    @staticmethod
    def nodes() -> list[dict[str, Any]]:
        return [{"NodeID": "me", "Resources": {"node:__internal_head__": 1.0}}]

    @staticmethod
    def get_runtime_context() -> Any:
        return type("Context", (), {"get_node_id": staticmethod(lambda: "me")})


OF_TWO_KINDS = {
    "provider": {"type": "aws"},
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}},
        "gpu": {"max_workers": 2, "resources": {"CPU": 16, "GPU": 1}},
        "large": {"max_workers": 9, "resources": {"CPU": 64}},
    },
}


@pytest.mark.parametrize(
    ("made_by", "bundles", "expected"),
    [
        ({"provider": {"type": "local", "worker_ips": ["a", "b"]}}, [], None),  # one is still to come
        ({"provider": {"type": "local", "worker_ips": ["a"]}}, [], [0, 2]),
        # No more than three in all, of whatever kind.
        (OF_TWO_KINDS, [{"CPU": 64}] * 3, [0, 64, 64, 64]),
        (OF_TWO_KINDS, [{"CPU": 1}] * 200, [0, 64, 64, 64]),
        (OF_TWO_KINDS, [{"CPU": 1, "GPU": 1}, {"CPU": 64}, {"CPU": 64}], [0, 16, 64, 64]),
        (OF_TWO_KINDS, [{"CPU": 1, "GPU": 1}] * 3, [0, 16, 16, 64]),
    ],
)
def test_most_that_a_cluster_can_become_is_read_from_the_file_that_made_it(
    made_by: dict[str, Any],
    bundles: list[Any],
    expected: list[int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resources, "BOOTSTRAP", tmp_path / "bootstrap.yaml")
    monkeypatch.setattr(resources, "ray", _Ray)
    assert resources._most([HEAD, worker(2)], bundles) is None
    (tmp_path / "bootstrap.yaml").write_text(json.dumps(made_by))
    most = resources._most([HEAD, worker(2)], bundles)
    assert expected == (most if most is None else [node.resources.get("CPU", 0) for node in most])


def test_what_only_more_machines_than_there_may_be_would_hold_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: io.StringIO
) -> None:
    monkeypatch.setattr(resources, "BOOTSTRAP", tmp_path / "bootstrap.yaml")
    (tmp_path / "bootstrap.yaml").write_text(json.dumps(OF_TWO_KINDS))
    monkeypatch.setattr(resources, "ray", _Ray)
    monkeypatch.setattr(resources, "nodes", lambda: [HEAD])
    with pytest.raises(InputError, match="but it has 96 CPUs and 2 GPUs on 3 nodes at most"):
        await_resources([{"CPU": 1, "GPU": 1}] * 2 + [{"CPU": 64}] * 2, Console(file=told))
    assert told.getvalue() == ""


def test_so_many_kinds_of_machines_that_not_all_mixes_are_tried_refuse_nothing_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {f"of_{n}": {"max_workers": 50, "resources": {"CPU": n}} for n in range(1, 9)}
    made_by = {"provider": {"type": "aws"}, "max_workers": 50, "available_node_types": kinds}
    monkeypatch.setattr(resources, "BOOTSTRAP", tmp_path / "bootstrap.yaml")
    (tmp_path / "bootstrap.yaml").write_text(json.dumps(made_by))
    monkeypatch.setattr(resources, "ray", _Ray)
    bundles = [{"CPU": n} for n in range(1, 9)] * 5
    most = resources._most([HEAD], bundles)
    assert most is not None
    assert resources.fits(bundles, most)


def test_nodes_whose_torch_cannot_use_their_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [worker(4), Node("b (2)", {"CPU": 4, "GPU": 1})]
    can = {there[0].name: False, "b (2)": True}
    monkeypatch.setattr(agreement, "nodes", lambda: there)
    monkeypatch.setattr(agreement, "on_every_node", lambda question: list(can.items()))
    agreement.check_gpus()
    can["b (2)"] = False
    with pytest.raises(RunFault, match=r"every node with a GPU must have PyTorch with CUDA, but b \(2\) has not"):
        agreement.check_gpus()


def test_other_code_on_a_node_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(question: Any) -> list[tuple[str, Any]]:
        here = question()
        return [("a (1)", here), ("b (2)", {**here, **changed})]

    monkeypatch.setattr(agreement, "on_every_node", elsewhere)
    changed: dict[str, str] = {}
    agreement.check_versions()
    changed["torch"] = "1.0"
    with pytest.raises(RunFault, match=r"must run the torch of this process, \d\S+, but b \(2\) has 1\.0"):
        agreement.check_versions()
    changed = {"mermaide_ray": "0.1.0 (sources 00000000)"}
    with pytest.raises(
        RunFault, match=r"the mermaide_ray of this process, 0\.1\.0 \(sources \w{12}\), but b \(2\) has 0"
    ):
        agreement.check_versions()
    monkeypatch.setattr(
        agreement, "on_every_node", lambda question: [("c (3)", ImportError("Frames\nNo module named x"))]
    )
    with pytest.raises(RunFault, match=r"but c \(3\) has not: No module named x"):
        agreement.check_versions()


def test_other_presets_on_a_node_are_other_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    preset = tmp_path / "presets" / "maml.yaml"
    preset.parent.mkdir()
    preset.write_text("name: maml\n")
    monkeypatch.setattr(mermaide_ray, "__file__", str(tmp_path / "__init__.py"))

    def elsewhere(question: Any) -> list[tuple[str, Any]]:
        preset.write_text("name: other\n")
        return [("b (2)", question())]

    monkeypatch.setattr(agreement, "on_every_node", elsewhere)
    with pytest.raises(RunFault, match=r"must run the mermaide_ray of this process, \S+ \(sources \w{12}\), but b"):
        agreement.check_versions()


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes that see what this machine sees, and answer as actors do: with what went wrong, if anything."""

    def answer(question: Any, *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except Exception as error:
            return error

    monkeypatch.setattr(agreement, "nodes", lambda: [HEAD, worker(2)])
    monkeypatch.setattr(
        agreement,
        "on_every_node",
        lambda question, *arguments: [(node.name, answer(question, *arguments)) for node in (HEAD, worker(2))],
    )


def test_bucket_that_all_nodes_write_to_is_accepted_and_left_as_it_was(two_nodes: None, bucket: str) -> None:
    agreement.check_storage(bucket)
    assert Store(bucket).names("") == []


def test_bucket_that_cannot_be_written_is_refused_in_one_sentence(two_nodes: None, bucket: str) -> None:
    missing = bucket.replace("s3://sweeps/", "s3://nobodys/")
    with pytest.raises(InputError) as refused:
        agreement.check_storage(missing)
    message = str(refused.value)
    assert message.startswith("results must go where every node writes, but this machine can't write to s3://nobodys/m")
    assert "The specified bucket does not exist" in message
    assert "\n" not in message


def test_bucket_that_one_node_cannot_write_to_is_refused(
    two_nodes: None, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine has no role that may, say."""
    denied = OSError("When initiating multiple part upload: AWS Error ACCESS_DENIED")
    monkeypatch.setattr(agreement, "on_every_node", lambda *asked: [("worker (10.0.0.2)", denied)])
    with pytest.raises(
        InputError, match=r"but worker \(10\.0\.0\.2\) does not see s3://sweeps/mine\S* as this machine"
    ) as no:
        agreement.check_storage(bucket)
    assert "ACCESS_DENIED" in str(no.value)
    assert Store(bucket).names("") == []


def test_sweep_into_such_a_bucket_starts_nothing(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    config = tmp_path / "sweep.yaml"
    config.write_text("question: Where to?\nsearch: {environment.num_arms: {grid: [3, 4]}}\nseeds: 1\n")
    missing = bucket.replace("s3://sweeps/", "s3://nobodys/")
    assert main(["sweep", str(config), "--out", missing]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mermaide: error: the sweep's storage must be writable, but s3://nobodys/mine/prov")
    assert error.count("\n") == 1


# Several nodes of one machine. ---------------------------------------------------------------------------------------


def weights_after(iterations: int, runners: int) -> dict[str, NDArray[Any]]:
    from mermaide_ray.algorithm import MermaideConfig

    algorithm = MermaideConfig.of(tiny(env_runners={"num_env_runners": runners})).build_algo()
    try:
        for _ in range(iterations):
            algorithm.train()
        return algorithm.principal().arrays()
    finally:
        algorithm.stop()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.cluster
def test_one_two_or_three_nodes_learn_the_same_weights(cluster: Any, tmp_path: Path) -> None:
    import ray

    learned: list[dict[str, NDArray[Any]]] = []
    placed: list[int] = []
    for count in (1, 2, 3):
        cluster.add_node(num_cpus=1)
        with ray_running([{"CPU": 1}] * count, Console(file=io.StringIO()), storage=str(tmp_path / "shared")):
            learned.append(weights_after(4, runners=count))
            placed.append(sum(bool(node["Resources"].get("CPU")) for node in ray.nodes() if node["Alive"]))
    assert placed == [1, 2, 3]
    assert not list(tmp_path.iterdir())  # the probes of the storage are gone
    for name, value in learned[0].items():
        for other in learned[1:]:
            np.testing.assert_allclose(other[name], value, rtol=0, atol=1e-5, err_msg=name)
