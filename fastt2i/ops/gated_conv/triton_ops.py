"""Custom operators of the gated convolutions on Triton kernels, with fake implementations and autograd formulas.

Each returns (y, pre), pre = [f, g] being what its backward starts from; x, the weight and pre are all that is kept. The
backward is that of the gate, which has a formula for its own derivative, and one `aten.convolution_backward`, which
torch differentiates; that pre is an output carries second derivatives on to x and the weight.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.kernels import gated_conv as kernels
from fastt2i.kernels import transposed_weight as weight_kernels
from fastt2i.kernels.gate import forward as gate_forward
from fastt2i.kernels.gate import like
from fastt2i.kernels.tiles import CONFIGS
from fastt2i.ops.gate.triton_ops import gate_backward

#: Tiles of the one-kernel form by name; any other form is torch's convolution, and the gate in a kernel of its own.
CONFIG_BY_NAME = {config.name: config for config in CONFIGS}


@torch.library.custom_op("fastt2i::gated_conv2d", mutates_args=())
def gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    negative_slope: float,
    form: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, Cout, H', W') and pre (B, 2 Cout, H', W'), empty unless kept."""
    if form in CONFIG_BY_NAME:
        config = CONFIG_BY_NAME[form]
        return kernels.forward(
            x, weight, bias, stride, padding, dilation, activation, negative_slope, config, keep_pre
        )  # fmt: skip
    return _gated(F.conv2d(x, weight, bias, stride, padding, dilation, groups), activation, negative_slope, keep_pre)


@torch.library.custom_op("fastt2i::upsample_gated_conv2d", mutates_args=())
def upsample_gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    form: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, Cout, 2H, 2W) and pre (B, 2 Cout, 2H, 2W), empty unless kept."""
    if form in CONFIG_BY_NAME:
        packed = weight_kernels.packed_phases(weight)
        return kernels.upsample_forward(x, packed, bias, activation, negative_slope, CONFIG_BY_NAME[form], keep_pre)
    pre = F.conv_transpose2d(x, weight_kernels.forward(weight), bias, stride=2, padding=1)
    return _gated(pre, activation, negative_slope, keep_pre)


@torch.library.custom_op("fastt2i::transposed_weight", mutates_args=())
def transposed_weight(weight: Tensor) -> Tensor:
    """The kernel (I, O, 4, 4) of the transposed convolution that is a 3x3 one (O, I, 3, 3) after upsampling."""
    return weight_kernels.forward(weight)


@torch.library.custom_op("fastt2i::transposed_weight_backward", mutates_args=())
def transposed_weight_backward(dtransposed: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the 3x3 kernel, of which only shape, strides and dtype are read."""
    return weight_kernels.backward(dtransposed, weight)


def _gated(pre: Tensor, activation: str, negative_slope: float, keep_pre: bool) -> tuple[Tensor, Tensor]:
    return gate_forward(pre, activation, negative_slope), pre if keep_pre else pre.new_empty(0)


@gated_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    negative_slope: float,
    form: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    if form not in CONFIG_BY_NAME:
        return _fake(F.conv2d(x, weight, bias, stride, padding, dilation, groups), keep_pre)
    return _fake(like(x, len(weight), kernels.output_size(x, weight, stride, padding, dilation)), keep_pre)


@upsample_gated_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    form: str,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    if form not in CONFIG_BY_NAME:
        transposed = weight_kernels.transposed_like(weight)
        return _fake(F.conv_transpose2d(x, transposed, bias, stride=2, padding=1), keep_pre)
    return _fake(like(x, len(weight), (2 * x.shape[2], 2 * x.shape[3])), keep_pre)


@transposed_weight.register_fake
def _(weight: Tensor) -> Tensor:
    return weight_kernels.transposed_like(weight)


@transposed_weight_backward.register_fake
def _(dtransposed: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _fake(pre: Tensor, keep_pre: bool) -> tuple[Tensor, Tensor]:
    return like(pre, pre.shape[1] // 2), pre if keep_pre else pre.new_empty(0)


def _setup_gated_conv2d(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.stride, ctx.padding, ctx.dilation, ctx.groups, activation, negative_slope, *_ = inputs
    _save(ctx, x, weight, bias, activation, negative_slope, output[1])


def _setup_upsampling(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, activation, negative_slope, *_ = inputs
    _save(ctx, x, weight, bias, activation, negative_slope, output[1])


def _save(
    ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float, pre: Tensor
) -> None:
    ctx.set_materialize_grads(False)
    ctx.biased, ctx.activation, ctx.negative_slope = bias is not None, activation, negative_slope
    ctx.save_for_backward(x, weight, pre)


def _gated_conv2d_backward(ctx: Any, dy: Tensor | None, dpre: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, pre = ctx.saved_tensors
    dpre, dbias = _gate_backward(ctx, dy, dpre, pre)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dpre, x, weight, None, ctx.stride, ctx.padding, ctx.dilation, False, [0, 0], ctx.groups, _output_mask(ctx)
    )
    return dx, dweight, dbias, *[None] * 8


def _upsampling_backward(ctx: Any, dy: Tensor | None, dpre: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, pre = ctx.saved_tensors
    dpre, dbias = _gate_backward(ctx, dy, dpre, pre)
    dx, dtransposed, _ = torch.ops.aten.convolution_backward(
        dpre, x, transposed_weight(weight), None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, _output_mask(ctx)
    )
    dweight = None if dtransposed is None else transposed_weight_backward(dtransposed, weight)
    return dx, dweight, dbias, *[None] * 4


def _output_mask(ctx: Any) -> list[bool]:
    return [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]


def _gate_backward(ctx: Any, dy: Tensor | None, dpre: Tensor | None, pre: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of pre and of the bias; dpre is that of the operator's second result, if there is one."""
    own, dbias = None, None
    if dy is not None:
        own, dbias = gate_backward(dy, pre, ctx.activation, ctx.negative_slope)
    if dpre is not None:
        extra = dpre.float().sum(dim=(0, 2, 3))
        own, dbias = (dpre, extra) if own is None or dbias is None else (own + dpre, dbias + extra)
    assert own is not None and dbias is not None  # autograd does not ask without an upstream gradient
    return own, dbias.to(pre.dtype) if ctx.biased else None


# Both are linear, and each is the other's derivative.


def _setup_transposed_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _transposed_weight_autograd(ctx: Any, dtransposed: Tensor) -> Tensor:
    return transposed_weight_backward(dtransposed, *ctx.saved_tensors)


def _transposed_weight_backward_autograd(ctx: Any, dweight: Tensor) -> tuple[Tensor, None]:
    return transposed_weight(dweight), None


transposed_weight.register_autograd(_transposed_weight_autograd, setup_context=_setup_transposed_weight)
transposed_weight_backward.register_autograd(_transposed_weight_backward_autograd)
gated_conv2d.register_autograd(_gated_conv2d_backward, setup_context=_setup_gated_conv2d)
upsample_gated_conv2d.register_autograd(_upsampling_backward, setup_context=_setup_upsampling)
