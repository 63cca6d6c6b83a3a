"""What Triton kernels need of the machine, and why they cannot run for a call."""

from __future__ import annotations

import torch

from fastt2i.kernels.launch import shared_memory, unavailable_reason
from fastt2i.ops.dispatch.registry import Call
from fastt2i.ops.transforms import NOT_TRANSFORMABLE, under_transform


def triton_unavailable(call: Call) -> str | None:
    """Why no Triton kernel can run for a call; None if one can."""
    if call.dtype == torch.float64:
        return "the kernels compute in float32, so float64 runs in PyTorch"
    return unavailable_reason(call.device.type) or (NOT_TRANSFORMABLE if under_transform() else None)


def shared_memory_bytes(device: torch.device) -> int:
    """Bytes of shared memory that a program may take on a CUDA device; a constant to torch.compile."""
    if not torch.compiler.is_compiling():
        return shared_memory(device)
    from fastt2i.ops.dispatch.compile_constants import shared_memory_when_traced

    return shared_memory_when_traced(device)
