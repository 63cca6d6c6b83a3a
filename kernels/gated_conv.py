"""The gated convolution in one kernel: an implicit GEMM for both halves, then the gate before anything is written.

Rows of the matrix product are output positions, columns are output channels, and what is summed over is input channels
of all taps. A feature column and its gate column stand side by side (the weight is packed so), so that one wide product
serves both and `tl.split` parts them without a shuffle between threads.

The upsampling convolution is four such convolutions with 2x2 taps, one for each phase (row mod 2, column mod 2) of the
output: the third axis of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gate import activate, like, to_gate
from .launch import convolution_precision, interpreting
from .tiles import Config


@triton.jit
def forward_kernel(
    p_x, p_weight, p_bias, p_y, p_pre,
    batch, in_channels, height, width, channels, rows, columns,
    x_b, x_c, x_h, x_w, y_b, y_c, y_h, y_w, pre_b, pre_c, pre_h, pre_w,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PHASES: tl.constexpr, BIASED: tl.constexpr, KEEP_PRE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """rows and columns are those of one phase's output; PHASES is 1, or 2 where it upsamples; WIDE: see `_wide`."""
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    phase = tl.program_id(2)
    phase_h, phase_w = phase // PHASES, phase % PHASES
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = p < tl.cast(batch, tl.int64) * rows * columns
    b, h, w = p // (rows * columns), (p // columns % rows).to(index), (p % columns).to(index)
    # Where the first tap of each position lies; a later phase begins a pixel later.
    first_h = h * STRIDE_H - PAD_H + phase_h
    first_w = w * STRIDE_W - PAD_W + phase_w
    k = tl.arange(0, BLOCK_K).to(index)
    n = tl.program_id(1) * 2 * BLOCK_C + tl.arange(0, 2 * BLOCK_C)
    # Offsets are counted from the tile's first image: a tile holds few large images, or small ones.
    first_b = tl.program_id(0).to(tl.int64) * BLOCK_P // (rows * columns)
    p_x += first_b * x_b
    o_b = (b - first_b).to(index) * x_b
    p_weight += phase.to(tl.int64) * KERNEL_H * KERNEL_W * in_channels * 2 * channels
    acc = tl.zeros((BLOCK_P, 2 * BLOCK_C), tl.float32)
    steps = tl.cdiv(in_channels, BLOCK_K)
    for step in range(KERNEL_H * KERNEL_W * steps):
        tap, c = step // steps, step % steps * BLOCK_K + k
        in_h, in_w = first_h + tap // KERNEL_W * DILATION_H, first_w + tap % KERNEL_W * DILATION_W
        m_x = m_p & (in_h >= 0) & (in_h < height) & (in_w >= 0) & (in_w < width)
        o_x = o_b + in_h * x_h + in_w * x_w
        b_x = tl.load(p_x + o_x[:, None] + c[None, :] * x_c, m_x[:, None] & (c < in_channels)[None, :], 0.0)
        o_weight = (tap * in_channels + c)[:, None] * (2 * channels) + n[None, :]
        b_weight = tl.load(p_weight + o_weight, (c < in_channels)[:, None] & (n < 2 * channels)[None, :], 0.0)
        if WIDEN:
            b_x, b_weight = b_x.to(tl.float32), b_weight.to(tl.float32)
        acc = tl.dot(b_x, b_weight, acc, input_precision=PRECISION)
    f, g = tl.split(tl.reshape(acc, (BLOCK_P, BLOCK_C, 2)))
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    if BIASED:
        f += tl.load(p_bias + c, m_c, 0.0).to(tl.float32)[None, :]
        g += tl.load(p_bias + channels + c, m_c, 0.0).to(tl.float32)[None, :]
    m = m_p[:, None] & m_c[None, :]
    out_h, out_w = (h * PHASES + phase_h).to(tl.int64), (w * PHASES + phase_w).to(tl.int64)
    if KEEP_PRE:
        o_pre = (b * pre_b + out_h * pre_h + out_w * pre_w)[:, None] + c[None, :] * pre_c
        tl.store(p_pre + o_pre, f, m)
        tl.store(p_pre + o_pre + to_gate(channels, pre_c), g, m)
        # The gate of what was rounded: its backward starts from there.
        f, g = f.to(p_pre.dtype.element_ty).to(tl.float32), g.to(p_pre.dtype.element_ty).to(tl.float32)
    act, _, _ = activate(f, ACTIVATION, NEGATIVE_SLOPE)
    o_y = (b * y_b + out_h * y_h + out_w * y_w)[:, None] + c[None, :] * y_c
    tl.store(p_y + o_y, act * tl.sigmoid(g), m)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    negative_slope: float,
    config: Config,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, Cout, H', W') and pre (B, 2 Cout, H', W'), empty unless kept, of x (B, Cin, H, W).

    weight: (2 Cout, Cin, kh, kw), one group. Results have the dtype and memory format of x.
    """
    size = output_size(x, weight, stride, padding, dilation)
    packed = pack(weight[None])
    return _launch(
        x, packed, bias, size, 1, stride, padding, dilation, activation, negative_slope, config, keep_pre
    )  # fmt: skip


def upsample_forward(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    config: Config,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, Cout, 2H, 2W) and pre (B, 2 Cout, 2H, 2W), empty unless kept, of x (B, Cin, H, W).

    packed: (4, 2, 2, Cin, Cout, 2), see `transposed_weight.packed_phases`.
    """
    return _launch(
        x, packed, bias, (x.shape[2], x.shape[3]), 2, (1, 1), (1, 1), (1, 1), activation, negative_slope, config,
        keep_pre,
    )  # fmt: skip


