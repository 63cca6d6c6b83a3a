"""The definitions in readable PyTorch, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor

from fastt2i.ops.gated_conv import reference as gated_conv

Pair = tuple[int, int]


def modulated_gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """gain * (residual + scale * gated + shift) with the gated convolution of x."""
    y = gated_conv.gated_conv2d(x, weight, bias, stride, padding, dilation, groups, activation, negative_slope)
    return _modulated(y, scale, shift, residual, gain)


def modulated_upsample_gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """The same with the gated convolution of the nearest-neighbour 2x upsampling of x."""
    y = gated_conv.upsample_gated_conv2d(x, weight, bias, activation, negative_slope)
    return _modulated(y, scale, shift, residual, gain)


def _modulated(y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, gain: float) -> Tensor:
    y = torch.addcmul(shift[:, :, None, None], scale[:, :, None, None], y)
    y = y if residual is None else residual + y
    return y if gain == 1 else gain * y
