"""The principal as an RLlib module: the home of its weights, and its policy on the stock sampling path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from mermaide_ray.experiment import Experiment
from mermaide_ray.models.architecture import LATENTS, Weights
from mermaide_ray.models.categorical import choose
from mermaide_ray.models.method import RATE, Method, log_rate, split_parameters
from mermaide_ray.models.principal import conditioned, core_inputs, project, shared, step
from mermaide_ray.noise import generator


class PrincipalModule(TorchRLModule):
    """World model, policy, value and inner learning rates.

    `model_config["experiment"]` holds the settings (`Experiment.to_dict()`). On the stock path the observation is
    `View.observation` with the principal's own uniform draw for the step appended as last entry, and the module returns
    actions, not a distribution to sample from: the dice are dealt by the environment.
    """

    framework = "torch"

    def setup(self) -> None:
        """Builds the weights; called by RLlib."""
        experiment = Experiment.model_validate(self.model_config["experiment"])
        self.method = Method.of(experiment)
        seed = int(generator(experiment.seed, "train", "initial weights", 0, 0).integers(2**63))
        initial = self.method.architecture.initial_weights(torch.Generator().manual_seed(seed))
        for name in self.method.adaptable():
            initial[RATE + name] = log_rate(self.method.meta.inner_lr)
        learned = self.method.meta.learn_inner_lr
        self.parameters_by_name = nn.ParameterDict(
            {
                name: nn.Parameter(value, requires_grad=name != LATENTS and (learned or not name.startswith(RATE)))
                for name, value in initial.items()
            }
        )

    def weights(self) -> Weights:
        """The unadapted weights by name, without task axis; part of the autograd graph."""
        return split_parameters(self.method, dict(self.parameters_by_name.items()))[0]

    def inner_rates(self) -> dict[str, Tensor]:
        """The inner learning rate by weight name, 0-dim."""
        return split_parameters(self.method, dict(self.parameters_by_name.items()))[1]

    def detached(self) -> tuple[Weights, dict[str, Tensor]]:
        """`weights()` and `inner_rates()` outside the autograd graph: to be played with, not trained."""
        parameters = {name: value.detach() for name, value in self.parameters_by_name.items()}
        return split_parameters(self.method, parameters)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All parameters by name, to share (`storage.save_principal`)."""
        return {name: value.detach().numpy().copy() for name, value in self.parameters_by_name.items()}

    def get_initial_state(self) -> dict[str, Any]:
        """The core's state before an episode, and what is remembered of the arms beside it."""
        architecture = self.method.architecture
        state = {"core": np.zeros(architecture.hidden_size, dtype=np.float32)}
        if architecture.memory:
            state["marks"] = architecture.memory.before(torch.empty(0)).numpy()
        return state

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        observation = batch[Columns.OBS][:, 0]
        uniform, observation = observation[:, -1], observation[:, :-1].unsqueeze(0)
        architecture, before, after = self.method.architecture, batch[Columns.STATE_IN], {}
        with torch.no_grad():
            weights, marks = conditioned(shared(self.weights(), 1)), None
            if architecture.memory:
                marks = architecture.memory.advance(before["marks"].unsqueeze(0), observation)
                after["marks"] = marks[0]
            inputs, arms = core_inputs(architecture, weights, observation, marks)
            state = before["core"].unsqueeze(0)
            logits, state = step(architecture, weights, project(weights, inputs), state, arms, marks)
        return {
            Columns.ACTIONS: choose(logits[0], uniform).unsqueeze(1),
            Columns.ACTION_DIST_INPUTS: logits[0].unsqueeze(1),
            Columns.STATE_OUT: {"core": state[0], **after},
        }

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        raise TypeError("the principal is trained by MermaideLearner.update, never through forward_train")
