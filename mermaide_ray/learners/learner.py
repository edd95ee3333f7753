"""The meta-learner as an RLlib Learner.

RLlib's Learner serves as the container: module, optimizer, groups of learners, checkpoints, metrics. Its update is
replaced as a whole: the unit of data is the task, whose support and query belong together, and a minibatch is some of
the tasks. RLlib's own meta learners are not used: they cut minibatches out of the pulls, and don't synchronise
gradients between learners (ray 2.60, rllib/core/learner/torch/torch_meta_learner.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor

from mermaide_ray.errors import RunFault
from mermaide_ray.learners.maml import OldLogP, meta_loss, sampling_log_p
from mermaide_ray.models.architecture import LATENTS
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.trajectory import Experience, Trajectories


class MermaideLearner(TorchLearner):
    """Takes meta-gradient steps on the tasks in a batch: one, or with the clipped objective several.

    The batch of module `principal` holds `support_arms`, `support_interventions` [B, K, T] (absent for K = 0),
    `query_arms`, `query_interventions` [B, E, T] and `target` [B]; what the principal saw (`support_shown`,
    `query_shown`) where that is a matter of luck, the target at each pull (`moving` [B, T]) where it moves, and what a
    model of learners inferred from the support (`support_latents` [B, L]).
    Learners each get some of the tasks; gradients and the moments of the advantages are averaged over all of them, so
    their number changes nothing but rounding.
    """

    def update(self, batch: Any = None, *, training_data: Any = None, timesteps: Any = None, **kwargs: Any) -> Any:
        """See class. `timesteps["progress"]` is the share of the budget spent, in [0, 1]."""
        self._check_is_built()
        if training_data is not None:
            training_data.solve_refs()
            batch = training_data.batch
        self._weights_seq_no += 1
        columns = {key: torch.from_numpy(value) for key, value in batch.policy_batches[PRINCIPAL].items()}
        try:
            told = self._meta_update(columns, float((timesteps or {}).get("progress", 0.0)))
        except torch.OutOfMemoryError as error:
            raise RunFault(
                f"a learner's GPU must hold its share of the meta-batch, got: {str(error).splitlines()[0]} (lower "
                "meta_learning.meta_batch_size, or raise env_runners.num_learners)"
            ) from None
        for key, value in told.items():
            self.metrics.log_value((PRINCIPAL, key), value, window=1)
        return self.metrics.reduce()

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> Tensor:
        """RLlib's per-module loss: not used, since support and query make one loss."""
        raise TypeError("MermaideLearner has one loss for support and query together: see learners/maml.py, meta_loss")

    def _meta_update(self, columns: dict[str, Tensor], progress: float) -> dict[str, float]:
        module: PrincipalModule = self.module[PRINCIPAL].unwrapped()
        training = module.method.training
        rate = training.meta_lr * (1 - (1 - training.final_lr_fraction) * progress)
        for group in self.get_optimizer(module_id=PRINCIPAL).param_groups:
            group["lr"] = rate
        support = self._experience("support", columns) if "support_arms" in columns else None
        query = self._experience("query", columns)
        parameters = [value for value in module.parameters() if value.requires_grad]
        entropy_weight = training.entropy_weight * (1 - 0.9 * progress)
        shares = [slice(start, None, training.num_minibatches) for start in range(training.num_minibatches)]
        steps = shares * training.num_epochs
        old_log_p: OldLogP | None = None
        if len(steps) > 1:
            old_log_p = sampling_log_p(module.method, module.weights(), module.inner_rates(), support, query)
        parts: list[dict[str, Tensor]] = []
        for share in steps:
            result = meta_loss(
                module.method,
                module.weights(),
                module.inner_rates(),
                None if support is None else support.tasks(share),
                query.tasks(share),
                entropy_weight,
                None if old_log_p is None else old_log_p.tasks(share),
                self._moments,
            )
            norm = self._step(result.loss, parameters, training.max_grad_norm)
            parts.append(result.metrics | {"principal/grad_norm": norm})
        told = {key: torch.stack([part[key] for part in parts[: len(shares)]]).mean() for key in parts[0]}
        told = dict(zip(told, self._averages(list(told.values())), strict=True))
        rates = [value.detach() for value in module.inner_rates().values()]
        if rates:
            told["adaptation/inner_lr"] = torch.stack(rates).mean()
        return {key: float(value) for key, value in told.items()} | {"principal/meta_lr": rate}

    def _step(self, loss: Tensor, parameters: list[Tensor], max_norm: float) -> Tensor:
        """One step down the meta-gradient, averaged over all learners; returns its norm before clipping."""
        optimizer = self.get_optimizer(module_id=PRINCIPAL)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        # A weight outside the loss still takes part in the average over learners.
        own = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, self._averages(own), strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        if not torch.isfinite(norm):
            raise RunFault(
                f"the meta-gradient must be finite, got {norm.item()} (loss {loss.item():g}); this step was not taken: "
                "lower training.meta_lr or meta_learning.inner_lr, and resume from the last checkpoint"
            )
        optimizer.step()
        return norm

    def _experience(self, which: str, columns: dict[str, Tensor]) -> Experience:
        made: Experience = self.config.experience(Trajectories.of_columns(columns, which))
        experience = replace(made, latents=columns.get(f"{which}_{LATENTS}")).to(self._device)
        module: PrincipalModule = self.module[PRINCIPAL].unwrapped()
        memory, history = module.method.architecture.memory, experience.history
        if memory is None:
            return experience
        return replace(experience, history=replace(history, marks=memory.over(history.observations)))

    def _average(self, value: Tensor) -> Tensor:
        """The mean over all learners (each holds as many tasks)."""
        if self._world_size() > 1:
            torch.distributed.all_reduce(value)
            value /= self._world_size()
        return value

    def _averages(self, values: list[Tensor]) -> list[Tensor]:
        """The mean of each over all learners, in one message."""
        if self._world_size() == 1:
            return values
        together = self._average(torch.cat([value.flatten() for value in values]))
        parts = torch.split(together, [value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self._average(x.mean())
        return mean, self._average((x - mean).square().mean()).sqrt()

    @staticmethod
    def _world_size() -> int:
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
