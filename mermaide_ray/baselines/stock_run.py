"""Trains stock PPO on the reference path, and scores it beside the others: the same agents, the same luck, flat rows.

It learns nothing about an agent but within an episode, and isn't tuned to one: K means nothing to it, and is 0.
`python -m mermaide_ray.baselines.stock_run DIR` scores the trained run in DIR, and does no more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import tree
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from rich.console import Console
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from mermaide_ray.agent_settings import HELD_OUT
from mermaide_ray.agents.contract import check_own_families
from mermaide_ray.baselines import SCORED_BESIDE
from mermaide_ray.baselines.stock_ppo import Network, stock_module, stock_ppo
from mermaide_ray.cluster.join import ray_running
from mermaide_ray.cluster.resources import check_own_gpu
from mermaide_ray.disk import damaged, whole_file
from mermaide_ray.errors import InputError, RunFault
from mermaide_ray.evaluation import Evaluation, Results
from mermaide_ray.experiment import Experiment
from mermaide_ray.lockstep import Hidden, Seen
from mermaide_ray.metrics import RETURN, STEPS
from mermaide_ray.models.categorical import choose
from mermaide_ray.progress import Progress, terminal
from mermaide_ray.provenance import provenance
from mermaide_ray.report.cells import Cells
from mermaide_ray.report.terminal import print_scores
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.storage import SCORE_STOCK, STOCK, STOCK_MODULE, RunDirectory, refuse_used, what_is
from mermaide_ray.view import View, view_of

# With the network behind it, what such a run is called.
_NAME = "stock_ppo_"


class StockPrincipal:
    """A trained module of RLlib's as a player of the lockstep game.

    Args:
        module: Torch, with or without a recurrent state; gives a categorical distribution over interventions, or an
            intervention, as DQN's does.
        view: How it sees the game.
    """

    def __init__(self, module: RLModule, view: View) -> None:
        self._module, self._view = module, view
        self._state: dict[str, Any] = {}  # as the module nests it

    def begin(self, num_episodes: int) -> None:
        """See `lockstep.Principal`."""
        initial = self._module.get_initial_state() if self._module.is_stateful() else {}
        self._state = tree.map_structure(
            lambda value: torch.as_tensor(value).expand(num_episodes, *value.shape), initial
        )

    def intervene(self, seen: Seen, hidden: Hidden) -> Tensor:
        """See `lockstep.Principal`; never looks at `hidden`."""
        observation = seen.observation(self._view)
        batch: dict[str, Any] = {Columns.OBS: observation}
        if self._state:
            # A time axis of one step, as RLlib's connectors add it for recurrent modules.
            batch = {Columns.OBS: observation.unsqueeze(1), Columns.STATE_IN: self._state}
        with torch.no_grad():
            out = self._module.forward_inference(batch)
        self._state = out.get(Columns.STATE_OUT, {})
        if Columns.ACTIONS in out:
            return cast(Tensor, out[Columns.ACTIONS]).flatten()
        return choose(out[Columns.ACTION_DIST_INPUTS].flatten(0, -2), seen.uniform)


def train_stock(experiment: Experiment, network: Network, out: Path | None = None) -> None:
    """Trains for `training.env_steps`, scores on the held-out agents, and leaves a run that a report can take.

    Args:
        experiment: Game, agents, seed, budget; of the method only what `stock_ppo` says.
        network: The principal's network.
        out: New folder; named after method, seed and time if not given.

    Raises:
        InputError: The folder can't be used, or RLlib's agents can't play these.
        RunFault: Ray can't be started, nobody samples any more, or the folder can't be written.
    """
    torch.set_num_threads(1)
    console = terminal()
    check_own_families(experiment)
    experiment = experiment.model_copy(update={"name": f"{_NAME}{network}"})
    config = stock_ppo(experiment, network)
    check_own_gpu(experiment.env_runners)
    if out is not None:
        refuse_used(out)
    run = RunDirectory.create(out, experiment, {**provenance(), "trained_by": STOCK})
    console.print(f"results in {run.path}", soft_wrap=True, highlight=False)
    with run.alone():
        with ray_running(experiment.env_runners.actors, console):
            algorithm = config.build_algo()
            try:
                with run.progress.open("w", encoding="utf-8") as progress:
                    for told in _iterations(algorithm, experiment, console):
                        progress.write(json.dumps(told) + "\n")
                        progress.flush()
                module = algorithm.get_module(PRINCIPAL)
                assert module is not None
                # Before it is scored: whatever happens then, the training is not lost.
                _keep(run, module)
            finally:
                algorithm.stop()
        _score(run, console)


def score_stock(folder: Path) -> None:
    """Scores a run that `train_stock` has trained, to the same rows, and trains nothing.

    Args:
        folder: The run's.

    Raises:
        InputError: There is no such run, it is not trained, or its network is damaged.
    """
    torch.set_num_threads(1)
    run = RunDirectory(folder)
    if not (run.config.is_file() and (folder / STOCK_MODULE).is_file()):
        raise InputError(
            f"a run to score must be one of {STOCK}, trained (it holds {STOCK_MODULE}), got {folder}{what_is(folder)}"
        )
    with run.alone():
        _score(run, terminal())


def _iterations(algorithm: Algorithm, experiment: Experiment, console: Console) -> Iterator[dict[str, float]]:
    """Trains until the budget is spent; what is told of each iteration.

    Raises:
        RunFault: RLlib has gone through an iteration without an episode, as it would for ever.
    """
    budget, steps, iteration = experiment.training.env_steps, 0, 0
    progress = Progress(console, experiment.name, budget, 0)
    try:
        while steps < budget:
            runners, iteration = algorithm.train().get("env_runners", {}), iteration + 1
            before, steps = steps, int(runners.get("num_env_steps_sampled_lifetime", 0))
            if steps <= before:
                raise RunFault(
                    f"each iteration must bring episodes, but iteration {iteration} brought none: all sampling actors "
                    "have failed, and Ray's lines above say how (--set env_runners.num_env_runners=0 samples in this "
                    "process)"
                )
            told = {
                "iteration": iteration,
                STEPS: float(steps),
                RETURN: float(runners["agent_episode_returns_mean"][PRINCIPAL]),
            }
            progress.update(iteration, steps, told)
            yield told
    finally:
        progress.close()


def _keep(run: RunDirectory, module: RLModule) -> None:
    """Writes the trained policy. Not as RLlib would: its checkpoints are pickles, which run code when loaded."""
    with whole_file(run.path / STOCK_MODULE) as file:
        # Written by Python, so that a full disk is an OSError like any other.
        file.write_bytes(save({name: np.asarray(value, order="C") for name, value in _policy(module).items()}))


def _policy(module: RLModule) -> dict[str, Any]:
    """A network's arrays by name, without its value: who samples is never told of that."""
    return cast(dict[str, Any], module.get_state(inference_only=True))


