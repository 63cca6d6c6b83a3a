"""A generator's block by its two operators, each of which is dispatched by itself."""

from __future__ import annotations

from torch import Tensor

from fastt2i.ops.gated_block import reference
from fastt2i.ops.modulated_gated_conv.functional import modulated_gated_conv2d, modulated_upsample_gated_conv2d


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
    """See `reference.modulated_gated_block`."""
    u = modulated_upsample_gated_conv2d(
        x, weight, bias, scale, shift, activation=activation, negative_slope=negative_slope
    )
    y = modulated_gated_conv2d(
        u, residual_weight, residual_bias, residual_scale, residual_shift, residual=u, gain=gain, padding=1,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip
    return reference.finish(y, output_slope)
