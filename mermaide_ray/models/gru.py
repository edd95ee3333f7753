"""A GRU over a whole episode as one differentiable operation, with one set of weights per task.

Autograd over a Python loop records some ten small kernels per pull, and a second-order meta-gradient differentiates
them twice. Here the recurrence is a primitive with a hand-written backward pass: the only loops over time are the
forward scan and one *linear* scan for the adjoint of the hidden state; all else (gate derivatives, weight gradients) is
done for all pulls at once. The linear scan has a hand-written backward pass too, and the gates are recomputed from the
scan's output in plain differentiable operations, so gradients of gradients are exact. Third derivatives are not
supported.

Shapes: B tasks, T pulls, E episodes, H hidden; gates in the order reset, update, candidate. Weights carry a leading
task axis; weights that all tasks share are passed expanded (stride 0), which turns B small matrix products into one.

Source: Cho et al., arXiv 1406.1078, with the reset gate after the matrix product as in cuDNN; no bias inside the reset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gru_cell(projected: Tensor, hidden: Tensor, recurrent: Tensor) -> Tensor:
    """One step.

    Args:
        projected: Input times input weights plus bias, float [B, E, 3H].
        hidden: float [B, E, H].
        recurrent: Weights, float [B, H, 3H].

    Returns:
        The next hidden state, float [B, E, H].
    """
    size = hidden.shape[-1]
    product = _product(hidden, recurrent)
    gates = (projected[..., : 2 * size] + product[..., : 2 * size]).sigmoid_()
    candidate = _tanh_(torch.addcmul(projected[..., 2 * size :], gates[..., :size], product[..., 2 * size :]))
    return candidate.lerp(hidden, gates[..., size:])


def gru_scan(projected: Tensor, initial: Tensor, recurrent: Tensor) -> Tensor:
    """All steps; twice differentiable in every argument.

    Args:
        projected: Inputs times input weights plus bias, float [B, T, E, 3H].
        initial: Hidden state before the first step, float [B, E, H].
        recurrent: Weights, float [B, H, 3H].

    Returns:
        Hidden state after each step, float [B, T, E, H].
    """
    hidden: Tensor = _GRUScan.apply(projected, initial, recurrent)  # type: ignore[no-untyped-call]
    return hidden


def _tanh_(x: Tensor) -> Tensor:
    """tanh in place, by the logistic function: Torch's own is 4 to 8 times slower on a CPU (float32, AVX-512)."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


def _product(x: Tensor, weights: Tensor) -> Tensor:
    """x [B, E, n] times weights [B, n, m], as one product where all tasks share the weights."""
    if weights.stride(0) == 0 or weights.shape[0] == 1:
        return (x.reshape(-1, x.shape[-1]) @ weights[0]).view(*x.shape[:-1], weights.shape[-1])
    return torch.bmm(x, weights)


def _before(hidden: Tensor, initial: Tensor) -> Tensor:
    """The hidden state that each step started from, [B, T, E, H]."""
    return torch.cat([initial.unsqueeze(1), hidden[:, :-1]], dim=1)


def _outer_sum(x: Tensor, y: Tensor) -> Tensor:
    """Sum over time and episodes of the outer products: [B, T, E, n], [B, T, E, m] -> [B, n, m]."""
    return torch.bmm(x.flatten(1, 2).transpose(1, 2), y.flatten(1, 2))


