"""The upsampling gated convolution without the upsampled tensor.

Every output pixel of a 3x3 convolution over a nearest-neighbour 2x upsampling reads a 2x2 neighbourhood of the small
image, and which one depends only on the pixel's phase, (row mod 2, column mod 2). So it is four 2x2 convolutions: 4
multiply-adds for an output instead of 9.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops import reference

#: Which of the 3 taps meet in which of the 2 pixels, by phase: (phase, pixel, tap).
MEETING = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def phase_weights(weight: Tensor) -> Tensor:
    """The four 2x2 kernels of a 3x3 one: (O, I, 3, 3) → (2, 2, O, I, 2, 2), phase rows and columns first.

    Taps are added up in float32 or wider, so that half-precision kernels are rounded once.
    """
    wide = reference.accumulating(weight)
    meeting = wide.new_tensor(MEETING)
    return torch.einsum("pur,qvs,oirs->pqoiuv", meeting, meeting, wide).to(weight.dtype)


def upsample_gated_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float
) -> Tensor:
    """A 2x2 convolution and its gate for each phase, then their interleaving; the result is channels-last.

    Four convolutions measured faster on a CPU than one with four times the rows.
    """
    kernels = phase_weights(weight)
    rows = []
    for p in range(2):
        columns = []
        for q in range(2):
            kernel = kernels[p, q].contiguous(memory_format=torch.channels_last)
            pre = F.conv2d(F.pad(x, (1 - q, q, 1 - p, p)), kernel, bias)
            columns.append(reference.gate(pre, activation, negative_slope).permute(0, 2, 3, 1))
        rows.append(torch.stack(columns, dim=3))
    # (B, H, 2, W, 2, C): row, its phase, column, its phase.
    return torch.stack(rows, dim=2).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
