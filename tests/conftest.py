"""Shared by all tests."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mermaide_ray.agents import FAMILIES
from mermaide_ray.config_file import explained_yaml
from mermaide_ray.experiment import Experiment, load_preset, overlaid, validate

torch.set_num_threads(1)

# Moderate hyperparameters for each family: neither purely greedy nor purely random. A new family needs no line here:
# its value is then taken from its bounds.
MODERATE = {
    "ucb_coefficient": 0.3,
    "epsilon": 0.2,
    "epsilon_scale": 5.0,
    "noise_sd": 0.3,
    "temperature": 0.2,
    "step_size": 0.5,
    "exp3_gamma": 0.2,
    "spite": 0.2,
    "strike": 3.0,
    "discount": 0.9,
    "lapse": 0.1,
}


def moderate(family: str) -> dict[str, float]:
    """Hyperparameters of one agent of a family."""
    return {
        name: MODERATE.get(name, min(max(bounds.low, 0.5), bounds.high))
        for name, bounds in FAMILIES[family].hyperparameters.items()
    }


STOCK_FAMILIES = [name for name, family in FAMILIES.items() if family.hear is None]
"""Those that RLlib's own runner can play: principal and agent move at once there, by actions alone."""


def stock_families(**sections: Any) -> Experiment:
    """`all_families` without those that need the lockstep runner."""
    return all_families(STOCK_FAMILIES, **sections)


def of_mermaide(settings: Mapping[str, Any], where: str = "tests") -> Experiment:
    """The settings laid over preset mermaide, which plays every game."""
    return validate(overlaid(load_preset("mermaide"), settings), where)


def all_families(names: Iterable[str] = FAMILIES, /, **sections: Any) -> Experiment:
    """A small experiment whose mixture holds every registered family; `sections` are laid over it.

    Families whose arms are places only where the principal is shown places.
    """
    places = sections.get("environment", {}).get("arm_labels") == "absolute"
    mixture = {
        name: {"train": {key: [value, value] for key, value in moderate(name).items()}}
        for name in names
        if FAMILIES[name].goals is None or places
    }
    settings: dict[str, Any] = {
        "environment": {"num_arms": 4, "horizon": 15},
        "agents": {"families": mixture, "disjoint": []},
    }
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    return of_mermaide(settings)


def tiny(**sections: Any) -> Experiment:
    """An experiment whose meta-iterations take milliseconds; `sections` are laid over it."""
    settings: dict[str, Any] = {
        "environment": {"num_arms": 4, "horizon": 10},
        "meta_learning": {"meta_batch_size": 8, "query_episodes": 2},
        "world_model": {"hidden_size": 8, "policy_hidden": 8},
        "training": {"env_steps": 1920},
        "evaluation": {"tasks": 6, "episodes": 2, "validation_tasks": 4},
    }
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
    return of_mermaide(settings)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray on this machine for all tests that need it: it takes seconds to start."""
    import ray

    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Runs of sweeps that this process trains draw nothing: half of their time, where runs are tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mermaide_ray.sweep.run.MOST_RUNS_WITH_FIGURES", 0)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of `mermaide train` that this process trains draw nothing."""
    monkeypatch.setattr("mermaide_ray.training.write_figures", lambda run: [])


# A node that refuses five times in a row to be asked for its health is dead: found after 2.5 s, not Ray's 15. One that
# is only slow to answer has as long as ever.
FOUND_DEAD = {"health_check_period_ms": 500}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Several nodes on this machine: a head without work of its own; `add_node(num_cpus=…)` adds workers."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    store = {"object_store_memory": 80 * 2**20}
    # Ray's own port of a head's agent is the same for all clusters of a machine.
    about = {"include_dashboard": False, "dashboard_agent_listen_port": 0, "_system_config": FOUND_DEAD}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **about, **store})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    add_node = cluster.add_node
    monkeypatch.setattr(cluster, "add_node", lambda num_cpus: add_node(num_cpus=num_cpus, **store))
    yield cluster
    ray.shutdown()
    cluster.shutdown()


# What nobody may find in what a run leaves.
SECRET = "open-sesame-4711"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A real S3-speaking server on this machine, with an empty bucket; its URI."""
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    secrets = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    before = dict(os.environ)
    os.environ |= secrets
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1").create_bucket(Bucket="sweeps")
    yield f"s3://sweeps/mine?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    server.stop()
    for key in secrets:
        os.environ.pop(key)
    os.environ |= before


@dataclass(frozen=True)
class TrainedRun:
    """What `mermaide train` left, and what it printed."""

    path: Path
    experiment: Experiment
    printed: str


@pytest.fixture(scope="session")
def trained_run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A tiny run from beginning to end, a learned baseline beside it. Read it, don't change it."""
    from mermaide_ray.cli import main

    folder = tmp_path_factory.mktemp("trained")
    experiment = tiny(training={"env_steps": 24 * 240})
    config = folder / "tiny.yaml"
    config.write_text(explained_yaml(experiment), encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["train", "--config", str(config), "--out", str(folder / "run"), "--baseline", "rl2"])
    assert code == 0
    return TrainedRun(folder / "run", experiment, printed.getvalue())


@pytest.fixture
def small_experiment() -> Experiment:
    """Two families (the default ones), 4 arms, 15 pulls."""
    return of_mermaide({"environment": {"num_arms": 4, "horizon": 15}})
