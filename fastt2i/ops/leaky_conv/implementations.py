"""The implementations of the convolution with a leaky ReLU, and which is chosen where nothing was timed."""

from __future__ import annotations

from torch import Tensor

from fastt2i.ops.convolution import Steps, conv2d
from fastt2i.ops.dispatch.registry import Call, Implementation, register
from fastt2i.ops.dispatch.triton_support import triton_unavailable
from fastt2i.ops.leaky_conv import reference, torch_impl


def _triton(
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
    # Imported when first used: Triton takes a while to load, and may not be installed.
    from fastt2i.ops.leaky_conv.triton_ops import leaky_shortcut

    pre = conv2d(x, weight, None, Steps(stride, padding))
    beside = None if shortcut is None or shortcut_weight is None else conv2d(shortcut, shortcut_weight)
    return leaky_shortcut(pre, bias, beside, shortcut_bias, gain, negative_slope, pool)[: 2 if pool else 1]


def _prefer(call: Call) -> tuple[str, ...]:
    return ("triton", "torch") if call.device.type == "cuda" else ("torch",)


register(
    "leaky_conv2d",
    {
        "reference": Implementation(reference.leaky_conv2d),
        "torch": Implementation(torch_impl.leaky_conv2d),
        "triton": Implementation(_triton, triton_unavailable),
    },
    _prefer,
    "triton on CUDA; on a CPU torch",
    per_sample=(0, 3),  # x and the shortcut
)
