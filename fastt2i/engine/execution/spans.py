"""Named parts of a step and of what is around it, as torch's profiler and NVIDIA's tools (NVTX) show them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def span(name: str) -> Iterator[None]:
    """Name what happens in this block, on the host; what a CUDA graph replays has no names."""
    with torch.profiler.record_function(name):
        if not torch.cuda.is_available():
            yield
            return
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()
