"""Settings of the method: the inner loop, the networks, the outer loop. Imports neither Ray nor Torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mermaide_ray.settings import Number, Section, Switch, Whole


class MetaLearning(Section):
    """The inner loop: what happens between meeting an agent and steering it (MAML, arXiv 1703.03400)."""

    meta_batch_size: Whole = Field(48, ge=1, description="tasks per iteration, B")
    adaptation_episodes: Whole = Field(1, ge=0, description="K: support episodes with each task before the query")
    query_episodes: Whole = Field(4, ge=1, description="episodes per task sampled with the adapted parameters")
    inner_steps: Whole = Field(
        1, ge=0, description="gradient steps on the support episodes; 0 = no gradient adaptation"
    )
    inner_lr: Number = Field(0.1, ge=0, description="inner learning rate (initial value if learned)")
    learn_inner_lr: Switch = Field(False, description="learn one inner rate per parameter tensor (Meta-SGD)")
    adapt: Literal["all", "heads", "policy", "world_model", "context"] = Field(
        "all",
        description="which parameters the inner loop changes; context: a vector of its own, which core and policy read "
        "(CAVIA, 1810.03642)",
    )
    context_size: Whole = Field(16, ge=1, description="adapt = context only: entries of the vector")
    order: Literal["first", "second"] = Field("second", description="order of the meta-gradient")
    estimator: Literal["vanilla", "dice", "lvc"] = Field(
        "lvc",
        description="order = second only, since all agree in the first derivative: inner policy-gradient estimator; "
        "vanilla, DiCE (1802.05098), low-variance curvature (1810.06784)",
    )
    inner_policy_weight: Number = Field(1.0, ge=0, description="weight of the policy-gradient loss in the inner loss")
    support_weight: Number = Field(
        0.25,
        ge=0,
        description="weight of the support episodes, unadapted, in the outer objective (the whole loss: policy, value, "
        "entropy, world model), which keeps K = 0 good",
    )
    carry_state: Switch = Field(
        False, description="carry the recurrent state from episode to episode of one agent (RL squared)"
    )


class WorldModel(Section):
    """The model of the agent and the policy that reads it."""

    enabled: Switch = Field(True, description="train the recurrent core to predict the agent's next arm")
    kind: Literal["recurrent", "learner"] = Field(
        "learner",
        description="learner: the core predicts the next arm through a parametric model of agents that learn which arm "
        "pays, whose unknowns are inferred from the support episodes; recurrent: outright, assuming nothing of agents",
    )
    hidden_size: Whole = Field(48, ge=1, description="units of the GRU, H")
    policy_hidden: Whole = Field(64, ge=1, description="units of the policy's (and the value's) hidden layer")
    arms: Literal["flat", "equivariant"] = Field(
        "flat",
        description="flat: an input and an output for each arm; equivariant: one encoder for all arms, and pools over "
        "them, so that a trained principal can be used with any number of arms",
    )
    encoder_size: Whole = Field(16, ge=1, description="arms = equivariant only: units of the encoder")
    components: Whole = Field(
        5, ge=1, description="continuous only: Gaussians in the predicted density of the next point"
    )
    loss_weight: Number = Field(1.0, ge=0, description="weight of the next-arm negative log-likelihood (nats per pull)")
    policy_gradient: Switch = Field(
        True, description="whether gradients of policy and value flow into the recurrent core"
    )


class Training(Section):
    """The outer loop."""

    env_steps: Whole = Field(10_000_000, ge=1, description="budget: environment steps, support and query together")
    meta_lr: Number = Field(2e-3, gt=0, description="meta (outer) learning rate of Adam")
    final_lr_fraction: Number = Field(0.05, ge=0, le=1, description="the rate falls linearly to this share of meta_lr")
    objective: Literal["reinforce", "clipped"] = Field(
        "clipped", description="outer policy objective: REINFORCE [paper], or PPO's clipped surrogate"
    )
    clip: Number = Field(0.2, gt=0, description="clipped only: range of the probability ratio")
    epochs: Whole = Field(1, ge=1, description="clipped only: passes over each meta-batch")
    minibatches: Whole = Field(4, ge=1, description="clipped only: steps per pass, each on a share of the tasks")
    baseline: Literal["value", "leave_one_out"] = Field(
        "value",
        description="baseline of the policy gradient; leave_one_out takes several episodes: of one alone (evaluation "
        "at K = 1) it is value",
    )
    gamma: Number = Field(
        0.99, ge=0, le=1, description="discount per pull, for training only (scores are undiscounted)"
    )
    gae_lambda: Number = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    value_weight: Number = Field(0.5, ge=0, description="weight of the squared value error")
    entropy_weight: Number = Field(0.01, ge=0, description="weight of the policy's entropy (nats), falling to a tenth")
    max_grad_norm: Number = Field(1.0, gt=0, description="global norm at which the meta-gradient is clipped")

    @property
    def num_epochs(self) -> int:
        """Passes over a meta-batch: only the clipped objective can take more than one."""
        return self.epochs if self.objective == "clipped" else 1

    @property
    def num_minibatches(self) -> int:
        """Steps per pass: only the clipped objective can take more than one."""
        return self.minibatches if self.objective == "clipped" else 1
