"""The 2x2 kernels that a 3x3 one becomes over a nearest-neighbour 2x upsampling, and the gradient of that.

Pixel u of the small image, for phase p of the output's rows, gets the taps of the rows that read it: so for t = 2u + p
the rows w0, w0 + w1, w1 + w2 and w2, and columns likewise. One kernel writes the sixteen sums into the transposed 4x4
kernel, in which row t stands at 3 - t, or packed as the one-kernel convolution reads them. Sums are in float32, rows
first, so that they are the same bits as those of `fastt2i.ops.gated_conv.torch_impl`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Output and input channels of a tile.
BLOCK = 32
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _tile(rows: tl.constexpr, columns: tl.constexpr, BLOCK: tl.constexpr):
    """Output channels (BLOCK, 1), input channels (1, BLOCK) of this program's tile, and which of both exist."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    return o, i, (o < rows) & (i < columns)


@triton.jit
def _sum(p_first, p_second, m, TWO: tl.constexpr):
    """The first tile, or the sum of both."""
    x = tl.load(p_first, m, 0.0).to(tl.float32)
    return x + tl.load(p_second, m, 0.0).to(tl.float32) if TWO else x


@triton.jit
def forward_kernel(
    p_weight, p_out, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    W_O: tl.constexpr, W_I: tl.constexpr, W_H: tl.constexpr, W_W: tl.constexpr, PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """PACKED: (2, 2, 2, 2, I, O / 2, 2), phases and pixels before input channels; else (I, 4, 4, O)."""
    o, i, m = _tile(ROWS, COLUMNS, BLOCK)
    if PACKED:
        o_out = i * ROWS + o
        o = o % 2 * (ROWS // 2) + o // 2
    else:
        o_out = i * (16 * ROWS) + o
    p_tile = p_weight + o * W_O + i * W_I
    for t in tl.static_range(4):
        first, two = (0 if t < 2 else t - 1) * W_H, t == 1 or t == 2
        left = _sum(p_tile + first, p_tile + first + W_H, m, two)
        middle = _sum(p_tile + first + W_W, p_tile + first + W_H + W_W, m, two)
        right = _sum(p_tile + first + 2 * W_W, p_tile + first + W_H + 2 * W_W, m, two)
        if PACKED:
            o_row = (t % 2 * 8 + t // 2 * 2) * (COLUMNS * ROWS)
            o_phase, o_pixel = 4 * COLUMNS * ROWS, COLUMNS * ROWS
        else:
            o_row = (3 - t) * 4 * ROWS + 3 * ROWS
            o_phase, o_pixel = -ROWS, -2 * ROWS
        tl.store(p_out + o_out + o_row, left, m)
        tl.store(p_out + o_out + (o_row + o_phase), left + middle, m)
        tl.store(p_out + o_out + (o_row + o_pixel), middle + right, m)
        tl.store(p_out + o_out + (o_row + o_phase + o_pixel), right, m)


@triton.jit
def backward_kernel(
    p_dout, p_dweight, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    D_I: tl.constexpr, D_O: tl.constexpr, D_H: tl.constexpr, D_W: tl.constexpr,
    W_O: tl.constexpr, W_I: tl.constexpr, W_H: tl.constexpr, W_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of the transposed kernel: tap r of the 3 rows went to 3 - r and 2 - r of the 4."""
    o, i, m = _tile(ROWS, COLUMNS, BLOCK)
    for r in tl.static_range(3):
        for c in tl.static_range(3):
            p_tile = p_dout + o * D_O + i * D_I + ((2 - r) * D_H + (2 - c) * D_W)
            far = _sum(p_tile + D_W, p_tile + D_W + D_H, m, True)
            near = _sum(p_tile, p_tile + D_H, m, True)
            tl.store(p_dweight + o * W_O + i * W_I + (r * W_H + c * W_W), far + near, m)


def forward(weight: Tensor) -> Tensor:
    """The kernel of the transposed convolution (I, O, 4, 4), channels-last, of a 3x3 one (O, I, 3, 3)."""
    out = transposed_like(weight)
    if out.numel():
        forward_kernel[_grid(weight)](weight, out, *weight.shape[:2], *weight.stride(), False, BLOCK, **OPTIONS)
    return out


def packed_phases(weight: Tensor) -> Tensor:
    """The four 2x2 kernels of a 3x3 one (O, I, 3, 3), packed: (4, 2, 2, I, O / 2, 2), see `gated_conv.pack`."""
    rows, columns = weight.shape[:2]
    out = torch.empty(4, 2, 2, columns, rows // 2, 2, dtype=weight.dtype, device=weight.device)
    if out.numel():
        forward_kernel[_grid(weight)](weight, out, rows, columns, *weight.stride(), True, BLOCK, **OPTIONS)
    return out


def backward(dout: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a 3x3 kernel, in its dtype and with its strides, given that of its `forward` (I, O, 4, 4)."""
    dweight = torch.empty_like(weight)
    if dweight.numel():
        backward_kernel[_grid(weight)](
            dout, dweight, *weight.shape[:2], *dout.stride(), *dweight.stride(), BLOCK, **OPTIONS
        )
    return dweight


def transposed_like(weight: Tensor) -> Tensor:
    """What `forward` returns, uninitialised."""
    rows, columns = weight.shape[:2]
    size = (columns, rows, 4, 4)
    return torch.empty(size, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)


def _grid(weight: Tensor) -> tuple[int, int]:
    return triton.cdiv(weight.shape[0], BLOCK), triton.cdiv(weight.shape[1], BLOCK)
