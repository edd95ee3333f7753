"""Stock RLlib PPO trains a principal on our environment, with nothing of ours in its way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import tree
from conftest import stock_families
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from safetensors.numpy import save

from mermaide_ray.baselines import stock_run
from mermaide_ray.baselines.stock_ppo import Network, stock_module, stock_ppo
from mermaide_ray.baselines.stock_run import StockPrincipal, train_stock
from mermaide_ray.cli import main
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.evaluation import Evaluation
from mermaide_ray.lockstep import deal_for, play
from mermaide_ray.models.categorical import choose
from mermaide_ray.report.sources import curves_of, read_source
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.storage import STOCK_MODULE, RunDirectory
from mermaide_ray.view import View


class ScoredError(Exception):
    """Training is over."""


pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize("network", get_args(Network))
def test_one_iteration_trains_the_principal_and_nothing_else(network: Network) -> None:
    experiment = stock_families(world_model={"policy_hidden": 8})
    algorithm = stock_ppo(experiment, network, envs_per_runner=4, episodes_per_iteration=16).build_algo()
    try:
        before = algorithm.get_module(PRINCIPAL).get_state()
        result = algorithm.train()
        after = algorithm.get_module(PRINCIPAL).get_state()
    finally:
        algorithm.stop()

    learned = result["learners"]
    assert [module for module in learned if "policy_loss" in learned[module]] == [PRINCIPAL]
    for key in ("policy_loss", "vf_loss", "entropy", "gradients_default_optimizer_global_norm"):
        assert math.isfinite(learned[PRINCIPAL][key])
    assert learned[PRINCIPAL]["gradients_default_optimizer_global_norm"] > 0
    returned = result["env_runners"]["agent_episode_returns_mean"][PRINCIPAL]
    # At worst every intervention is paid for and misses, at best none is needed.
    assert -0.3 * 15 <= returned <= 15
    assert result["env_runners"]["num_env_steps_sampled"] >= 16 * 15
    assert any(not torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name])) for name in before)
    assert all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in after.values())


@pytest.mark.parametrize(
    ("network", "environment"), [("mlp", {}), ("lstm", {}), ("mlp", {"changes": {"target_moves": 3}})]
)
def test_the_player_of_the_lockstep_game_is_the_trained_module(network: Network, environment: dict[str, Any]) -> None:
    """Step by step with the state handed on, it does what the module does on whole episodes at once."""
    experiment = stock_families(environment=environment, world_model={"policy_hidden": 8})
    algorithm = stock_ppo(experiment, network, envs_per_runner=4, episodes_per_iteration=16).build_algo()
    try:
        module = algorithm.get_module(PRINCIPAL)
    finally:
        algorithm.stop()
    evaluation = Evaluation(experiment, "test", num_tasks=5, episodes=3)
    view = View(experiment.environment)
    player = StockPrincipal(module, view)
    dice = deal_for(experiment.environment, evaluation.key, evaluation.tasks, 3)
    played = play(experiment.environment, evaluation.tasks, 3, dice, player)
    history = view.history(played)
    # [B, T, E, D] -> [N, T, D].
    observations = history.observations.transpose(1, 2).flatten(0, 1)
    batch = {Columns.OBS: observations}
    if module.is_stateful():
        batch[Columns.STATE_IN] = tree.map_structure(
            lambda value: torch.as_tensor(value).expand(15, *value.shape), module.get_initial_state()
        )
    with torch.no_grad():
        logits = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    expected = choose(logits, dice.principal[: logits.shape[1]].T)
    assert torch.equal(expected, history.actions.transpose(1, 2).flatten(0, 1))
    assert 0 < float((expected > 0).float().mean()) < 1


def test_actors_are_waited_for_and_an_iteration_without_episodes_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLlib's own limit of a minute is a moment here; where it holds, RLlib would train on nothing, for ever."""
    sections: dict[str, Any] = {"env_runners": {"num_env_runners": 1}, "training": {"env_steps": 1000}}
    experiment = stock_families(world_model={"policy_hidden": 8}, **sections)

    def impatient(config: PPOConfig) -> PPOConfig:
        return config.env_runners(sample_timeout_s=1e-6)

    def scored(*given: Any) -> None:
        raise ScoredError

    monkeypatch.setattr("mermaide_ray.baselines.stock_run._score", scored)
    monkeypatch.setattr("mermaide_ray.baselines.stock_ppo.PPOConfig", lambda: impatient(PPOConfig()))
    with pytest.raises(ScoredError):
        train_stock(experiment, "mlp", tmp_path / "waits")
    told = json.loads((tmp_path / "waits" / "progress.jsonl").read_text().splitlines()[-1])
    assert told["throughput/env_steps"] >= 1000
    monkeypatch.setattr("mermaide_ray.baselines.stock_run.stock_ppo", lambda *given: impatient(stock_ppo(*given)))
    with pytest.raises(RunFault, match="must bring episodes, but iteration 1 brought none: all sampling actors have"):
        train_stock(experiment, "mlp", tmp_path / "does not")


