"""Whether Triton kernels can run here, and how."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

#: Looked up once: it takes a tenth of a millisecond, and every call of an operator asks.
INSTALLED = importlib.util.find_spec("triton") is not None


def unavailable_reason(device_type: str) -> str | None:
    """Why Triton kernels cannot run on a device of this type; None if they can.

    The interpreter (TRITON_INTERPRET=1, for tests) runs them on CPU tensors.
    """
    if not INSTALLED:
        return "triton is not installed"
    if device_type == "cuda" or interpreting():
        return None
    return f"Triton has no {device_type} backend here; it needs a CUDA device"


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, whose matrix product of bfloat16 multiplies bit patterns."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def convolution_precision() -> str:
    """How cuDNN rounds float32 in convolutions: `tf32`, or something else where it does not."""
    # Not `allow_tf32`, which raises where somebody has set this, its newer name. Type stubs do not know it yet.
    return torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may take on a CUDA device."""
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    return driver.active.utils.get_device_properties(index)["max_shared_mem"]
