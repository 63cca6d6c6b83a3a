"""The custom operator of what stands behind a block's first convolution, with an autograd formula.

The block's output sends a gradient to what lies between its convolutions by two ways, through the second convolution
and past it. As one operator has both, the backward kernel of the first gate adds them as it reads them; between two
operators they would be written and added by passes of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.kernels import modulated_gate as kernels
from fastt2i.kernels.gate import with_one_position_stride
from fastt2i.ops.convolution import Steps, conv2d, conv2d_backward
from fastt2i.ops.modulated_gated_conv.triton_ops import modulated_gate, modulated_gate_backward

#: Of the second convolution.
SAME_SIZE = Steps(padding=(1, 1))


@torch.library.custom_op("fastt2i::gated_block", mutates_args=())
def gated_block(
    pre: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    residual_bias: Tensor | None,
    residual_scale: Tensor,
    residual_shift: Tensor,
    gain: float,
    activation: str,
    negative_slope: float,
    output_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """leaky_relu(gain * (u + the modulated gated convolution of u)), (B, C, H, W), u being the modulated gate of pre.

    What the derivatives need follows: u, the second convolution's output (B, 2C, H, W), and the signs of the first.
    """
    setting = activation, negative_slope
    u, _ = kernels.forward(with_one_position_stride(pre), _dense(bias), scale, shift, None, 1.0, *setting)
    residual_pre = F.conv2d(u, weight, None, *SAME_SIZE)
    y, signs = kernels.forward(
        with_one_position_stride(residual_pre), _dense(residual_bias), residual_scale, residual_shift, u, gain,
        *setting, output_slope,
    )  # fmt: skip
    return y, u, residual_pre, signs


@gated_block.register_fake
def _(
    pre: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    residual_bias: Tensor | None,
    residual_scale: Tensor,
    residual_shift: Tensor,
    gain: float,
    activation: str,
    negative_slope: float,
    output_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    u, _ = kernels.outputs(with_one_position_stride(pre), 1.0)
    residual_pre = F.conv2d(u, weight, None, *SAME_SIZE)
    y, signs = kernels.outputs(with_one_position_stride(residual_pre), output_slope)
    return y, u, residual_pre, signs


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *given, ctx.gain, ctx.activation, ctx.negative_slope, ctx.output_slope = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros for those would be passes of their own
    ctx.save_for_backward(*given, *output[1:])


def _backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 12
    *given, u, residual_pre, signs = ctx.saved_tensors
    if torch.is_grad_enabled():
        return (*_differentiable_backward(ctx, dy, *given), None, None, None, None)
    pre, bias, scale, _, weight, residual_bias, residual_scale, _ = given
    setting = ctx.gain, ctx.activation, ctx.negative_slope, ctx.output_slope
    there = signs if ctx.output_slope != 1 else None
    dresidual_pre, _, dresidual_modulation, dresidual_bias = modulated_gate_backward(
        dy, there, None, residual_pre, residual_bias, residual_scale, False, *setting
    )
    du, dweight, _ = conv2d_backward(dresidual_pre, u, weight, SAME_SIZE, (True, ctx.needs_input_grad[4], False))
    dpre, _, dmodulation, dbias = modulated_gate_backward(dy, there, du, pre, bias, scale, False, *setting)
    return (
        dpre, None if bias is None else dbias, *dmodulation.unbind(1), dweight,
        None if residual_bias is None else dresidual_bias, *dresidual_modulation.unbind(1), None, None, None, None,
    )  # fmt: skip


def _differentiable_backward(ctx: Any, dy: Tensor, *given: Any) -> list[Tensor | None]:
    """The gradients of what was given, by operators that have derivatives."""
    pre, bias, scale, shift, weight, residual_bias, residual_scale, residual_shift = given
    setting = ctx.activation, ctx.negative_slope
    u = modulated_gate(pre, bias, scale, shift, None, 1.0, *setting)
    residual_pre = conv2d(u, weight, None, SAME_SIZE)
    y = modulated_gate(residual_pre, residual_bias, residual_scale, residual_shift, u, ctx.gain, *setting)
    wanted = [x for x, asked in zip(given, ctx.needs_input_grad, strict=False) if asked]
    found = iter(torch.autograd.grad(F.leaky_relu(y, ctx.output_slope), wanted, dy, create_graph=True))
    return [next(found) if asked else None for asked in ctx.needs_input_grad[: len(given)]]


gated_block.register_autograd(_backward, setup_context=_setup)


def _dense(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()
