"""Measured peak rates of a device: memory bandwidth and matrix products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

#: Rounds that are timed, after as many that are not.
ROUNDS = 7
#: Seconds of a product of matrices that are large enough.
LONG = 0.05


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a copy that no cache can hold."""
    elements = 2**28 if device.type == "cuda" else 2**25
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of square matrices, a multiply-add being two.

    The matrices are as large as the device needs, or smaller where a product takes long: without instructions for a
    dtype a CPU is a hundred times as slow.
    """
    size, largest = 256, 8192 if device.type == "cuda" else 1536
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        multiply = partial(torch.mm, a, b, out=torch.empty_like(a))
        if size == largest or _seconds(multiply, device, rounds=1) > LONG:
            return 2 * size**3 / _seconds(multiply, device)
        size = min(2 * size, largest)


def _seconds(run: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """The median of some rounds."""
    taken = []
    for number in range(2 * rounds):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        if number >= rounds:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
