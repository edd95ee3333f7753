"""Stock RLlib PPO as the principal, on the reference path: nothing of ours but the environment and the agents.

It is a baseline, and the proof that the environment needs no algorithm of ours. Two networks: an MLP that sees the last
step only, and an LSTM that sees the episode; policy and value share nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from mermaide_ray.agents.rl_module import as_principal, policy_mapping
from mermaide_ray.experiment import Experiment
from mermaide_ray.roles import PRINCIPAL

Network = Literal["mlp", "lstm"]


def stock_ppo(
    experiment: Experiment,
    network: Network,
    env: str = "incentivized_bandit",
    env_config: Mapping[str, Any] | None = None,
    envs_per_runner: int = 16,
    episodes_per_iteration: int = 64,
) -> PPOConfig:
    """RLlib's PPO, ready to build.

    Widths, discount, lambda, entropy and gradient norm are the experiment's; the rest of PPO's settings are RLlib's
    defaults, but for what is given here.

    Args:
        experiment: Game, agents and seed. `env_runners` says who samples and who learns.
        network: `mlp` (two layers, no memory) or `lstm`.
        env: Registered name or dotted path of the environment.
        env_config: Further settings of the environment (see `EnvSettings`).
        envs_per_runner: Sub-environments per env runner, stepped one after another but inferred in one batch.
        episodes_per_iteration: Episodes per training batch.

    Returns:
        An `AlgorithmConfig`; `.build_algo()` starts it.
    """
    horizon, training = experiment.environment.horizon, experiment.training
    share = episodes_per_iteration * horizon // max(experiment.env_runners.num_learners, 1)
    principal = RLModuleSpec(model_config=_model(experiment, network))
    return (
        as_principal(PPOConfig(), experiment, principal, env, env_config)
        .env_runners(
            num_env_runners=experiment.env_runners.num_env_runners,
            num_envs_per_env_runner=envs_per_runner,
            # An episode is one agent met: cut ones would meet the same agent without a memory of it.
            batch_mode="complete_episodes",
            # After its minute RLlib throws away what actors bring, and goes on without: long episodes, or a busy
            # machine, would then never train. None waits; of an actor that dies Ray tells at once.
            sample_timeout_s=None,
        )
        .learners(**experiment.env_runners.learners)
        .training(
            train_batch_size_per_learner=share,
            minibatch_size=min(1024, share),
            num_epochs=4,
            lr=1e-3,
            gamma=training.gamma,
            lambda_=training.gae_lambda,
            entropy_coeff=training.entropy_weight,
            grad_clip=training.max_grad_norm,
            use_kl_loss=False,
            # Returns are tens: RLlib's default of 10 cuts the gradient of any value that is off by more than three.
            vf_clip_param=float("inf"),
        )
        .debugging(seed=experiment.seed, log_level="ERROR")
    )


def stock_module(experiment: Experiment, network: Network) -> RLModule:
    """The principal's network in `stock_ppo`, untrained. Starts no Ray."""
    config = stock_ppo(experiment, network)
    env = config.env(config.env_config)
    spaces = {
        policy_mapping(agent): (env.observation_spaces[agent], env.action_spaces[agent])
        for agent in env.possible_agents
    }
    return config.get_multi_rl_module_spec(spaces=spaces).rl_module_specs[PRINCIPAL].build()


def _model(experiment: Experiment, network: Network) -> DefaultModelConfig:
    width = experiment.world_model.policy_hidden
    if network == "mlp":
        return DefaultModelConfig(fcnet_hiddens=[width, width], vf_share_layers=False)
    return DefaultModelConfig(
        fcnet_hiddens=[width],
        use_lstm=True,
        vf_share_layers=False,
        lstm_cell_size=width,
        # Whole episodes: shorter ones would cut the gradient through time.
        max_seq_len=experiment.environment.horizon,
    )
