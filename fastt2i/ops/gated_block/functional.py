"""A generator's block of two modulated gated convolutions: the public function."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

import fastt2i.ops.gated_block.implementations  # noqa: F401  registers them
from fastt2i.ops.autocast import cast_for_autocast
from fastt2i.ops.checks import check_constants, check_positive, check_tensors
from fastt2i.ops.dispatch.registry import make_call, run
from fastt2i.ops.gated_conv.checks import check_upsample_gated_conv2d
from fastt2i.ops.gated_conv.functional import bias_key
from fastt2i.ops.modulated_gated_conv.checks import check_batch, check_modulation
from fastt2i.ops.overrides import overridable

OP = "modulated_gated_block"


class ModulatedConv(NamedTuple):
    """A gated 3x3 convolution and what its output is scaled and shifted by: weight (2 * Cout, Cin, 3, 3), bias
    (2 * Cout,) or None, scale and shift (B, Cout)."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    shift: Tensor


@overridable
def modulated_gated_block(
    x: Tensor,
    upsampling: ModulatedConv,
    residual: ModulatedConv,
    *,
    gain: float = 1.0,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    output_slope: float = 1.0,
    impl: str | None = None,
) -> Tensor:
    """A generator's block: an upsampling gated convolution, then one that is added to what it is given.

        u = modulated_upsample_gated_conv2d(x, *upsampling)
        y = leaky_relu(modulated_gated_conv2d(u, *residual, residual=u, gain=gain, padding=1), output_slope)

    On a GPU what stands behind each convolution is one pass over its output, and one in the backward, which also adds
    the two gradients that u has. Under autocast the inputs are cast to the region's dtype.

    Args:
        x: (B, Cin, H, W) floating point, in any memory format; channels-last is the fast one.
        upsampling, residual: the convolutions, from Cin to Cout channels and from Cout to Cout.
        gain: a number.
        activation, negative_slope: of both, as of `gated_conv2d`.
        output_slope: of the leaky ReLU behind it all; positive, 1 for none.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, Cout, 2H, 2W) of x's dtype (the region's under autocast), twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    check_tensors(f"{OP}: upsampling", x=x, **upsampling._asdict())
    check_tensors(f"{OP}: residual", **residual._asdict())
    check_batch(OP, x)
    x, *tensors = cast_for_autocast(x, *upsampling, *residual)
    check_constants(OP, impl, gain=gain, negative_slope=negative_slope, output_slope=output_slope)
    check_positive(OP, output_slope=output_slope)
    upsampling, residual = ModulatedConv(*tensors[:4]), ModulatedConv(*tensors[4:])
    size = 2 * x.shape[2], 2 * x.shape[3]
    _check(f"{OP}: upsampling", x, upsampling, size, activation, gain)
    channels = upsampling.weight.shape[0] // 2
    _check(f"{OP}: residual", x.new_empty(()).expand(x.shape[0], channels, *size), residual, size, activation, gain)
    if residual.weight.shape[0] != 2 * channels:
        raise ValueError(
            f"{OP}: residual's weight has {residual.weight.shape[0]} rows and upsampling's has {2 * channels}; they "
            "must agree, as one output is added to the other"
        )
    arguments = (x, *tensors, gain, activation, negative_slope, output_slope)
    slope_key = "linear" if output_slope == 1 else "leaky"
    settings = (activation, bias_key(upsampling.bias), bias_key(residual.bias), slope_key)
    call = make_call(OP, x, *tensors, settings=settings, num_key_tensors=2)
    return run(call, impl, arguments)


def _check(op: str, x: Tensor, conv: ModulatedConv, size: tuple[int, int], activation: str, gain: float) -> None:
    """A convolution of x, whose output has this height and width."""
    check_upsample_gated_conv2d(op, x, conv.weight, conv.bias, activation)
    check_modulation(op, x, conv.weight, conv.scale, conv.shift, None, gain, size)
