"""The implementations of the modulated gated convolutions, and which is chosen where nothing was timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastt2i.kernels.tiles import CONFIGS, Config
from fastt2i.ops.dispatch.registry import Call, Implementation, register
from fastt2i.ops.dispatch.triton_support import triton_unavailable
from fastt2i.ops.gated_conv.implementations import (
    gated_conv2d_triton,
    gated_conv2d_unavailable,
    tile_unavailable,
    upsample_triton,
)
from fastt2i.ops.modulated_gated_conv import reference, torch_impl

Pair = tuple[int, int]

# Triton is imported when first used: it takes a while to load, and may not be installed.


def _gated_conv2d_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    activation: str,
    negative_slope: float,
) -> Tensor:
    from fastt2i.ops.modulated_gated_conv.triton_ops import modulated_gate

    pre = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    return modulated_gate(pre, bias, scale, shift, residual, gain, activation, negative_slope)


def _upsample_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    activation: str,
    negative_slope: float,
) -> Tensor:
    from fastt2i.ops.gated_conv.triton_ops import transposed_weight
    from fastt2i.ops.modulated_gated_conv.triton_ops import modulated_gate

    pre = F.conv_transpose2d(x, transposed_weight(weight), None, stride=2, padding=1)
    return modulated_gate(pre, bias, scale, shift, residual, gain, activation, negative_slope)


def _by_tile(
    gated: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    *settings: Any,
) -> Tensor:
    """A gated convolution in one kernel, which does not modulate, and the rest in PyTorch."""
    return reference.finish(torch_impl.modulate(gated(x, weight, bias, *settings), scale, shift), residual, gain)


def _tiles(run: Callable[..., Tensor], unavailable: Callable[[Config, Call], str | None]) -> dict[str, Implementation]:
    return {
        f"triton/{c.name}": Implementation(partial(_by_tile, partial(run, c.name)), partial(unavailable, c))
        for c in CONFIGS
    }


def _prefer(call: Call) -> tuple[str, ...]:
    return ("triton/fused", "torch") if call.device.type == "cuda" else ("torch",)


#: x, scale, shift and the residual.
PER_SAMPLE = (0, 3, 4, 5)
HEURISTIC = "triton/fused on CUDA; on a CPU torch, whose gated convolution is chosen by itself"
register(
    "modulated_gated_conv2d",
    {
        "reference": Implementation(reference.modulated_gated_conv2d),
        "torch": Implementation(torch_impl.modulated_gated_conv2d),
        "triton/fused": Implementation(_gated_conv2d_triton, triton_unavailable),
        **_tiles(gated_conv2d_triton, gated_conv2d_unavailable),
    },
    _prefer,
    HEURISTIC,
    PER_SAMPLE,
)
register(
    "modulated_upsample_gated_conv2d",
    {
        "reference": Implementation(reference.modulated_upsample_gated_conv2d),
        "torch": Implementation(torch_impl.modulated_upsample_gated_conv2d),
        "triton/fused": Implementation(_upsample_triton, triton_unavailable),
        **_tiles(upsample_triton, tile_unavailable),
    },
    _prefer,
    HEURISTIC,
    PER_SAMPLE,
)
