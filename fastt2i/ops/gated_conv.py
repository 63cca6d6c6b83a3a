"""Gated convolutions: the public functions."""

from __future__ import annotations

import torch
from torch import Tensor

from fastt2i.kernels.launch import unavailable_reason
from fastt2i.ops import phases, reference
from fastt2i.ops.autocast import cast_for_autocast
from fastt2i.ops.checks import check_gate, check_gated_conv2d, check_upsample_gated_conv2d
from fastt2i.ops.dispatch import Implementation, register, select

#: Pixels of the small image, and of all images of a batch together, from which four 2x2 convolutions beat one 3x3 on a
#: CPU; measured on 2 cores in float32.
PHASES_FROM, PHASES_FROM_IN_ALL = 64, 1024


def _triton_gate(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    # Imported when first used: Triton takes a while to load, and may not be there.
    from fastt2i.ops.gate_triton import gate as triton_gate

    return triton_gate(pre, activation, negative_slope)


def _no_triton_gate(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype == torch.float64:
        return "the kernel computes in float32, so float64 goes through the reference"
    return unavailable_reason(device.type)


def _prefer_upsampling(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> str:
    pixels = shape[2] * shape[3]
    large = pixels >= PHASES_FROM and shape[0] * pixels >= PHASES_FROM_IN_ALL
    return "torch" if device.type == "cpu" and large else "reference"


register("gate", reference=Implementation(reference.gate), triton=Implementation(_triton_gate, _no_triton_gate))
register("gated_conv2d", reference=Implementation(reference.gated_conv2d))
register(
    "upsample_gated_conv2d",
    prefer=_prefer_upsampling,
    rule=f"torch on a CPU from {PHASES_FROM} input pixels and {PHASES_FROM_IN_ALL} in a batch on, else reference",
    reference=Implementation(reference.upsample_gated_conv2d),
    torch=Implementation(phases.upsample_gated_conv2d),
)


def gate(
    pre: Tensor, *, activation: str = "leaky_relu", negative_slope: float = 0.2, impl: str | None = None
) -> Tensor:
    """act(f) * sigmoid(g): the gated linear unit (Dauphin et al. 2017) with an activation on the feature half.

    With `activation="identity"` it is `torch.nn.functional.glu(pre, dim=1)`.

    Args:
        pre: (B, 2C, ...) floating point; channels [0, C) are the feature half f, [C, 2C) the gate half g.
        activation: of the feature half: `identity`, `leaky_relu`, `relu`, `elu`, `silu` or `tanh`.
        negative_slope: of `leaky_relu`.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, C, ...) of pre's dtype, twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    check_gate(pre, activation)
    return select("gate", impl, pre.shape, pre.device, pre.dtype)(pre, activation, negative_slope)


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
        x: (B, Cin, H, W) floating point, in any memory format; channels-last is the fast one.
        weight: (2 * Cout, Cin / groups, kh, kw); rows [0, Cout) are the feature half, [Cout, 2 * Cout) the gate half.
        bias: (2 * Cout,) or None.
        stride, padding, dilation, groups: of the convolution.
        activation: of the feature half: `identity`, `leaky_relu`, `relu`, `elu`, `silu` or `tanh`.
        negative_slope: of `leaky_relu`.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, Cout, H', W') of x's dtype (the region's under autocast), twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    x, weight, bias = cast_for_autocast(x, weight, bias)
    check_gated_conv2d("gated_conv2d", x, weight, bias, groups, activation)
    run = select("gated_conv2d", impl, x.shape, x.device, x.dtype)
    return run(x, weight, bias, stride, padding, dilation, groups, activation, negative_slope)


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

    It equals `gated_conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1)`; `impl="torch"` computes it as
    four 2x2 convolutions of x and never builds the upsampled tensor. Under autocast the inputs are cast to the
    region's dtype.

    Args:
        x: (B, Cin, H, W) floating point, in any memory format; channels-last is the fast one.
        weight: (2 * Cout, Cin, 3, 3); rows [0, Cout) are the feature half, [Cout, 2 * Cout) the gate half.
        bias: (2 * Cout,) or None.
        activation: of the feature half: `identity`, `leaky_relu`, `relu`, `elu`, `silu` or `tanh`.
        negative_slope: of `leaky_relu`.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, Cout, 2H, 2W) of x's dtype (the region's under autocast), twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    x, weight, bias = cast_for_autocast(x, weight, bias)
    check_upsample_gated_conv2d(x, weight, bias, activation)
    run = select("upsample_gated_conv2d", impl, x.shape, x.device, x.dtype)
    return run(x, weight, bias, activation, negative_slope)
