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
    return finish(modulate(y, scale, shift), residual, gain)


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
    return finish(modulate(y, scale, shift), residual, gain)


def modulate(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * y + shift of y (B, C, H, W) with scale and shift (B, C)."""
    return torch.addcmul(shift[:, :, None, None], y, scale[:, :, None, None])


def finish(y: Tensor, residual: Tensor | None, gain: float) -> Tensor:
    """gain * (residual + y)."""
    y = y if residual is None else residual + y
    return y if gain == 1 else y * gain