class _GRUScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, initial: Tensor, recurrent: Tensor) -> Tensor:
        batch, time, episodes, width = projected.shape
        size = width // 3
        gates = projected.new_empty(batch, time, episodes, 2 * size)
        candidate = projected.new_empty(batch, time, episodes, size)
        product_n = torch.empty_like(candidate)
        hidden = torch.empty_like(candidate)
        state = initial
        for t in range(time):
            product = _product(state, recurrent)
            gate = torch.add(projected[:, t, :, : 2 * size], product[..., : 2 * size], out=gates[:, t]).sigmoid_()
            product_n[:, t] = product[..., 2 * size :]
            new = _tanh_(
                torch.addcmul(
                    projected[:, t, :, 2 * size :], gate[..., :size], product[..., 2 * size :], out=candidate[:, t]
                )
            )
            state = torch.lerp(new, state, gate[..., size:])
            hidden[:, t] = state
        ctx.save_for_backward(projected, initial, recurrent, hidden)
        ctx.cache = (gates, candidate, product_n)
        return hidden

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projected, initial, recurrent, hidden = ctx.saved_tensors
        size = hidden.shape[-1]
        before = _before(hidden, initial)
        if torch.is_grad_enabled():  # create_graph: the gates as differentiable functions of the scan's output
            product = torch.bmm(before.flatten(1, 2), recurrent).view(projected.shape)
            gates = (projected[..., : 2 * size] + product[..., : 2 * size]).sigmoid()
            product_n = product[..., 2 * size :]
            candidate = 2 * (2 * torch.addcmul(projected[..., 2 * size :], gates[..., :size], product_n)).sigmoid() - 1
        else:
            gates, candidate, product_n = ctx.cache
        reset, update = gates[..., :size], gates[..., size:]
        slope_n = (1 - update) * (1 - candidate * candidate)
        slope_z = (before - candidate) * (update * (1 - update))
        slope_r = slope_n * product_n * (reset * (1 - reset))
        # Derivative of the next state by the recurrent product's three parts; elementwise, so [B, T, E, 3, H].
        slopes = torch.stack([slope_r, slope_z, slope_n * reset], dim=-2)
        adjoint, d_initial = _AdjointScan.apply(update, slopes, recurrent, grads[0])  # type: ignore[no-untyped-call]
        d_product = (slopes * adjoint.unsqueeze(-2)).flatten(-2)
        d_projected = torch.cat([d_product[..., : 2 * size], slope_n * adjoint], dim=-1)
        return d_projected, d_initial, _outer_sum(before, d_product)


class _AdjointScan(torch.autograd.Function):
    """The adjoint of the hidden state, backwards in time; linear in itself.

    adjoint[t-1] = external[t-1] + update[t] * adjoint[t] + (slopes[t] * adjoint[t]) @ recurrent^T
    """

    @staticmethod
    def forward(ctx: Any, update: Tensor, slopes: Tensor, recurrent: Tensor, external: Tensor) -> tuple[Tensor, Tensor]:
        batch, time, episodes, size = update.shape
        adjoint = torch.empty_like(external, memory_format=torch.contiguous_format)
        transposed = recurrent.transpose(1, 2)
        carried = external.new_zeros(batch, episodes, size)
        for t in range(time - 1, -1, -1):
            current = torch.add(external[:, t], carried, out=adjoint[:, t])
            weighted = (slopes[:, t] * current.unsqueeze(-2)).flatten(-2)
            carried = _product(weighted, transposed).addcmul_(update[:, t], current)
        ctx.save_for_backward(update, slopes, recurrent, adjoint)
        return adjoint, carried

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        update, slopes, recurrent, adjoint = ctx.saved_tensors
        d_adjoint, d_carried = grads
        before = torch.empty_like(adjoint)  # the adjoint of the adjoint, one step earlier
        products = torch.empty_like(slopes)
        d_external = torch.empty_like(adjoint)
        state = d_carried
        for t in range(update.shape[1]):
            before[:, t] = state
            product = _product(state, recurrent).view(slopes[:, t].shape)
            products[:, t] = product
            state = torch.addcmul(d_adjoint[:, t], update[:, t], state)
            state += (slopes[:, t] * product).sum(-2)
            d_external[:, t] = state
        wide = adjoint.unsqueeze(-2)
        d_recurrent = _outer_sum(before, (slopes * wide).flatten(-2))
        return before * adjoint, products * wide, d_recurrent, d_external
