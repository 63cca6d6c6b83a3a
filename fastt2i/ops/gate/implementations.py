"""The implementations of the gate, and which is chosen where nothing was timed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastt2i.ops.dispatch.registry import Call, Implementation, register
from fastt2i.ops.dispatch.triton_support import triton_unavailable
from fastt2i.ops.gate import reference, torch_impl

#: Bytes of pre from which the implementation that saves less memory was faster on a CPU: below, PyTorch's own overhead
#: of a call is what counts.
LARGE_BYTES = 2**21


def _triton(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    # Imported when first used: Triton takes a while to load, and may not be installed.
    from fastt2i.ops.gate.triton_ops import gate

    return gate(pre, activation, negative_slope)


def prefer_on_cpu(call: Call, batch: int, channels: int, *sizes: int) -> tuple[str, ...]:
    """The implementation of a gate on a CPU, by the shape of pre: (batch, channels, *sizes)."""
    if torch.compiler.is_compiling():  # both are the same then; and a comparison would fix a dynamic size
        return ("reference",)
    short = call.layout == "channels_last" and torch_impl.is_short_row(channels, call.dtype.itemsize)
    large = batch * channels * math.prod(sizes) * call.dtype.itemsize >= LARGE_BYTES
    return ("torch",) if short or (call.training and large) else ("reference",)


def _prefer(call: Call) -> tuple[str, ...]:
    return ("triton", "reference") if call.device.type == "cuda" else prefer_on_cpu(call, *call.shapes[0])


register(
    "gate",
    {
        "reference": Implementation(reference.gate),
        "torch": Implementation(torch_impl.gate),
        "triton": Implementation(_triton, triton_unavailable),
    },
    _prefer,
    "triton on CUDA; on a CPU torch where a backward follows and pre takes "
    f"{LARGE_BYTES // 2**20} MiB, or rows of channels are short; else reference",
)
