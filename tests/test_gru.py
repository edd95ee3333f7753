"""The GRU over an episode: values, gradients, and gradients of gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mermaide_ray.models.gru import gru_cell, gru_scan

B, T, E, H = 2, 3, 2, 2


def _inputs(tasks: int = B) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()

    return draw(B, T, E, 3 * H), draw(B, E, H), draw(tasks, H, 3 * H)


def test_scan_equals_torchs_gru() -> None:
    """Torch's own GRU, with its recurrent bias at zero, is the same function."""
    projected, initial, recurrent = _inputs()
    for task in range(B):
        reference = nn.GRU(3 * H, H, bias=False, dtype=torch.float64)
        with torch.no_grad():
            reference.weight_ih_l0.copy_(torch.eye(3 * H))
            reference.weight_hh_l0.copy_(recurrent[task].T)
            expected, _ = reference(projected[task], initial[task].unsqueeze(0))
        torch.testing.assert_close(gru_scan(projected, initial, recurrent)[task], expected)


def test_scan_equals_one_cell_after_another() -> None:
    projected, state, recurrent = _inputs()
    scanned = gru_scan(projected, state, recurrent)
    for t in range(T):
        state = gru_cell(projected[:, t], state, recurrent)
        torch.testing.assert_close(scanned[:, t], state)


def test_first_and_second_derivatives_against_finite_differences() -> None:
    inputs = _inputs()
    assert torch.autograd.gradcheck(gru_scan, inputs)
    assert torch.autograd.gradgradcheck(gru_scan, inputs)


def test_shared_weights_have_the_derivatives_of_equal_weights() -> None:
    """The short cut for expanded weights changes neither the first nor the second derivative."""
    projected, initial, one = _inputs(tasks=1)

    def second_order(recurrent: Tensor) -> tuple[Tensor, Tensor]:
        hidden = gru_scan(projected, initial, recurrent)
        (gradient,) = torch.autograd.grad(hidden.square().sum(), recurrent, create_graph=True)
        return gradient, torch.autograd.grad(gradient.pow(3).sum(), projected)[0]

    expanded = second_order(one.expand(B, H, 3 * H))
    copied = second_order(one.repeat(B, 1, 1))
    for mine, theirs in zip(expanded, copied, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.gradgradcheck(
        lambda p, h, w: gru_scan(p, h, w.expand(B, H, 3 * H)), (projected, initial, one)
    )
