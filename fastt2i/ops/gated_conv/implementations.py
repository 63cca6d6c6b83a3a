"""The implementations of the gated convolutions, what each can run, and which is chosen where nothing was timed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.kernels.launch import interpreting
from fastt2i.kernels.tiles import CONFIGS, Config
from fastt2i.ops.convolution import Steps
from fastt2i.ops.dispatch.registry import Call, Implementation, make_call, register
from fastt2i.ops.dispatch.triton_support import shared_memory_bytes, triton_unavailable
from fastt2i.ops.gate import torch_impl as gate_torch
from fastt2i.ops.gate.implementations import prefer_on_cpu
from fastt2i.ops.gated_conv import reference, torch_impl
from fastt2i.ops.transforms import NOT_TRANSFORMABLE, under_transform

Pair = tuple[int, int]

#: Pixels of the small image from which a form of the upsampling convolution won on a CPU, measured on 2 cores at 24 to
#: 256 channels: in float32 the transposed convolution and then the phases, in half precision the phases. A processor
#: without instructions for half precision emulates them, but not the transposed convolution, which is computed in
#: float32: that was 13 times as fast on one with AVX2 alone.
TRANSPOSED_FROM, PHASES_FROM, HALF_PHASES_FROM = 64, 1024, 256


# Triton is imported when first used: it takes a while to load, and may not be installed.


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
    pre = torch_impl.convolved(x, weight, bias, Steps(stride, padding, dilation, groups))
    return gate_torch.gate(pre, activation, negative_slope)


def gated_conv2d_triton(
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
    """By one form: `conv+gate`, or a tile's name."""
    from fastt2i.ops.gated_conv.triton_ops import gated_conv2d

    keep_pre = make_call("gated_conv2d", x, weight, bias).training
    return gated_conv2d(
        x, weight, bias, stride, padding, dilation, groups, activation, negative_slope, form, keep_pre
    )[0]  # fmt: skip


def upsample_triton(
    form: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
) -> Tensor:
    """By one form: `transposed+gate`, or a tile's name."""
    from fastt2i.ops.gated_conv.triton_ops import upsample_gated_conv2d

    keep_pre = make_call("upsample_gated_conv2d", x, weight, bias).training
    return upsample_gated_conv2d(x, weight, bias, activation, negative_slope, form, keep_pre)[0]


def tile_unavailable(config: Config, call: Call) -> str | None:
    """Why the one-kernel convolution cannot run with a tile."""
    reason = triton_unavailable(call)
    if reason or interpreting():
        return reason
    rows, in_channels = call.shapes[1][:2]
    if not config.any_layout and (call.layout != "channels_last" or in_channels % 8 or rows % 16):
        channels = f"{in_channels} to {rows // 2}"
        return f"its tile takes channels-last images and multiples of 8 channels, not {call.layout} and {channels}"
    needed = config.shared_memory(call.dtype.itemsize)
    there = shared_memory_bytes(call.device)
    return f"its tile needs {needed} bytes of shared memory and there are {there}" if needed > there else None


def gated_conv2d_unavailable(config: Config, call: Call) -> str | None:
    groups = call.settings[-1]
    return f"one kernel does no groups, and there are {groups}" if groups != 1 else tile_unavailable(config, call)


def _phases_unavailable(call: Call) -> str | None:
    return NOT_TRANSFORMABLE if under_transform() else None


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16 products; a constant to torch.compile."""
    if not torch.compiler.is_compiling():
        return multiplies_bf16(device)
    from fastt2i.ops.dispatch.compile_constants import multiplies_bf16_when_traced

    return multiplies_bf16_when_traced(device)


def _prefer_gated_conv2d(call: Call) -> tuple[str, ...]:
    if call.device.type == "cuda":
        return ("triton/conv+gate", "reference")
    if call.training and call.dtype == torch.bfloat16 and _multiplies_bf16(call.device):
        return ("torch",)  # however small: on such processors the second derivatives of torch's own may be wrong
    (batch, _, *sizes), (rows, *_) = call.shapes
    strides = call.settings[2:4]
    return prefer_on_cpu(call, batch, rows, *(-(-n // stride) for n, stride in zip(sizes, strides, strict=True)))


def _prefer_upsample_gated_conv2d(call: Call) -> tuple[str, ...]:
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
    "gated_conv2d",
    {
        "reference": Implementation(reference.gated_conv2d),
        "torch": Implementation(_gated_conv2d_torch),
        "triton/conv+gate": Implementation(partial(gated_conv2d_triton, "conv+gate"), triton_unavailable),
        **{
            f"triton/{c.name}": Implementation(
                partial(gated_conv2d_triton, c.name), partial(gated_conv2d_unavailable, c)
            )
            for c in CONFIGS
        },
    },
    _prefer_gated_conv2d,
    "triton/conv+gate on CUDA; on a CPU as for the gate, and torch where a backward follows in native bfloat16",
)
register(
    "upsample_gated_conv2d",
    {
        "reference": Implementation(reference.upsample_gated_conv2d),
        "torch/phases": Implementation(torch_impl.by_phases, _phases_unavailable),
        "torch/transposed": Implementation(torch_impl.transposed),
        "torch/plain": Implementation(torch_impl.plain),
        "triton/transposed+gate": Implementation(partial(upsample_triton, "transposed+gate"), triton_unavailable),
        **{
            f"triton/{c.name}": Implementation(partial(upsample_triton, c.name), partial(tile_unavailable, c))
            for c in CONFIGS
        },
    },
    _prefer_upsample_gated_conv2d,
    "triton/transposed+gate on CUDA; on a CPU by input pixels: in float32 torch/plain, torch/transposed from "
    f"{TRANSPOSED_FROM}, torch/phases from {PHASES_FROM}; in half precision torch/plain, torch/phases from "
    f"{HALF_PHASES_FROM}, or torch/transposed where the processor emulates it",
)
