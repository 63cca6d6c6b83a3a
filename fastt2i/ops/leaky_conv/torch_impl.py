"""The convolution and what follows it in PyTorch, with little saved for the backward pass, compiled too."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops.leaky_conv import reference


def leaky_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_weight: Tensor | None,
    shortcut_bias: Tensor | None,
    gain: float,
    stride: tuple[int, int],
    padding: tuple[int, int],
    negative_slope: float,
    pool: bool,
) -> tuple[Tensor, ...]:
    """See `reference.leaky_conv2d`."""
    y = leaky_relu(F.conv2d(x, weight, bias, stride, padding), negative_slope)
    return reference.finish(y, shortcut, shortcut_weight, shortcut_bias, gain, pool)


def leaky_relu(x: Tensor, negative_slope: float) -> Tensor:
    """The leaky ReLU of x, which is overwritten; negative_slope is positive.

    Its derivative follows from its value, which the next layer saves anyway; out of place PyTorch saves x besides, and
    compiled code a mask of where x is positive, to write which took a CPU several times as long as the function.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return _LeakyReLU.apply(x, negative_slope)
    return F.leaky_relu_(x, negative_slope)


class _LeakyReLU(torch.autograd.Function):
    """For a compiler, which would save the mask even where no layer saves the value, as that is a byte less.

    Here the derivative compares the value with a zero made of the gradient, which exists in the backward pass only. (Of
    a zero made by a product with 0 the compiler would see that it is constant.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, negative_slope: float) -> Tensor:
        value = F.leaky_relu(x, negative_slope)
        ctx.save_for_backward(value)
        ctx.negative_slope = negative_slope
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return torch.where(value > upstream.abs().clamp(max=0), upstream, ctx.negative_slope * upstream), None
