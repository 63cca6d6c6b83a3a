"""Named ranges for torch's profiler and NVIDIA's tools (NVTX)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def trace_span(name: str) -> Iterator[None]:
    """Name this block of the host's work; operations that a CUDA graph replays have no names."""
    with torch.profiler.record_function(name):
        if not torch.cuda.is_available():
            yield
            return
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()
