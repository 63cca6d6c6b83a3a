"""Gated convolutions: the public functions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

import fastt2i.ops.gated_conv.implementations  # noqa: F401  registers them
from fastt2i.ops.autocast import cast_for_autocast
from fastt2i.ops.checks import check_constants, check_padding, check_pair, check_tensors
from fastt2i.ops.dispatch.registry import make_call, run
from fastt2i.ops.gated_conv.checks import check_convolution, check_gated_conv2d, check_upsample_gated_conv2d
from fastt2i.ops.overrides import overridable

Pair = tuple[int, int]


@overridable
def gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    impl: str | None = None,
) -> Tensor:
    """A convolution whose output is gated: act(f) * sigmoid(g) with [f, g] = conv2d(x, weight, bias).

    Gated convolution of Yu et al. 2019 (eq. 1), both halves in one convolution. Stride, padding, dilation and groups
    mean what they mean in `torch.nn.functional.conv2d`; note that with 2 groups the feature half reads the first half
    of x's channels and the gate half the second. Under autocast the inputs are cast to the region's dtype.

    Args:
        x: (B, Cin, H, W) floating point, in any memory format; channels-last is the fast one. (Cin, H, W) is one image.
        weight: (2 * Cout, Cin / groups, kh, kw); rows [0, Cout) are the feature half, [Cout, 2 * Cout) the gate half.
        bias: (2 * Cout,) or None.
        stride, padding, dilation, groups: of the convolution.
        activation: of the feature half: `identity`, `leaky_relu`, `relu`, `elu`, `silu` or `tanh`.
        negative_slope: of `leaky_relu`.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, Cout, H', W'), or (Cout, H', W'), of x's dtype (the region's under autocast), twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    check_tensors("gated_conv2d", x=x, weight=weight, bias=bias)
    if x.ndim == 3:
        y = gated_conv2d(
            x[None],
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            activation=activation,
            negative_slope=negative_slope,
            impl=impl,
        )
        return y[0]
    x, weight, bias = cast_for_autocast(x, weight, bias)
    check_gated_conv2d("gated_conv2d", x, weight, bias, groups, activation)
    check_constants("gated_conv2d", impl, negative_slope=negative_slope)
    x, stride, padding, dilation = resolve_convolution("gated_conv2d", x, weight, stride, padding, dilation)
    arguments = (x, weight, bias, stride, padding, dilation, groups, activation, negative_slope)
    settings = (activation, bias_key(bias), *stride, *padding, *dilation, groups)
    call = make_call("gated_conv2d", x, weight, bias, settings=settings, num_key_tensors=2)
    return run(call, impl, arguments)


@overridable
def upsample_gated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    impl: str | None = None,
) -> Tensor:
    """A gated 3x3 convolution (stride 1, padding 1) of the nearest-neighbour 2x upsampling of x.

    It equals `gated_conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1)`, but is computed from x as four
    2x2 convolutions, or as a transposed 4x4 one, without the upsampled tensor. Under autocast the inputs are cast to
    the region's dtype.

    Args:
        x: (B, Cin, H, W) floating point, in any memory format; channels-last is the fast one. (Cin, H, W) is one image.
        weight: (2 * Cout, Cin, 3, 3); rows [0, Cout) are the feature half, [Cout, 2 * Cout) the gate half.
        bias: (2 * Cout,) or None.
        activation: of the feature half: `identity`, `leaky_relu`, `relu`, `elu`, `silu` or `tanh`.
        negative_slope: of `leaky_relu`.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, Cout, 2H, 2W), or (Cout, 2H, 2W), of x's dtype (the region's under autocast), twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    check_tensors("upsample_gated_conv2d", x=x, weight=weight, bias=bias)
    if x.ndim == 3:
        y = upsample_gated_conv2d(
            x[None], weight, bias, activation=activation, negative_slope=negative_slope, impl=impl
        )
        return y[0]
    x, weight, bias = cast_for_autocast(x, weight, bias)
    check_upsample_gated_conv2d("upsample_gated_conv2d", x, weight, bias, activation)
    check_constants("upsample_gated_conv2d", impl, negative_slope=negative_slope)
    arguments = (x, weight, bias, activation, negative_slope)
    settings = (activation, bias_key(bias))
    call = make_call("upsample_gated_conv2d", x, weight, bias, settings=settings, num_key_tensors=2)
    return run(call, impl, arguments)


def bias_key(bias: Tensor | None) -> str:
    """As it stands in the key of a call's times."""
    return "unbiased" if bias is None else "biased"


def resolve_convolution(
    op: str,
    x: Tensor,
    weight: Tensor,
    stride: int | Pair,
    padding: int | Pair | str,
    dilation: int | Pair,
) -> tuple[Tensor, Pair, Pair, Pair]:
    """x, padded here by what `same` needs on one side only, and stride, padding and dilation in two numbers each.

    Raises ValueError where such a convolution is not possible.
    """
    stride = check_pair(op, "stride", stride)
    dilation = check_pair(op, "dilation", dilation)
    check_padding(op, padding)
    if not isinstance(padding, str):
        padding = check_pair(op, "padding", padding)
    elif padding == "valid":
        padding = (0, 0)
    else:
        if stride != (1, 1):
            raise ValueError(f"{op}: padding is 'same' and the stride is {stride}; 'same' needs a stride of 1")
        height, width = (dilation[k] * (weight.shape[2 + k] - 1) for k in range(2))
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        padding = (height // 2, width // 2)
    check_convolution(op, x, weight, stride, padding, dilation)
    return x, stride, padding, dilation
