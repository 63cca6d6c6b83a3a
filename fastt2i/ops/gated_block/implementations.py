"""The implementations of a generator's block, and which is chosen where nothing was timed."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops.dispatch.registry import Call, Implementation, register
from fastt2i.ops.dispatch.triton_support import triton_unavailable
from fastt2i.ops.gated_block import reference, torch_impl


def _triton(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    # Imported when first used: Triton takes a while to load, and may not be installed.
    from fastt2i.ops.gated_block.triton_ops import gated_block
    from fastt2i.ops.gated_conv.triton_ops import transposed_weight

    pre = F.conv_transpose2d(x, transposed_weight(weight), None, stride=2, padding=1)
    return gated_block(pre, *others)[0]


def _prefer(call: Call) -> tuple[str, ...]:
    return ("triton", "torch") if call.device.type == "cuda" else ("torch",)


register(
    "modulated_gated_block",
    {
        "reference": Implementation(reference.modulated_gated_block),
        "torch": Implementation(torch_impl.modulated_gated_block),
        "triton": Implementation(_triton, triton_unavailable),
    },
    _prefer,
    "triton on CUDA; on a CPU torch, whose convolutions are chosen by themselves",
    per_sample=(0, 3, 4, 7, 8),  # x, and both scales and shifts
)
