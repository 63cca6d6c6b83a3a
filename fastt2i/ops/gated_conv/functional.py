"""Gated convolutions: the public functions."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.kernels.launch import interpreting, shared_memory, unavailable_reason
from fastt2i.kernels.tiles import CONFIGS, Config
from fastt2i.ops import reference
from fastt2i.ops.autocast import cast_for_autocast
from fastt2i.ops.checks import (
    check_convolution,
    check_gate,
    check_gated_conv2d,
    check_padding,
    check_pair,
    check_tensors,
    check_upsample_gated_conv2d,
)
from fastt2i.ops.dispatch.registry import Call, Implementation, describe, register, select
from fastt2i.ops.gate import torch_impl as gate_torch
from fastt2i.ops.gated_conv import torch_impl as upsampling

Pair = tuple[int, int]

#: Pixels of the small image from which a form of the upsampling convolution won on a CPU, measured on 2 cores at 24 to
#: 256 channels: in float32 the transposed convolution and then the phases, in half precision the phases. A processor
#: without instructions for half precision emulates them, but not the transposed convolution, which is computed in
#: float32: that was 13 times as fast on one with AVX2 alone.
TRANSPOSED_FROM, PHASES_FROM, HALF_PHASES_FROM = 64, 1024, 256

#: Bytes of pre from which the gate's leaner form was faster on a CPU: below, PyTorch's own time a call is what counts.
LEAN_FROM = 2**21


# What needs Triton is imported when first used: it takes a while to load, and may not be there.


def _gate_triton(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    from fastt2i.ops.gate.triton_ops import gate

    return gate(pre, activation, negative_slope)


def _gated_conv2d_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    negative_slope: float,
) -> Tensor:
    return gate_torch.gate(F.conv2d(x, weight, bias, stride, padding, dilation, groups), activation, negative_slope)


def _gated_conv2d_triton(
    form: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    negative_slope: float,
) -> Tensor:
    from fastt2i.ops.gated_conv.triton_ops import gated_conv2d

    keep_pre = describe("gated_conv2d", x, weight, bias).training
    return gated_conv2d(
        x, weight, bias, stride, padding, dilation, groups, activation, negative_slope, form, keep_pre
    )[0]  # fmt: skip


def _upsample_triton(
    form: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
) -> Tensor:
    from fastt2i.ops.gated_conv.triton_ops import upsample_gated_conv2d

    keep_pre = describe("upsample_gated_conv2d", x, weight, bias).training
    return upsample_gated_conv2d(x, weight, bias, activation, negative_slope, form, keep_pre)[0]


def _no_triton(call: Call) -> str | None:
    if call.dtype == torch.float64:
        return "its kernels compute in float32, so float64 goes through the reference"
    return unavailable_reason(call.device.type)


def _no_tile(config: Config, call: Call) -> str | None:
    """Why the one-kernel convolution cannot run with a tile."""
    reason = _no_triton(call)
    if reason or interpreting():
        return reason
    rows, in_channels = call.shapes[1][:2]
    if not config.any_channels and (in_channels % 16 or rows % 32):
        return f"its tile takes channels in multiples of 16, not {in_channels} to {rows // 2}"
    needed = config.shared_memory(call.dtype.itemsize)
    there = shared_memory(call.device)
    return f"its tile needs {needed} bytes of shared memory and there are {there}" if needed > there else None


def _no_tile_or_groups(config: Config, call: Call) -> str | None:
    groups = call.settings[-1]
    return f"one kernel does no groups, and there are {groups}" if groups != 1 else _no_tile(config, call)


def _prefer_gate(call: Call) -> tuple[str, ...]:
    return ("triton", "reference") if call.device.type == "cuda" else _prefer_on_a_cpu(call, *call.shapes[0])


def _prefer_convolution(call: Call) -> tuple[str, ...]:
    if call.device.type == "cuda":
        return ("triton/conv+gate", "reference")
    (batch, _, *sizes), (rows, *_) = call.shapes
    strides = call.settings[2:4]
    return _prefer_on_a_cpu(call, batch, rows, *(-(-n // stride) for n, stride in zip(sizes, strides, strict=True)))


def _prefer_on_a_cpu(call: Call, batch: int, channels: int, *sizes: int) -> tuple[str, ...]:
    """By the shape of pre."""
    # What short rows cost is told in gate_torch; and what its form spares are passes over memory, and memory.
    short = call.layout == "channels_last" and gate_torch.is_short(channels, call.dtype.itemsize)
    large = batch * channels * math.prod(sizes) * call.dtype.itemsize >= LEAN_FROM
    return ("torch",) if short or (call.training and large) else ("reference",)


def _multiplies_bf16(device: torch.device) -> bool:
    if not torch.compiler.is_compiling():
        return multiplies_bf16(device)
    from fastt2i.ops.dispatch.compile_constants import multiplies_bf16_when_traced

    return multiplies_bf16_when_traced(device)


def _prefer_upsampling(call: Call) -> tuple[str, ...]:
    if call.device.type == "cuda":
        return ("triton/transposed+gate", "torch/transposed")
    pixels = call.shapes[0][2] * call.shapes[0][3]
    if call.dtype in (torch.float32, torch.float64):
        form = "phases" if pixels >= PHASES_FROM else "transposed" if pixels >= TRANSPOSED_FROM else "plain"
    elif _multiplies_bf16(call.device):
        form = "phases" if pixels >= HALF_PHASES_FROM else "plain"
    else:
        form = "transposed"
    return (f"torch/{form}",)


register(
    "gate",
    {
        "reference": Implementation(reference.gate),
        "torch": Implementation(gate_torch.gate),
        "triton": Implementation(_gate_triton, _no_triton),
    },
    _prefer_gate,
    "triton on CUDA; on a CPU torch where a backward follows and pre takes "
    f"{LEAN_FROM // 2**20} MiB, or rows of channels are short; else reference",
)
register(
    "gated_conv2d",
    {
        "reference": Implementation(reference.gated_conv2d),
        "torch": Implementation(_gated_conv2d_torch),
        "triton/conv+gate": Implementation(partial(_gated_conv2d_triton, "conv+gate"), _no_triton),
        **{
            f"triton/{c.name}": Implementation(partial(_gated_conv2d_triton, c.name), partial(_no_tile_or_groups, c))
            for c in CONFIGS
        },
    },
    _prefer_convolution,
    "triton/conv+gate on CUDA; on a CPU as for the gate",
)
register(
    "upsample_gated_conv2d",
    {
        "reference": Implementation(reference.upsample_gated_conv2d),
        "torch/phases": Implementation(upsampling.by_phases),
        "torch/transposed": Implementation(upsampling.transposed),
        "torch/plain": Implementation(upsampling.plain),
        "triton/transposed+gate": Implementation(partial(_upsample_triton, "transposed+gate"), _no_triton),
        **{
            f"triton/{c.name}": Implementation(partial(_upsample_triton, c.name), partial(_no_tile, c)) for c in CONFIGS
        },
    },
    _prefer_upsampling,
    "triton/transposed+gate on CUDA; on a CPU by input pixels: in float32 torch/plain, torch/transposed from "
    f"{TRANSPOSED_FROM}, torch/phases from {PHASES_FROM}; in half precision torch/plain, torch/phases from "
    f"{HALF_PHASES_FROM}, or torch/transposed where the processor emulates it",
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
    check_tensors("gate", pre=pre)
    check_gate(pre, activation)
    arguments = (pre, activation, negative_slope)
    return select(describe("gate", pre, settings=(activation,)), impl, arguments)(*arguments)


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
    check_tensors("gated_conv2d", x=x, weight=weight, bias=bias)
    x, weight, bias = cast_for_autocast(x, weight, bias)
    check_gated_conv2d("gated_conv2d", x, weight, bias, groups, activation)
    stride = check_pair("gated_conv2d", "stride", stride)
    dilation = check_pair("gated_conv2d", "dilation", dilation)
    x, padding = _padding(x, weight, stride, padding, dilation)
    check_convolution("gated_conv2d", x, weight, stride, padding, dilation)
    arguments = (x, weight, bias, stride, padding, dilation, groups, activation, negative_slope)
    settings = (activation, _biased(bias), *stride, *padding, *dilation, groups)
    call = describe("gated_conv2d", x, weight, bias, settings=settings, shaping=2)
    return select(call, impl, arguments)(*arguments)


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
    check_tensors("upsample_gated_conv2d", x=x, weight=weight, bias=bias)
    x, weight, bias = cast_for_autocast(x, weight, bias)
    check_upsample_gated_conv2d(x, weight, bias, activation)
    arguments = (x, weight, bias, activation, negative_slope)
    settings = (activation, _biased(bias))
    call = describe("upsample_gated_conv2d", x, weight, bias, settings=settings, shaping=2)
    return select(call, impl, arguments)(*arguments)


def _biased(bias: Tensor | None) -> str:
    """As it stands in the table of times."""
    return "unbiased" if bias is None else "biased"


def _padding(
    x: Tensor, weight: Tensor, stride: Pair, padding: int | tuple[int, int] | str, dilation: Pair
) -> tuple[Tensor, Pair]:
    """Padding in numbers, with x padded already by what is needed on one side only."""
    check_padding("gated_conv2d", padding)
    if not isinstance(padding, str):
        return x, check_pair("gated_conv2d", "padding", padding)
    if padding == "valid":
        return x, (0, 0)
    if stride != (1, 1):
        raise ValueError(f"gated_conv2d: padding is 'same' and the stride is {stride}; 'same' needs a stride of 1")
    height, width = (dilation[k] * (weight.shape[2 + k] - 1) for k in range(2))
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    return x, (height // 2, width // 2)
