"""CPU and GPU capability queries."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Bytes of an AVX-512 register. On a CPU, torch is slow where channels that lie side by side do not fill one or two.
VECTOR_REGISTER = 64


@cache
def processor() -> str:
    """The model name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16; where they are emulated, float32 is faster."""
    import torch  # here, for programs that show their help do not wait for it

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))