def _trained(run: RunDirectory, experiment: Experiment) -> RLModule:
    """The policy that `_keep` has written.

    Raises:
        InputError: It is damaged, not that of these settings, or not finite.
    """
    file = run.path / STOCK_MODULE
    try:
        arrays = load_file(file)
    except (OSError, SafetensorError) as error:
        raise damaged(file, error, f"delete {run.path}, and run {STOCK} again") from None
    module = stock_module(experiment, cast(Network, experiment.name.removeprefix(_NAME)))
    given, expected = ({name: value.shape for name, value in each.items()} for each in (arrays, _policy(module)))
    if given != expected:
        raise InputError(f"a run's policy must be that of its {run.config.name}, got another ({file})")
    if broken := sorted(name for name, value in arrays.items() if not np.isfinite(value).all()):
        raise InputError(f"a policy's arrays must be finite, got NaN or infinity in {broken[0]} ({file})")
    module.set_state(arrays)
    return module


def _score(run: RunDirectory, console: Console) -> None:
    """Writes and prints the rows of a trained run, all fixed rules and all oracles, on validation and test agents."""
    experiment = run.experiment()
    module, parts = _trained(run, experiment), []
    for split in HELD_OUT:
        evaluation = Evaluation(experiment, split)
        principal = StockPrincipal(module, view_of(experiment.environment))
        parts.append(evaluation.principal(experiment.name, experiment.seed, principal))
        parts += [evaluation.baseline(name) for name in SCORED_BESIDE]
    results = Results.together(parts)
    with whole_file(run.path / "rows.parquet") as file:
        results.rows.to_parquet(file, index=False)
    print_scores(Cells.of_run(results.rows), console)


def _score_only(arguments: list[str]) -> int:
    try:
        if len(arguments) != 1:
            raise InputError(f"one folder of a run must be given ({SCORE_STOCK} DIR), got {len(arguments)}")
        score_stock(Path(arguments[0]))
    except (InputError, RunFault) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_score_only(sys.argv[1:]))
