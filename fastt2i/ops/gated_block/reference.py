"""The definition in readable PyTorch, differentiable any number of times."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops.modulated_gated_conv.reference import modulated_gated_conv2d, modulated_upsample_gated_conv2d


def modulated_gated_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor | None,
    residual_scale: Tensor,
    residual_shift: Tensor,
    gain: float,
    activation: str,
    negative_slope: float,
    output_slope: float,
) -> Tensor:
    """leaky_relu(gain * (u + the modulated gated convolution of u)), u being the modulated upsampling one of x."""
    u = modulated_upsample_gated_conv2d(x, weight, bias, scale, shift, None, 1.0, activation, negative_slope)
    y = modulated_gated_conv2d(
        u, residual_weight, residual_bias, residual_scale, residual_shift, u, gain, (1, 1), (1, 1), (1, 1), 1,
        activation, negative_slope,
    )  # fmt: skip
    return finish(y, output_slope)


def finish(y: Tensor, output_slope: float) -> Tensor:
    """The leaky ReLU of y, which is overwritten; of slope 1, y itself."""
    return y if output_slope == 1 else F.leaky_relu_(y, output_slope)
