"""Custom operators of the Triton gate: fake implementations for tracing, and autograd formulas of both orders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastt2i.kernels import gate as kernels
from fastt2i.kernels.gate import with_one_position_stride


@torch.library.custom_op("fastt2i::gate", mutates_args=())
def gate(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f) * sigmoid(g) of pre (B, 2C, ...)."""
    return kernels.forward(with_one_position_stride(pre), activation, negative_slope)


@torch.library.custom_op("fastt2i::gate_backward", mutates_args=())
def gate_backward(dy: Tensor, pre: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor]:
    """The gradients of pre, and of a bias that was added to it (float32)."""
    return kernels.backward(with_one_position_stride(dy), with_one_position_stride(pre), activation, negative_slope)


@torch.library.custom_op("fastt2i::gate_backward_backward", mutates_args=())
def gate_backward_backward(
    ddpre: Tensor, dy: Tensor, pre: Tensor, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """The gradients of dy and pre, given that of the dpre that `gate_backward` returns."""
    return kernels.backward_backward(
        with_one_position_stride(ddpre),
        with_one_position_stride(dy),
        with_one_position_stride(pre),
        activation,
        negative_slope,
    )


@gate.register_fake
def _(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    return kernels.like(pre, pre.shape[1] // 2)


@gate_backward.register_fake
def _(dy: Tensor, pre: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor]:
    return kernels.like(pre, pre.shape[1]), pre.new_empty(pre.shape[1], dtype=torch.float32)


@gate_backward_backward.register_fake
def _(ddpre: Tensor, dy: Tensor, pre: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor]:
    return kernels.like(pre, dy.shape[1]), kernels.like(pre, pre.shape[1])


def _setup_gate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pre, ctx.activation, ctx.negative_slope = inputs
    ctx.save_for_backward(pre)


def _gate_autograd(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    (pre,) = ctx.saved_tensors
    return gate_backward(dy, pre, ctx.activation, ctx.negative_slope)[0], None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dy, pre, ctx.activation, ctx.negative_slope = inputs
    ctx.save_for_backward(dy, pre)


def _backward_autograd(ctx: Any, ddpre: Tensor, ddbias: Tensor) -> tuple[Tensor, Tensor, None, None]:
    dy, pre = ctx.saved_tensors
    # The bias's gradient is the sum of dpre over all positions, so what comes back for it goes to each of them.
    spread = ddbias.to(ddpre.dtype).reshape(1, -1, *[1] * (pre.ndim - 2))
    return *gate_backward_backward(ddpre + spread, dy, pre, ctx.activation, ctx.negative_slope), None, None


gate.register_autograd(_gate_autograd, setup_context=_setup_gate)
gate_backward.register_autograd(_backward_autograd, setup_context=_setup_backward)
