"""The lockstep EnvRunner: meets its share of a meta-batch, adapts to each agent, and returns compact trajectories."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
import torch
from numpy.typing import NDArray
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.kshot import KShot
from mermaide_ray.models.architecture import LATENTS
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.noise import Key
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.sample import Sample

if TYPE_CHECKING:
    from mermaide_ray.algorithm import MermaideConfig


class LockstepEnvRunner(EnvRunner, Checkpointable):
    """Samples tasks by id. Dice and tasks are keyed, so any runner may do any task: its only state is the weights."""

    def __init__(self, *, config: MermaideConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        # Several processes share the machine, and the kernels are small: more threads are slower here.
        torch.set_num_threads(1)
        self.worker_index: int = kwargs.get("worker_index", 0)
        self.experiment = config.experiment
        self.distribution = AgentDistribution(self.experiment)
        self.weights_version = 0
        self.module: PrincipalModule | None = None
        self.make_env()
        self.make_module()

    def make_env(self) -> None:
        """The game needs no environment object: it is stepped as tensors."""
        self.env = None

    def make_module(self) -> None:
        """Builds the principal."""
        spec = self.config.get_rl_module_spec()
        self.module = spec.build()
        self.kshot = KShot(self.experiment.environment, self.module.method)

    def sample(self, *, iteration: int = 0, tasks: Sequence[int] | None = None, **kwargs: Any) -> Sample:
        """Meets tasks of one iteration.

        Args:
            iteration: Meta-iteration, part of the key of the dice.
            tasks: Task ids; the whole meta-batch if not given.
            kwargs: RLlib's num_timesteps etc.; a meta-batch has a fixed size.
        """
        assert self.module is not None
        if tasks is None:
            tasks = self.distribution.meta_batch(iteration, self.experiment.meta_learning.meta_batch_size)
        columns = self._meet(iteration, tasks)
        return Sample(tuple(tasks), self.weights_version, columns)

    def answer(self, iteration: int, tasks: Sequence[int], weights: dict[str, Any] | None = None) -> Sample:
        """What the driver asks for: `sample`, with the given weights.

        An error is an answer too: it keeps its own traceback, and is not taken for a crash to recover from.
        """
        try:
            self.set_state(weights or {})
            return self.sample(iteration=iteration, tasks=tasks)
        except Exception:
            return Sample(tuple(tasks), self.weights_version, {}, failure=traceback.format_exc())

    def _meet(self, iteration: int, ids: Sequence[int]) -> dict[str, NDArray[Any]]:
        assert self.module is not None
        meta, seed = self.experiment.meta_learning, self.experiment.seed
        tasks = self.distribution.tasks("train", ids)
        # Agents of a family side by side are stepped without gathering; the batch goes back in the order of the ids.
        order = torch.argsort(tasks.family, stable=True)
        meeting = self.kshot.meet(
            tasks.select(order),
            *self.module.detached(),
            meta.adaptation_episodes,
            meta.query_episodes,
            Key(seed, "train", "meta", iteration),
        )
        back = torch.argsort(order)
        columns = meeting.query.columns("query")
        if meeting.support is not None:
            columns |= meeting.support.columns("support")
        if meeting.adaptation is not None and LATENTS in meeting.adaptation.weights:
            # Shipped, not inferred anew: it takes long, and its last bit may decide where the search ends.
            columns[f"support_{LATENTS}"] = meeting.adaptation.weights[LATENTS]
        return {name: column[back].numpy() for name, column in columns.items()}

    def get_spaces(self) -> dict[str, Any]:
        """Spaces by module id, as RLlib asks for them."""
        spaces = self.config.principal_spaces()
        return {PRINCIPAL: spaces, INPUT_ENV_SPACES: spaces}

    def get_metrics(self) -> Any:
        """RLlib's own metrics of this runner (ours travel with the sample)."""
        return self.metrics.reduce()

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The weights and their version."""
        assert self.module is not None
        state: dict[str, Any] = {WEIGHTS_SEQ_NO: self.weights_version}
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = {PRINCIPAL: self.module.get_state()}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes weights over, and their version if they come with one."""
        if COMPONENT_RL_MODULE not in state or self.module is None:
            return
        modules = state[COMPONENT_RL_MODULE]
        if isinstance(modules, ray.ObjectRef):
            modules = ray.get(modules)
        if PRINCIPAL in modules:
            self.module.set_state(modules[PRINCIPAL])
            self.weights_version = int(state.get(WEIGHTS_SEQ_NO, self.weights_version))

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """For RLlib's checkpoints."""
        return (), {"config": self.config}

    def assert_healthy(self) -> None:
        """A runner without a module is not healthy."""
        if self.module is None:
            raise ValueError("the runner has no module")

    def stop(self) -> None:
        """Nothing to release."""
