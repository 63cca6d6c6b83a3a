"""The definitions of the gated convolutions in readable PyTorch, differentiable any number of times."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops.gate.reference import gate


def gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    groups: int,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """The gate of one convolution to 2C channels."""
    return gate(F.conv2d(x, weight, bias, stride, padding, dilation, groups), activation, negative_slope)


def upsample_gated_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
) -> Tensor:
    """The gated convolution of the nearest-neighbour 2x upsampling."""
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    return gated_conv2d(upsampled, weight, bias, 1, 1, 1, 1, activation, negative_slope)
