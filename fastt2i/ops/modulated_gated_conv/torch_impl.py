"""Modulation after a gated convolution, in PyTorch: the convolution's own dispatch chooses its form."""

from __future__ import annotations

import torch
from torch import Tensor

from fastt2i.devices.capabilities import VECTOR_REGISTER
from fastt2i.ops.gated_conv.functional import gated_conv2d, upsample_gated_conv2d
from fastt2i.ops.modulated_gated_conv import reference

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
    """See `reference.modulated_gated_conv2d`."""
    y = gated_conv2d(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, activation=activation,
        negative_slope=negative_slope,
    )  # fmt: skip
    return reference.finish(modulate(y, scale, shift), residual, gain)


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
    """See `reference.modulated_upsample_gated_conv2d`."""
    y = upsample_gated_conv2d(x, weight, bias, activation=activation, negative_slope=negative_slope)
    return reference.finish(modulate(y, scale, shift), residual, gain)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * x + shift of x (B, C, H, W) with scale and shift (B, C)."""
    short = x.shape[1] * x.element_size() < VECTOR_REGISTER
    if short and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Where channels that lie side by side do not fill a vector register, torch adds them one by one: with 24 in
        # bfloat16, five times as slow as with 32. A row of pixels fills many.
        width = x.shape[3]
        row_scale, row_shift = (each.repeat(1, width)[:, None] for each in (scale, shift))
        rows = torch.addcmul(row_shift, x.permute(0, 2, 3, 1).flatten(2), row_scale)
        return rows.unflatten(2, (width, -1)).permute(0, 3, 1, 2)
    return reference.modulate(x, scale, shift)
