"""Whether Triton kernels can run here."""

from __future__ import annotations

import importlib.util
import os


def unavailable_reason(device_type: str) -> str | None:
    """Why Triton kernels cannot run on a device of this type; None if they can.

    The interpreter (TRITON_INTERPRET=1, for tests) runs them on CPU tensors.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"Triton has no {device_type} backend here; it needs a CUDA device"
