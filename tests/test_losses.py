"""The losses against closed forms, hand loops, and the exact derivatives of a problem small enough to enumerate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mermaide_ray.learners.losses import (
    Estimator,
    clipped_loss,
    entropy,
    generalised_advantages,
    leave_one_out_advantages,
    policy_gradient_loss,
    prediction_nll,
)
from mermaide_ray.models.categorical import ArmHead, log_probability

B, T, E = 2, 6, 3
GAMMA, LAMBDA = 0.9, 0.7


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_advantages_of_constant_rewards_are_a_geometric_series() -> None:
    rewards, values = torch.ones(B, T, E, dtype=torch.float64), torch.zeros(B, T, E, dtype=torch.float64)
    advantages, targets = generalised_advantages(rewards, values, GAMMA, LAMBDA)
    factor = GAMMA * LAMBDA
    series = torch.tensor([(1 - factor ** (T - t)) / (1 - factor) for t in range(T)], dtype=torch.float64)
    torch.testing.assert_close(advantages, series[None, :, None].expand(B, T, E))
    torch.testing.assert_close(targets, advantages)
    # Control: the series of gamma alone, which an estimate without lambda would give, is another one.
    assert (advantages[0, 0, 0] - (1 - GAMMA**T) / (1 - GAMMA)).abs() > 1


def test_advantages_equal_the_recursion_from_the_end() -> None:
    rewards, values = _draw(B, T, E), _draw(B, T, E, seed=1)
    advantages, targets = generalised_advantages(rewards, values, GAMMA, LAMBDA)
    following, expected = torch.zeros(B, E, dtype=torch.float64), torch.zeros(B, T, E, dtype=torch.float64)
    for t in reversed(range(T)):
        next_value = values[:, t + 1] if t + 1 < T else torch.zeros_like(following)
        following = rewards[:, t] + GAMMA * next_value - values[:, t] + GAMMA * LAMBDA * following
        expected[:, t] = following
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(targets, expected + values)


@pytest.mark.parametrize("lam", [0.0, LAMBDA, 1.0])
def test_true_values_leave_no_advantage_whatever_lambda(lam: float) -> None:
    rewards = _draw(B, T, E)
    values = torch.zeros_like(rewards)
    for t in reversed(range(T)):
        values[:, t] = rewards[:, t] + (GAMMA * values[:, t + 1] if t + 1 < T else 0)
    advantages, targets = generalised_advantages(rewards, values, GAMMA, lam)
    torch.testing.assert_close(advantages, torch.zeros_like(rewards))
    torch.testing.assert_close(targets, values)
    # Control: values that expect something after the last pull are wrong there, since an episode ends with it.
    advantages, _ = generalised_advantages(rewards, values + 1, GAMMA, lam)
    torch.testing.assert_close(advantages[:, -1], torch.full((B, E), -1.0, dtype=torch.float64))


def test_leave_one_out_by_hand() -> None:
    # Two pulls, three episodes; with gamma 1/2 the returns to go are (2, 4, 5) and (2, 0, 6).
    rewards = torch.tensor([[[1.0, 4.0, 2.0], [2.0, 0.0, 6.0]]])
    advantages = leave_one_out_advantages(rewards, gamma=0.5)
    expected = torch.tensor([[[2 - 9 / 2, 4 - 7 / 2, 5 - 6 / 2], [2 - 6 / 2, 0 - 8 / 2, 6 - 2 / 2]]])
    torch.testing.assert_close(advantages, expected)


def test_leave_one_out_baseline_of_an_episode_does_not_know_it() -> None:
    """What a baseline may not do: a reward that an episode alone got moves its own advantage in full."""
    rewards = _draw(1, T, E)
    moved = rewards.clone()
    moved[0, -1, 0] += 1
    change = leave_one_out_advantages(moved, 1.0) - leave_one_out_advantages(rewards, 1.0)
    torch.testing.assert_close(change[0, :, 0], torch.ones(T, dtype=torch.float64))
    torch.testing.assert_close(change[0, :, 1:], torch.full((T, E - 1), -1 / (E - 1), dtype=torch.float64))


def test_next_arm_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 4.0], [1.0, 1.0, 1.0]]).log().view(1, 2, 1, 3)
    labels = torch.tensor([2, 0]).view(1, 2, 1)
    torch.testing.assert_close(
        prediction_nll(ArmHead(3), logits, labels), torch.tensor([(math.log(2) + math.log(3)) / 2])
    )
    torch.testing.assert_close(log_probability(logits, labels)[0, :, 0], -torch.tensor([2.0, 3.0]).log())


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log().view(1, 2, 1, 2)
    skewed = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(entropy(logits), torch.tensor([(skewed + math.log(2)) / 2]))
    torch.testing.assert_close(entropy(_draw(B, T, E, 4)).shape, torch.Size([B]))


def test_losses_of_a_task_are_its_own() -> None:
    """The task axis survives: a batch's losses are each task's alone."""
    logits, advantages = _draw(B, T, E, 4), _draw(B, T, E, seed=1)
    actions = torch.from_numpy(np.random.default_rng(2).integers(4, size=(B, T, E)))

    def all_losses(tasks: slice) -> list[Tensor]:
        log_p = log_probability(logits[tasks], actions[tasks])
        found = [prediction_nll(ArmHead(4), logits[tasks], actions[tasks]), entropy(logits[tasks])]
        found += [policy_gradient_loss(log_p, advantages[tasks], kind) for kind in ("vanilla", "lvc", "dice")]
        return [*found, clipped_loss(log_p, log_p - 0.1 * advantages[tasks], advantages[tasks], 0.2)]

    for together, first, second in zip(
        all_losses(slice(None)), all_losses(slice(0, 1)), all_losses(slice(1, 2)), strict=True
    ):
        torch.testing.assert_close(together, torch.cat([first, second]))


# A two-step problem with two actions: the second step's policy depends on the first action. All four trajectories are
# enumerated, so that expectations are sums.
ACTIONS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
REWARDS = torch.tensor([[0.3, 2.0], [0.3, -1.0], [-0.7, 0.5], [-0.7, 1.5]], dtype=torch.float64)
TO_GO = REWARDS.flip(1).cumsum(1).flip(1)
THETA = torch.tensor([0.4, -0.3, 0.8], dtype=torch.float64)


def _log_p(theta: Tensor) -> Tensor:
    """Log-probability of each step of each trajectory, [4, 2]; curved in theta, which both steps share."""
    first = torch.stack([theta[0] * theta[1], theta[2].sin()]).log_softmax(0)
    given = torch.stack([theta[0].cos() * theta[2], theta[1]])
    second = torch.stack([given, given.flip(0) * theta[0].exp()]).log_softmax(1)
    return torch.stack([first[ACTIONS[:, 0]], second[ACTIONS[:, 0], ACTIONS[:, 1]]], dim=1)


def _expected_return(theta: Tensor) -> Tensor:
    return (_log_p(theta).sum(1).exp() * REWARDS.sum(1)).sum()


def _estimated(estimator: Estimator) -> Callable[[Tensor], Tensor]:
    """What is ascended, averaged over trajectories by probabilities that are not differentiated, as sampling would."""
    weight = _log_p(THETA).sum(1).exp()

    def objective(theta: Tensor) -> Tensor:
        losses = policy_gradient_loss(_log_p(theta).unsqueeze(2), TO_GO.unsqueeze(2), estimator)
        return -(weight * losses * ACTIONS.shape[1]).sum()  # the loss is a mean over pulls, the return a sum

    return objective


def _derivatives(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    gradient = torch.autograd.functional.jacobian(function, THETA)
    hessian = torch.autograd.functional.hessian(function, THETA)
    return gradient, hessian


@pytest.mark.parametrize("estimator", ["vanilla", "lvc", "dice"])
def test_every_estimator_has_the_gradient_of_the_expected_return(estimator: Estimator) -> None:
    expected, _ = _derivatives(_expected_return)
    gradient, _ = _derivatives(_estimated(estimator))
    assert expected.norm() > 0.1
    torch.testing.assert_close(gradient, expected)


def test_only_dice_has_the_hessian_of_the_expected_return() -> None:
    _, expected = _derivatives(_expected_return)
    torch.testing.assert_close(_derivatives(_estimated("dice"))[1], expected)
    # Controls: what the cheaper estimators leave out is not small here.
    for estimator in ("vanilla", "lvc"):
        assert (_derivatives(_estimated(estimator))[1] - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("estimator", ["vanilla", "lvc"])
def test_curvature_of_vanilla_and_of_low_variance_curvature_in_closed_form(estimator: Estimator) -> None:
    """Vanilla keeps advantage * hess log p of each step; lvc adds advantage * (grad log p)(grad log p)^T."""
    weight = _log_p(THETA).sum(1).exp()
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for trajectory in range(4):
        for t in range(2):

            def step(theta: Tensor, trajectory: int = trajectory, t: int = t) -> Tensor:
                return _log_p(theta)[trajectory, t]

            gradient, curvature = _derivatives(step)
            if estimator == "lvc":
                curvature = curvature + torch.outer(gradient, gradient)
            expected += weight[trajectory] * TO_GO[trajectory, t] * curvature
    torch.testing.assert_close(_derivatives(_estimated(estimator))[1], expected)


def test_values_of_lvc_and_dice_do_not_depend_on_the_policy() -> None:
    """The value of lvc and of DiCE is the mean advantage; only their derivatives carry the policy."""
    log_p, advantages = -_draw(B, T, E).abs(), _draw(B, T, E, seed=1)
    torch.testing.assert_close(policy_gradient_loss(log_p, advantages, "lvc"), -advantages.mean((1, 2)))
    torch.testing.assert_close(policy_gradient_loss(log_p, advantages, "dice"), torch.zeros(B, dtype=torch.float64))


def _clipped_gradient(log_ratio: float, advantage: float) -> float:
    log_p = torch.full((1, 1, 1), -1.0 + log_ratio, dtype=torch.float64, requires_grad=True)
    old, advantages = torch.full_like(log_p, -1.0), torch.full_like(log_p, advantage)
    (gradient,) = torch.autograd.grad(clipped_loss(log_p, old.detach(), advantages.detach(), 0.2).sum(), log_p)
    return float(gradient)


def test_clipped_loss_at_ratio_one_has_the_policy_gradient() -> None:
    log_p, advantages = (-_draw(B, T, E).abs()).requires_grad_(), _draw(B, T, E, seed=1)
    (clipped,) = torch.autograd.grad(clipped_loss(log_p, log_p.detach(), advantages, 0.2).sum(), log_p)
    (vanilla,) = torch.autograd.grad(policy_gradient_loss(log_p, advantages, "vanilla").sum(), log_p)
    torch.testing.assert_close(clipped, vanilla)


def test_clipped_loss_has_no_gradient_where_it_is_clipped_and_a_full_one_elsewhere() -> None:
    above, below = math.log(1.3), math.log(0.7)
    assert _clipped_gradient(above, advantage=1.0) == 0
    assert _clipped_gradient(below, advantage=-1.0) == 0
    # A step back towards the old policy is never clipped.
    assert _clipped_gradient(above, advantage=-1.0) == pytest.approx(1.3)
    assert _clipped_gradient(below, advantage=1.0) == pytest.approx(-0.7)
    assert _clipped_gradient(math.log(1.1), advantage=1.0) == pytest.approx(-1.1)
