"""The definition in readable PyTorch, differentiable any number of times."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
    """y, and with `pool` its average pooling by 2; y = gain * (leaky_relu(convolution of x) + 1x1 convolution of
    shortcut)."""
    y = F.leaky_relu_(F.conv2d(x, weight, bias, stride, padding), negative_slope)
    return finish(y, shortcut, shortcut_weight, shortcut_bias, gain, pool)


def finish(
    y: Tensor,
    shortcut: Tensor | None,
    shortcut_weight: Tensor | None,
    shortcut_bias: Tensor | None,
    gain: float,
    pool: bool,
) -> tuple[Tensor, ...]:
    """gain * (y + 1x1 convolution of shortcut), and with `pool` its average pooling by 2."""
    if shortcut is not None and shortcut_weight is not None:
        y = y + F.conv2d(shortcut, shortcut_weight, shortcut_bias)
    if gain != 1:
        y = y * gain
    return (y, F.avg_pool2d(y, 2)) if pool else (y,)
