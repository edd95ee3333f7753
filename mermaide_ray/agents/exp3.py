"""EXP3: exponential weights on importance-weighted rewards; assumes nothing about where rewards come from.

Reference: Auer, Cesa-Bianchi, Freund, Schapire: The Nonstochastic Multiarmed Bandit Problem, SIAM J. Comput. 32 (2002),
section 3: p = (1 - gamma) w / sum(w) + gamma / A, and the pulled arm's w is multiplied by exp(gamma x / (A p)).
The paper's rewards lie in [0, 1]; here they don't (a base mean in [0, 1], noise, and incentives of +-1 by default).
They are brought there by one fixed map, x = (reward - REWARD_LOW) / (REWARD_HIGH - REWARD_LOW), and clipped: rewards
outside [REWARD_LOW, REWARD_HIGH] count as its ends, so of a delta far above 1 the agent notices the sign, not the size.
Weights are kept as logarithms, the largest at 0: the paper's product overflows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mermaide_ray.agents.base import Draws, Family, Hyperparameter, Params, State, sampled_arm

if TYPE_CHECKING:
    from torch import Tensor

REWARD_LOW, REWARD_HIGH = -1.0, 2.0


def probabilities(state: State, params: Params) -> Tensor:
    """Probability of each arm, [N, A]; at least gamma / A."""
    gamma = params["exp3_gamma"]
    weight = state["log_weight"].softmax(-1)
    return (1 - gamma) * weight + gamma / weight.shape[-1]


def init(params: Params, priority: Tensor) -> State:
    """`log_weight` [N, A] at 0. Arms are drawn, so nothing ties."""
    return {"log_weight": priority.new_zeros(priority.shape)}


def act(state: State, params: Params, step: Tensor, draws: Draws) -> Tensor:
    """An arm drawn from the mixture of exponential weights and the uniform distribution."""
    return sampled_arm(probabilities(state, params), draws.uniform[:, 1])


def learn(state: State, params: Params, step: Tensor, arm: Tensor, reward: Tensor) -> State:
    """Raises the pulled arm's log weight by gamma * x / (A * p), at most 1."""
    log_weight = state["log_weight"]
    index = arm.unsqueeze(-1)
    scaled = ((reward.unsqueeze(-1) - REWARD_LOW) / (REWARD_HIGH - REWARD_LOW)).clamp(0, 1)
    rise = params["exp3_gamma"] * scaled / (probabilities(state, params).gather(-1, index) * log_weight.shape[-1])
    raised = log_weight.scatter(-1, index, log_weight.gather(-1, index) + rise)
    return {"log_weight": raised - raised.amax(-1, keepdim=True)}


FAMILY = Family(
    name="exp3",
    description="EXP3: exponential weights on importance-weighted rewards, for adversarial rewards",
    reference="Auer, Cesa-Bianchi, Freund, Schapire 2002 (nonstochastic)",
    init=init,
    act=act,
    learn=learn,
    hyperparameters={
        # At 0 a pulled arm's probability, by which its reward is divided, could vanish.
        "exp3_gamma": Hyperparameter("share of uniform exploration, and rate of learning", 1e-3, 1.0)
    },
)