def test_a_run_leaves_rows_and_progress_that_a_report_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = stock_families(world_model={"policy_hidden": 8}, training={"env_steps": 1000}).model_copy(
        update={"seed": 3}
    )
    train_stock(experiment, "lstm", tmp_path / "stock")
    source = read_source(tmp_path / "stock")
    mine = source.rows[source.rows["method"] == "stock_ppo_lstm"]
    assert set(mine["seed"]) == {3}
    assert set(mine["k"]) == {0}
    assert set(mine["condition"]) == {"validation", "test"}
    assert mine["return"].notna().all()
    [frame] = curves_of(source, ("principal/return",))["stock_ppo_lstm"]
    assert frame["throughput/env_steps"].iloc[-1] >= 1000
    # There is nothing of ours to go on with, and another run would write over it.
    assert main(["train", "--resume", str(tmp_path / "stock")]) == 2
    assert "must be one of `mermaide train` to be gone on with" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--out must be a new or empty folder, got [^ ]*$"):
        train_stock(experiment, "lstm", tmp_path / "stock")


def test_a_run_that_is_broken_off_while_it_is_scored_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = stock_families(world_model={"policy_hidden": 8}, training={"env_steps": 1000})
    out, trained, keep = tmp_path / "stock", [], stock_run._keep

    def keeps(run: RunDirectory, module: RLModule) -> None:
        trained.append({name: value.copy() for name, value in module.get_state(inference_only=True).items()})
        keep(run, module)

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stock_run, "_keep", keeps)
        patch.setattr(Evaluation, "baseline", killed)
        with pytest.raises(KeyboardInterrupt):
            train_stock(experiment, "lstm", out)
    assert not (out / "rows.parquet").exists()
    assert main(["stock-ppo", "--out", str(out)]) == 2
    how = f"python -m mermaide_ray.baselines.stock_run {out}"
    assert f"a run of mermaide stock-ppo, trained but not scored ({how} scores it)" in capsys.readouterr().err
    run = RunDirectory(out)
    module, fresh = stock_run._trained(run, run.experiment()), stock_module(experiment, "lstm")
    held, untrained = (each.get_state(inference_only=True) for each in (module, fresh))
    assert held.keys() == trained[0].keys()
    assert all(np.array_equal(held[name], trained[0][name]) for name in held)
    assert not all(np.array_equal(held[name], untrained[name]) for name in held)

    monkeypatch.setattr(stock_run, "stock_ppo", killed)  # nothing is trained
    assert stock_run._score_only([str(out)]) == 0
    rows = read_source(out).rows
    assert set(rows["condition"]) == {"validation", "test"}
    played = Evaluation(experiment, "test").principal(
        "stock_ppo_lstm", 0, StockPrincipal(module, View(experiment.environment))
    )
    mine = rows[(rows["method"] == "stock_ppo_lstm") & (rows["condition"] == "test")]
    assert mine["return"].tolist() == played.rows["return"].tolist()
    assert stock_run._score_only([str(out)]) == 0
    assert read_source(out).rows.equals(rows)

    file = out / STOCK_MODULE
    name = next(iter(held))
    file.write_bytes(save({**held, name: held[name] + np.float32("nan")}))
    assert stock_run._score_only([str(out)]) == 2
    assert f"arrays must be finite, got NaN or infinity in {name} ({file})" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:100])
    assert stock_run._score_only([str(out)]) == 2
    assert f"files of results must be whole, but {file} is damaged" in capsys.readouterr().err
    file.unlink()
    assert stock_run._score_only([str(out)]) == 2
    assert f"(it holds module.safetensors), got {out}\n" in capsys.readouterr().err
