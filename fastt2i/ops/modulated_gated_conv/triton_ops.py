"""The custom operator of the modulated gate on Triton kernels, with fake implementations and an autograd formula.

Its convolution is torch's own, without the bias, which the gate's kernel adds. The first derivative is one kernel;
where it is to be differentiated in turn, it is computed by operators that have derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastt2i.kernels import modulated_gate as kernels
from fastt2i.kernels.gate import like, with_one_position_stride
from fastt2i.ops.gate.triton_ops import gate, gate_backward


@torch.library.custom_op("fastt2i::modulated_gate", mutates_args=())
def modulated_gate(
    pre: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """gain * (residual + scale * gate(pre + bias) + shift), (B, C, H, W), of pre (B, 2C, H, W)."""
    pre, bias = with_one_position_stride(pre), None if bias is None else bias.contiguous()
    residual = None if residual is None else with_one_position_stride(residual)
    return kernels.forward(pre, bias, scale, shift, residual, gain, activation, negative_slope)[0]


@torch.library.custom_op("fastt2i::modulated_gate_backward", mutates_args=())
def modulated_gate_backward(
    dy: Tensor,
    signs: Tensor | None,
    more: Tensor | None,
    pre: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    has_residual: bool,
    gain: float,
    activation: str,
    negative_slope: float,
    output_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of pre, residual (empty without one), scale and shift (B, 2, C), and bias.

    signs: of a leaky ReLU of `output_slope` behind it all, or None for none; more: what comes to the sum besides
    gain * dy, or None.
    """
    dy, pre = with_one_position_stride(dy), with_one_position_stride(pre)
    more = None if more is None else with_one_position_stride(more)
    bias = None if bias is None else bias.contiguous()
    return kernels.backward(
        dy, signs, more, pre, bias, scale, has_residual, gain, activation, negative_slope, output_slope
    )


@modulated_gate.register_fake
def _(
    pre: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    activation: str,
    negative_slope: float,
) -> Tensor:
    return like(pre, pre.shape[1] // 2)


@modulated_gate_backward.register_fake
def _(
    dy: Tensor,
    signs: Tensor | None,
    more: Tensor | None,
    pre: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    has_residual: bool,
    gain: float,
    activation: str,
    negative_slope: float,
    output_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return kernels.gradients(pre, scale, has_residual)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pre, bias, scale, _, residual, ctx.gain, ctx.activation, ctx.negative_slope = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(pre, bias, scale)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    pre, bias, scale = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (*_differentiable_backward(ctx, dy, pre, bias, scale), None, None, None)
    has_residual = ctx.needs_input_grad[4]
    dpre, dresidual, dmodulation, dbias = modulated_gate_backward(
        dy, None, None, pre, bias, scale, has_residual, ctx.gain, ctx.activation, ctx.negative_slope, 1.0
    )
    dscale, dshift = dmodulation.unbind(1)
    return (
        dpre, None if bias is None else dbias, dscale, dshift, dresidual if has_residual else None, None, None, None,
    )  # fmt: skip


def _differentiable_backward(
    ctx: Any, dy: Tensor, pre: Tensor, bias: Tensor | None, scale: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of pre, bias, scale, shift and residual, by operators that have derivatives."""
    setting = ctx.activation, ctx.negative_slope
    biased = pre if bias is None else pre + bias[:, None, None]
    dy = ctx.gain * dy
    dscale = (dy * gate(biased, *setting)).float().sum(dim=(2, 3)).to(scale.dtype)
    dshift = dy.float().sum(dim=(2, 3)).to(scale.dtype)
    dpre, dbias = gate_backward(dy * scale[:, :, None, None], biased, *setting)
    return dpre, None if bias is None else dbias.to(bias.dtype), dscale, dshift, dy if ctx.has_residual else None


modulated_gate.register_autograd(_backward, setup_context=_setup)
