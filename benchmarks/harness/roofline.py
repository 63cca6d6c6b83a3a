"""The roofline of a case: the least time for its fewest bytes and operations at the device's measured limits.

Every tensor that a pass needs is read once and every result written once; what a backward needs
again is read again. Operations are those of matrix products, a multiply-add being two: pointwise work overlaps with the
traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmarks.harness.result import Roofline
from benchmarks.harness.timing import rounded
from fastt2i.devices.limits import copy_bandwidth, matrix_rate
from fastt2i.ops.dispatch.registry import DTYPES

#: Dtypes whose rate of matrix products is measured.
RATES = (torch.float32, torch.bfloat16)


class Limits(NamedTuple):
    """What a device can do at most: bytes that copies read and write, and operations of matrix products by dtype."""

    copy_bytes_per_second: float
    flops_per_second: Mapping[str, float]


def measure_limits(device: torch.device) -> Limits:
    """Measure a device, which takes some seconds."""
    return Limits(copy_bandwidth(device), {DTYPES[dtype]: matrix_rate(device, dtype) for dtype in RATES})


@dataclass(frozen=True)
class Work:
    """The fewest bytes and operations of something."""

    bytes: float
    flops: float

    def roofline(self, limits: Limits, dtype: torch.dtype) -> Roofline:
        """The least time at measured limits."""
        moved = self.bytes / limits.copy_bytes_per_second
        computed = self.flops / limits.flops_per_second[DTYPES[dtype]]
        slower = rounded(1e3 * max(moved, computed))
        return Roofline(self.bytes, self.flops, slower, "memory" if moved >= computed else "compute")


def of_gate(outputs: int, itemsize: int, training: bool) -> Work:
    """Of `outputs` results: both halves in and one out; backward the gradient and both halves in, both out."""
    return Work((3 + 5 * training) * outputs * itemsize, 0)


def of_gated_convolution(inputs: int, weights: int, outputs: int, taps: int, itemsize: int, training: bool) -> Work:
    """Of a convolution to two halves with the gate in its epilogue.

    Args:
        inputs: numbers in x.
        weights: numbers in the weight.
        outputs: numbers in the result, half of the channels of the convolution.
        taps: products that each of the convolution's results sums up.
        itemsize: bytes of a number.
        training: whether the halves are kept, and a backward follows: it reads the gradient, the halves, x and the
            weight, and writes the gradients of x and the weight, each of which costs as many products as the forward.
    """
    moved = inputs + weights + outputs
    if training:
        moved += 2 * outputs + (3 * outputs + inputs + weights) + (inputs + weights)
    return Work(moved * itemsize, (3 if training else 1) * 2 * 2 * outputs * taps)


def of_region_keyword(
    images: int, regions: int, keywords: int, features: int, captions: int, itemsize: int, training: bool
) -> Work:
    """Of scores of all pairs of `images` with captions that have `keywords` real keywords in all.

    Forward: a similarity with each region, and the norm of the context through whichever is less work, the Gram matrix
    of the regions or the context itself. Backward: gradients of regions and keywords, each a product of the size of the
    similarities, and of the norm.
    """
    pairs = images * keywords * regions
    similarity, norm = 2 * pairs * features, 2 * pairs * min(regions, features)
    flops = (similarity + norm) * (1 if not training else 3)
    rows = (images * regions + keywords) * features
    return Work((3 if training else 1) * rows * itemsize + 4 * images * captions, flops)
