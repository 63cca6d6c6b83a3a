"""Gated convolutions with a modulation and a residual: the public functions."""

from __future__ import annotations

from torch import Tensor

import fastt2i.ops.modulated_gated_conv.implementations  # noqa: F401  registers them
from fastt2i.ops.autocast import cast_for_autocast
from fastt2i.ops.checks import check_constants, check_tensors
from fastt2i.ops.dispatch.registry import make_call, run
from fastt2i.ops.gated_conv.checks import check_gated_conv2d, check_upsample_gated_conv2d
from fastt2i.ops.gated_conv.functional import bias_key, resolve_convolution
from fastt2i.ops.modulated_gated_conv.checks import check_batch, check_modulation
from fastt2i.ops.overrides import overridable


@overridable
def modulated_gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    gain: float = 1.0,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    impl: str | None = None,
) -> Tensor:
    """A gated convolution that is scaled and shifted by sample and channel, and added to a residual.

        gain * (residual + scale * gated_conv2d(x, weight, bias) + shift)

    Scale and shift of channels by sample are feature-wise linear modulation (FiLM, Perez et al. 2018). On a GPU bias,
    gate, modulation and residual are one pass over the convolution's output, and one in the backward. Under autocast
    the inputs are cast to the region's dtype.

    Args:
        x: (B, Cin, H, W) floating point, in any memory format; channels-last is the fast one.
        weight: (2 * Cout, Cin / groups, kh, kw); rows [0, Cout) are the feature half, [Cout, 2 * Cout) the gate half.
        bias: (2 * Cout,) or None.
        scale, shift: (B, Cout).
        residual: (B, Cout, H', W'), or None for none.
        gain: a number.
        stride, padding, dilation, groups, activation, negative_slope: as of `gated_conv2d`.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, Cout, H', W') of x's dtype (the region's under autocast), twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    op = "modulated_gated_conv2d"
    check_tensors(op, x=x, weight=weight, bias=bias, scale=scale, shift=shift, residual=residual)
    check_batch(op, x)
    x, weight, bias, scale, shift, residual = cast_for_autocast(x, weight, bias, scale, shift, residual)
    check_gated_conv2d(op, x, weight, bias, groups, activation)
    x, stride, padding, dilation = resolve_convolution(op, x, weight, stride, padding, dilation)
    height, width = (
        (x.shape[2 + k] + 2 * padding[k] - dilation[k] * (weight.shape[2 + k] - 1) - 1) // stride[k] + 1
        for k in range(2)
    )
    check_constants(op, impl, gain=gain, negative_slope=negative_slope)
    check_modulation(op, x, weight, scale, shift, residual, gain, (height, width))
    arguments = (x, weight, bias, scale, shift, residual, gain, stride, padding, dilation, groups, activation,
                 negative_slope)  # fmt: skip
    settings = (activation, bias_key(bias), _residual_key(residual), *stride, *padding, *dilation, groups)
    call = make_call(op, x, weight, bias, scale, shift, residual, settings=settings, num_key_tensors=2)
    return run(call, impl, arguments)


@overridable
def modulated_upsample_gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    gain: float = 1.0,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    impl: str | None = None,
) -> Tensor:
    """An `upsample_gated_conv2d` that is scaled and shifted by sample and channel, and added to a residual.

        gain * (residual + scale * upsample_gated_conv2d(x, weight, bias) + shift)

    Args:
        x: (B, Cin, H, W) floating point, in any memory format; channels-last is the fast one.
        weight: (2 * Cout, Cin, 3, 3); rows [0, Cout) are the feature half, [Cout, 2 * Cout) the gate half.
        bias: (2 * Cout,) or None.
        scale, shift: (B, Cout).
        residual: (B, Cout, 2H, 2W), or None for none.
        gain: a number.
        activation, negative_slope: as of `upsample_gated_conv2d`.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, Cout, 2H, 2W) of x's dtype (the region's under autocast), twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    op = "modulated_upsample_gated_conv2d"
    check_tensors(op, x=x, weight=weight, bias=bias, scale=scale, shift=shift, residual=residual)
    check_batch(op, x)
    x, weight, bias, scale, shift, residual = cast_for_autocast(x, weight, bias, scale, shift, residual)
    check_upsample_gated_conv2d(op, x, weight, bias, activation)
    check_constants(op, impl, gain=gain, negative_slope=negative_slope)
    check_modulation(op, x, weight, scale, shift, residual, gain, (2 * x.shape[2], 2 * x.shape[3]))
    arguments = (x, weight, bias, scale, shift, residual, gain, activation, negative_slope)
    settings = (activation, bias_key(bias), _residual_key(residual))
    call = make_call(op, x, weight, bias, scale, shift, residual, settings=settings, num_key_tensors=2)
    return run(call, impl, arguments)


def _residual_key(residual: Tensor | None) -> str:
    """As it stands in the key of a call's times."""
    return "plain" if residual is None else "residual"
