"""Trains stock PPO on the reference path, and scores it beside the others: the same agents, the same luck, flat rows.

It learns nothing about an agent but within an episode, and isn't tuned to one: K means nothing to it, and is 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import tree
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from rich.console import Console
from torch import Tensor

from mermaide_ray.agent_settings import SPLITS
from mermaide_ray.agents.contract import check_own_families
from mermaide_ray.agents.rl_module import PRINCIPAL
from mermaide_ray.baselines import SCORED_BESIDE
from mermaide_ray.baselines.stock_ppo import Network, stock_ppo
from mermaide_ray.cluster.join import ray_running
from mermaide_ray.cluster.resources import check_own_gpu
from mermaide_ray.disk import whole_file
from mermaide_ray.evaluation import Evaluation, Results
from mermaide_ray.experiment import Experiment
from mermaide_ray.lockstep import Hidden, Seen
from mermaide_ray.metrics import RETURN, STEPS
from mermaide_ray.models.categorical import choose
from mermaide_ray.progress import Progress, terminal
from mermaide_ray.provenance import provenance
from mermaide_ray.report.cells import Cells
from mermaide_ray.report.terminal import print_scores
from mermaide_ray.storage import STOCK, RunDirectory, refuse_used
from mermaide_ray.trajectory import View, view_of


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
        RunFault: Ray can't be started, or the folder can't be written.
    """
    torch.set_num_threads(1)
    console = terminal()
    check_own_families(experiment)
    experiment = experiment.model_copy(update={"name": f"stock_ppo_{network}"})
    config = stock_ppo(experiment, network)
    check_own_gpu(experiment.env_runners)
    if out is not None:
        refuse_used(out)
    run = RunDirectory.create(out, experiment, {**provenance(), "trained_by": STOCK})
    console.print(f"results in {run.path}", soft_wrap=True, highlight=False)
    with ray_running(experiment.env_runners.actors, console):
        algorithm = config.build_algo()
        try:
            with run.alone(), run.progress.open("w", encoding="utf-8") as progress:
                for told in _iterations(algorithm, experiment, console):
                    progress.write(json.dumps(told) + "\n")
                    progress.flush()
            module = algorithm.get_module(PRINCIPAL)
            assert module is not None
            results = _score(experiment, module)
        finally:
            algorithm.stop()
    with whole_file(run.path / "rows.parquet") as file:
        results.rows.to_parquet(file, index=False)
    print_scores(Cells.of_run(results.rows), console)


def _iterations(algorithm: Algorithm, experiment: Experiment, console: Console) -> Iterator[dict[str, float]]:
    """Trains until the budget is spent; what is told of each iteration."""
    budget, steps, iteration = experiment.training.env_steps, 0, 0
    progress = Progress(console, experiment.name, budget, 0)
    try:
        while steps < budget:
            result = algorithm.train()
            runners = result["env_runners"]
            steps, iteration = int(runners["num_env_steps_sampled_lifetime"]), iteration + 1
            told = {
                "iteration": iteration,
                STEPS: float(steps),
                RETURN: float(runners["agent_episode_returns_mean"][PRINCIPAL]),
            }
            progress.update(iteration, steps, told)
            yield told
    finally:
        progress.close()


def _score(experiment: Experiment, module: RLModule) -> Results:
    """Rows of the principal, all fixed rules and all oracles, on validation and test agents."""
    parts = []
    for split in SPLITS[1:]:
        evaluation = Evaluation(experiment, split)
        principal = StockPrincipal(module, view_of(experiment.environment))
        parts.append(evaluation.principal(experiment.name, experiment.seed, principal))
        parts += [evaluation.baseline(name) for name in SCORED_BESIDE]
    return Results.together(parts)
