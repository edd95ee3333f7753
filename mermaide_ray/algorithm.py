"""MERMAIDE as an RLlib algorithm: the configuration and the training step.

Example:
    >>> from mermaide_ray.algorithm import MermaideConfig
    >>> config = (
    ...     MermaideConfig()
    ...     .environment(num_arms=10, cost_weight=0.3)
    ...     .meta_learning(adaptation_episodes=1, inner_steps=1)
    ...     .world_model(hidden_size=48)
    ...     .training(env_steps=1_000_000, meta_lr=2e-3)
    ...     .env_runners(num_env_runners=0)
    ... )
    >>> algorithm = config.build_algo()  # doctest: +SKIP
    >>> algorithm.train()  # doctest: +SKIP
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import LEARNER_RESULTS, WEIGHTS_SEQ_NO

from mermaide_ray.agents.distribution import AgentDistribution
from mermaide_ray.cluster.nodes import last_line, refusal, said
from mermaide_ray.cluster.resources import check_own_gpu
from mermaide_ray.config_file import merge
from mermaide_ray.contender import Contender
from mermaide_ray.dispatch import Dispatch
from mermaide_ray.envs.bandit import IncentivizedBanditEnv
from mermaide_ray.envs.incentive import incentives_of
from mermaide_ray.errors import InputError, RunFault, WorkersLost
from mermaide_ray.evaluation import Evaluation
from mermaide_ray.experience import experience_of
from mermaide_ray.experiment import Experiment, overlaid, validate
from mermaide_ray.kshot import KShot
from mermaide_ray.learners.learner import MermaideLearner
from mermaide_ray.metrics import validation_key
from mermaide_ray.models.rl_module import PrincipalModule
from mermaide_ray.roles import PRINCIPAL
from mermaide_ray.rollout import LockstepEnvRunner
from mermaide_ray.sample import Sample, concatenated
from mermaide_ray.trajectory import Experience, Trajectories
from mermaide_ray.view import view_of

_NOT_RLLIBS = {
    "lr": "meta_lr",
    "num_epochs": "epochs",
    "minibatch_size": "minibatches",
    "grad_clip": "max_grad_norm",
    "train_batch_size": ".meta_learning(meta_batch_size=…)",
    "train_batch_size_per_learner": ".meta_learning(meta_batch_size=…)",
}
"""RLlib settings that this algorithm would not heed, and what to set instead."""
FLAT = "mermaide"
"""Key of the flat metrics in a training result."""
# How long to wait for an answer of the learners at a time; and for Ray to find one gone, once another says that the
# connection between them broke.
_POLL_SECONDS, _LOSS_SECONDS = 1.0, 60.0


class MermaideConfig(AlgorithmConfig):
    """RLlib configuration of MERMAIDE and, by settings alone, of its ablations.

    The fluent sections take the keys of `mermaide config` beside RLlib's own. All of them end up in `settings`, a
    nested dict that Tune can search in, and are validated together as an `Experiment`.
    """

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class=algo_class or Mermaide)
        self.settings: dict[str, Any] = {}
        self.env_runner_cls = LockstepEnvRunner
        self.env = IncentivizedBanditEnv
        self.policies = {PRINCIPAL}
        self.policies_to_train = [PRINCIPAL]
        self.policy_mapping_fn = _map_to_principal
        self.num_env_runners = 0
        self.batch_mode = "complete_episodes"
        self.create_env_on_local_worker = True  # else the local runner is built only after a remote one was asked
        # A bug must not look like a crash that is worth a thousand restarts, each a minute apart.
        self.restart_failed_env_runners = True
        self.max_num_env_runner_restarts = 3
        # Sampling actors have no state but weights, which come with their share of the work.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self.delay_between_env_runner_restarts_s = 1.0
        self.grad_clip = None
        self.simple_optimizer = False
        self.log_gradients = False

    @classmethod
    def of(cls, experiment: Experiment) -> MermaideConfig:
        """The configuration of a validated experiment."""
        config = cls()
        config.settings = experiment.to_dict()
        runners = experiment.env_runners
        config.env_runners(num_env_runners=runners.num_env_runners)
        config.learners(**runners.learners)
        config.max_num_env_runner_restarts = runners.restarts
        return config

    @property
    def experiment(self) -> Experiment:
        """All settings, validated.

        Raises:
            InputError: With one sentence on the first thing that is wrong.
        """
        workers = {
            "num_env_runners": self.num_env_runners,
            "num_learners": self.num_learners,
            "num_gpus_per_learner": self.num_gpus_per_learner,
            "restarts": self.max_num_env_runner_restarts,
        }
        settings = merge(self.settings, {"env_runners": workers})
        if self.seed is not None:
            settings = merge(settings, {"seed": self.seed})
        return validate(settings, where="MermaideConfig")

    def environment(self, env: Any = NotProvided, **kwargs: Any) -> MermaideConfig:
        """The game: `environment.Environment`'s keys beside RLlib's."""
        rest = self._take("environment", kwargs)
        super().environment(env, **rest)
        return self

    def agents(self, **kwargs: Any) -> MermaideConfig:
        """The distribution of agents: `agent_settings.Agents`' keys."""
        return self._take_all("agents", kwargs)

    def meta_learning(self, **kwargs: Any) -> MermaideConfig:
        """The inner loop: `experiment.MetaLearning`'s keys."""
        return self._take_all("meta_learning", kwargs)

    def world_model(self, **kwargs: Any) -> MermaideConfig:
        """The recurrent core: `experiment.WorldModel`'s keys."""
        return self._take_all("world_model", kwargs)

    def training(self, **kwargs: Any) -> MermaideConfig:
        """The outer loop: `experiment.Training`'s keys beside RLlib's."""
        super().training(**self._take("training", kwargs))
        return self

    def evaluation(self, **kwargs: Any) -> MermaideConfig:
        """The K-shot protocol: `experiment.Evaluation`'s keys beside RLlib's."""
        super().evaluation(**self._take("evaluation", kwargs))
        return self

    def _take(self, section: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Puts the section's own keys into `settings`, and those that nobody knows, to be refused; returns the rest."""
        for key in given.keys() & _NOT_RLLIBS.keys():
            raise InputError(
                f".{section}({key}=…) must be given as {_NOT_RLLIBS[key]}: RLlib's own would have no effect"
            )
        own = type(getattr(Experiment(), section)).model_fields
        theirs = inspect.signature(getattr(AlgorithmConfig, section)).parameters
        mine = {key: value for key, value in given.items() if key in own or key not in theirs}
        if mine:
            self.settings = overlaid(self.settings, {section: mine})
        return {key: value for key, value in given.items() if key not in mine}

    def _take_all(self, section: str, given: Mapping[str, Any]) -> MermaideConfig:
        self.settings = overlaid(self.settings, {section: dict(given)})
        return self

    def validate(self) -> None:
        """See base; validates our settings first."""
        # A family of the user's own may fail where its agents are to be drawn (`goals`): here, before actors start.
        AgentDistribution(self.experiment)
        super().validate()

    def get_default_learner_class(self) -> type[MermaideLearner]:
        """See base."""
        return MermaideLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """See base: the principal."""
        observation, action = self.principal_spaces()
        return RLModuleSpec(
            module_class=PrincipalModule,
            observation_space=observation,
            action_space=action,
            model_config={"experiment": self.experiment.to_dict(), "max_seq_len": self.experiment.environment.horizon},
        )

    def principal_spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Observation (with its dice as last entry) and action space of the principal."""
        view = view_of(self.experiment.environment)
        return (
            gym.spaces.Box(0.0, 1.0, (view.observation_size + 1,), np.float32),
            gym.spaces.Discrete(view.num_interventions),
        )

    def experience(self, trajectories: Trajectories) -> Experience:
        """Observations and rewards of trajectories: how the learner, which must not know the game, gets at them."""
        return experience_of(self.experiment.environment, trajectories)


def lost(error: Exception) -> WorkersLost:
    """What Ray says of an actor that is gone, as one sentence."""
    return WorkersLost(
        f"every actor must answer, but one is gone: {said(error)[0]} (a run goes on from its last "
        "checkpoint with --resume, a sweep by itself)"
    )


def _map_to_principal(agent_id: str, episode: Any, **kwargs: Any) -> str:
    return PRINCIPAL


class Mermaide(Algorithm):
    """Meta-trains a principal. One `train()` is one meta-iteration (MERMAIDE, arXiv 2304.04668, Algorithm 1)."""

    config: MermaideConfig

    @classmethod
    def get_default_config(cls) -> MermaideConfig:
        """See base."""
        return MermaideConfig()

    def setup(self, config: Any) -> None:
        """See base."""
        torch.set_num_threads(1)
        check_own_gpu(config.experiment.env_runners)
        self.meta_iteration = 0
        self._validation: Evaluation | None = None
        self._dispatch: Dispatch | None = None
        try:
            super().setup(config)
        except IndexError:
            # RLlib (ray 2.60, EnvRunnerGroup.get_spaces) has asked a sampling actor that died while it was built.
            why = Dispatch(self.env_runner_group).first_error()
            if sentence := refusal(why):
                raise InputError(
                    f"sampling actors must take the settings on every node, but one does not: {sentence}"
                ) from None
            told = f"{last_line(why)}\n{why}"
            raise RunFault(f"the sampling actors must start, but one did not: {told}") from None
        except RayError as error:
            # A learner has failed while it was built. Their group ends them in its destructor (ray 2.60, LearnerGroup),
            # which after Ray's own end would start another Ray for that: nothing may hold it for so long.
            traceback.clear_frames(error.__traceback__)
            if not isinstance(error, RayTaskError):
                raise
            if sentence := refusal(error):
                raise InputError(
                    f"learners must take the settings on every node, but one does not: {sentence}"
                ) from None
            raise RunFault(f"the learners must start, but one did not: {last_line(error)}\n{error}") from None
        if self.env_runner_group.num_remote_env_runners():
            self._dispatch = Dispatch(self.env_runner_group)
        self.experiment = self.config.experiment
        self.distribution = AgentDistribution(self.experiment)
        self._sync_weights()

    def training_step(self) -> None:
        """Meets a meta-batch of agents, takes one meta-step, hands the new weights to the runners."""
        experiment, iteration = self.experiment, self.meta_iteration
        tasks = self.distribution.meta_batch(iteration, experiment.meta_learning.meta_batch_size)

        started = time.perf_counter()
        samples = self._meet(iteration, tasks)
        sampled = time.perf_counter()

        columns = concatenated(samples, tasks)
        batch = MultiAgentBatch({PRINCIPAL: SampleBatch(columns)}, env_steps=experiment.env_steps_per_iteration)
        results = self._update(batch, progress=min(1.0, iteration / experiment.num_iterations))
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        updated = time.perf_counter()

        self._sync_weights()
        self.meta_iteration += 1
        self._tell(columns, samples, sampled - started, updated - sampled)

    def _meet(self, iteration: int, tasks: list[int]) -> list[Sample]:
        """Every task of the meta-batch, met with the current weights."""
        if self._dispatch is None:
            return [self.env_runner_group.local_env_runner.answer(iteration, tasks).checked()]
        return self._dispatch.gather(iteration, tasks, self._weights, self._weights_version)

    def _update(self, batch: MultiAgentBatch, progress: float) -> list[dict[str, Any]]:
        """The meta-step of all learners; returns what each tells.

        Raises:
            WorkersLost: One is gone. Said at once: those that are left wait for it in the middle of their gradients, up
                to half an hour where its machine vanished without a word.
        """
        group, timesteps = self.learner_group, {"progress": progress}
        if group.is_local:
            return group.update(batch=batch, timesteps=timesteps)  # type: ignore[no-any-return]
        self._check_learners()
        group.update(batch=batch, timesteps=timesteps, async_update=True)
        told: dict[int, dict[str, Any]] = {}
        left, error, until = len(group), None, float("inf")
        while left and time.monotonic() < until:
            for answer in group._worker_manager.fetch_ready_async_reqs(timeout_seconds=_POLL_SECONDS):
                left -= 1
                if answer.ok:
                    told[answer.actor_id] = answer.get()
                elif not isinstance(answer.get(), RayTaskError):
                    raise lost(answer.get())
                elif isinstance(answer.get().cause, RunFault):
                    raise answer.get().cause  # its own sentence, without Ray's frames around it
                else:
                    error, until = answer.get(), time.monotonic() + _LOSS_SECONDS
        if error is not None:
            raise error
        return [told[learner] for learner in sorted(told)]

    def _check_learners(self) -> None:
        """Raises if a learner has failed before: RLlib would go on without it, and without its share of the tasks."""
        learners = self.learner_group._worker_manager
        if learners is not None and learners.num_healthy_actors() < learners.num_actors():
            raise lost(RuntimeError("a learner that failed before"))

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Takes sampling actors that Ray has started again back into service.

        RLlib's own (ray 2.60, rllib/algorithms/algorithm.py) fails on a runner whose module is no MultiRLModule.
        """
        return [] if self._dispatch is None else self._dispatch.restore()

    def cleanup(self) -> None:
        """See base."""
        if self._dispatch is not None:
            self._dispatch.end()
        super().cleanup()

    def _sync_weights(self) -> None:
        """Takes over the learner's weights, and lays them out for the sampling actors, who get them with a share."""
        self._check_learners()
        state = self.learner_group.get_state(
            components=[f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"], inference_only=False
        )[COMPONENT_LEARNER]
        weights = {key: state[key] for key in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)}
        local: LockstepEnvRunner = self.env_runner_group.local_env_runner
        local.set_state(weights)
        self._weights_version = local.weights_version
        self._weights = weights if self._dispatch is None else ray.put(weights)

    def _tell(self, columns: dict[str, Any], samples: list[Sample], sample_s: float, update_s: float) -> None:
        """Logs the flat metrics of this iteration."""
        told = {
            key: float(self.metrics.peek((LEARNER_RESULTS, PRINCIPAL, key)))
            for key in self.metrics.peek((LEARNER_RESULTS, PRINCIPAL))
            if "/" in key
        }
        query = Trajectories.of_columns({key: torch.from_numpy(column) for key, column in columns.items()}, "query")
        horizon = self.experiment.environment.horizon
        incentives = incentives_of(self.experiment.environment)
        told["principal/success_rate"] = float(incentives.successes_of(query).float().mean())
        told["principal/interventions"] = float((query.interventions > 0).float().mean()) * horizon
        told["principal/cost"] = float(incentives.costs_of(query).mean()) * horizon
        steps = self.experiment.env_steps_per_iteration
        told["throughput/env_steps"] = float(self.meta_iteration * steps)
        told["throughput/env_steps_per_s"] = steps / (sample_s + update_s)
        told["throughput/sample_s"] = sample_s
        told["throughput/update_s"] = update_s
        told["throughput/bytes_per_env_step"] = sum(sample.num_bytes for sample in samples) / steps
        for key, value in told.items():
            self.metrics.log_value((FLAT, key), value, window=1)

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """See base; adds the position in the stream of meta-batches, which is all that the dice depend on."""
        state: dict[str, Any] = super().get_state(components, not_components=not_components, **kwargs)
        state["meta_iteration"] = self.meta_iteration
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """See base."""
        super().set_state(state)
        self.meta_iteration = state.get("meta_iteration", self.meta_iteration)
        self._sync_weights()

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """See base. RLlib (ray 2.60) does not look whether a learner actor has written its part."""
        saved: str = super().save_to_path(path, **kwargs)
        part = Path(saved) / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER
        if not any(part.glob("state.*")):
            raise WorkersLost(
                f"a checkpoint must be whole, but a learner wrote no {part} (it is gone, or its disk full)"
            )
        return saved

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, float]:
        """The K-shot protocol on validation agents, in the driver: normalised score by flat metric name.

        Without planning, which would hide how far the policy is.
        """
        if self._validation is None:
            tasks = self.experiment.evaluation.validation_tasks
            self._validation = Evaluation(self.experiment, "validation", tasks)
        module = self.principal()
        contender = Contender(
            self.experiment.name,
            self.experiment.seed,
            KShot(self.experiment.environment, module.method),
            *module.detached(),
        )
        scores = self._validation.scores(contender, self.experiment.evaluation.k)
        return {validation_key(k): score for k, score in scores.items()}

    def principal(self) -> PrincipalModule:
        """The principal with the learner's current weights."""
        module: PrincipalModule | None = self.env_runner_group.local_env_runner.module
        if module is None:
            raise InputError("the algorithm must have a local runner (create_local_env_runner=True)")
        return module


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The flat metrics (`mermaide_ray.metrics`) in a result of `Mermaide.train()`."""
    return {key: float(value) for key, value in result[FLAT].items()}