def pack(weights: Tensor) -> Tensor:
    """(phases, 2 Cout, Cin, kh, kw) → (phases, kh, kw, Cin, Cout, 2): a step's rows, feature and gate side by side."""
    return weights.unflatten(1, (2, -1)).permute(0, 4, 5, 3, 2, 1).contiguous()


def output_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Rows and columns of a convolution's output."""
    height, width = (
        (x.shape[2 + k] + 2 * padding[k] - dilation[k] * (weight.shape[2 + k] - 1) - 1) // stride[k] + 1
        for k in range(2)
    )
    return height, width


def _launch(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    phases: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    negative_slope: float,
    config: Config,
    keep_pre: bool,
) -> tuple[Tensor, Tensor]:
    channels, rows, columns = packed.shape[4], *size
    y = like(x, channels, (phases * rows, phases * columns))
    pre = like(x, 2 * channels, y.shape[2:]) if keep_pre else x.new_empty(0)
    if y.numel():
        positions = len(x) * rows * columns
        grid = triton.cdiv(positions, config.positions), triton.cdiv(channels, config.channels), phases**2
        forward_kernel[grid](
            x, packed, packed if bias is None else bias, y, pre,
            len(x), x.shape[1], x.shape[2], x.shape[3], channels, rows, columns,
            *x.stride(), *y.stride(), *(pre.stride() if keep_pre else y.stride()),
            *stride, *padding, *dilation, *packed.shape[1:3], phases, bias is not None, keep_pre,
            _wide(x, packed, config.positions // (rows * columns) + 1),
            activation, negative_slope, _precision(x), interpreting() and x.dtype == torch.bfloat16,
            config.positions, config.channels, config.depth,
            num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    return y, pre


def _wide(x: Tensor, packed: Tensor, images: int) -> bool:
    """Whether what a program reads lies further apart than 32 bits count; it has this many images behind its first."""
    farthest = min(images, len(x) - 1) * x.stride(0)
    farthest += sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    return max(farthest, packed[0].numel()) >= 2**31


def _precision(x: Tensor) -> str:
    """What cuDNN would do with float32."""
    return "tf32" if x.dtype == torch.float32 and convolution_precision() == "tf32" else "ieee"
