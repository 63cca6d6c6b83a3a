"""The gated convolution in one kernel: an implicit GEMM for both halves, then the gate before anything is written.

Rows of the matrix product are output positions, columns are output channels, and what is summed over is input channels
of all taps. A feature column and its gate column stand side by side (weight and bias are packed so), so that one wide
product serves both and `tl.split` parts them without a shuffle between threads.

Channels are known to the compiler, and so are rows where all images are channels-last without gaps: accesses then have
16 bytes if channels are multiples of 8.

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
def _pixel(b, h, w, height, width, x_b, x_h, x_w, ROW: tl.constexpr):
    """Where a pixel's channels begin; ROW: channels of each pixel, if that is all that there is of strides, or 0."""
    if ROW:
        return ((b * height + h) * width + w) * ROW
    else:
        return b * x_b + h * x_h + w * x_w


@triton.jit
def forward_kernel(
    p_x, p_weight, p_bias, p_y, p_pre,
    batch, height, width, rows, columns, steps,
    x_b, x_c, x_h, x_w, y_b, y_c, y_h, y_w, pre_b, pre_c, pre_h, pre_w,
    IN_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PHASES: tl.constexpr, BIASED: tl.constexpr, KEEP_PRE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """rows and columns are those of one phase's output; PHASES is 1, or 2 where it upsamples; ROWS: whether all images
    are channels-last without gaps, and strides say nothing; WIDE: see `_wide`. steps: of the loop, a number that the
    compiler must not know: it would unroll it, and spill in float32."""
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    phase = tl.program_id(2)
    phase_h, phase_w = phase // PHASES, phase % PHASES
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = p < tl.cast(batch, tl.int64) * rows * columns
    b, h, w = p // (rows * columns), (p // columns % rows).to(index), (p % columns).to(index)
    # Where the first tap of each position lies; a later phase begins a pixel later.
    first_h = h * STRIDE_H - PAD_H + phase_h
    first_w = w * STRIDE_W - PAD_W + phase_w
    k = tl.arange(0, BLOCK_K)
    n = tl.program_id(1) * 2 * BLOCK_C + tl.arange(0, 2 * BLOCK_C)
    # Offsets are counted from the tile's first image: a tile holds few large images, or small ones.
    first_b = tl.program_id(0).to(tl.int64) * BLOCK_P // (rows * columns)
    X_ROW: tl.constexpr = IN_CHANNELS if ROWS else 0
    p_x += _pixel(first_b, 0, 0, height, width, x_b, x_h, x_w, X_ROW)
    tile_b = (b - first_b).to(index)
    p_weight += phase.to(tl.int64) * (KERNEL_H * KERNEL_W * IN_CHANNELS * 2 * CHANNELS)
    acc = tl.zeros((BLOCK_P, 2 * BLOCK_C), tl.float32)
    TAP_STEPS: tl.constexpr = (IN_CHANNELS + BLOCK_K - 1) // BLOCK_K
    for step in range(steps):
        tap, c = step // TAP_STEPS, step % TAP_STEPS * BLOCK_K + k
        in_h, in_w = first_h + tap // KERNEL_W * DILATION_H, first_w + tap % KERNEL_W * DILATION_W
        m_x = m_p & (in_h >= 0) & (in_h < height) & (in_w >= 0) & (in_w < width)
        o_x = _pixel(tile_b, in_h, in_w, height, width, x_b, x_h, x_w, X_ROW)
        o_c = c if ROWS else c.to(index) * x_c
        b_x = tl.load(p_x + (o_x[:, None] + o_c[None, :]), m_x[:, None] & (c < IN_CHANNELS)[None, :], 0.0)
        o_weight = (tap * IN_CHANNELS + c)[:, None] * (2 * CHANNELS) + n[None, :]
        b_weight = tl.load(p_weight + o_weight, (c < IN_CHANNELS)[:, None] & (n < 2 * CHANNELS)[None, :], 0.0)
        if WIDEN:
            b_x, b_weight = b_x.to(tl.float32), b_weight.to(tl.float32)
        acc = tl.dot(b_x, b_weight, acc, input_precision=PRECISION)
    if BIASED:
        acc += tl.load(p_bias + n, n < 2 * CHANNELS, 0.0)[None, :]
    f, g = tl.split(tl.reshape(acc, (BLOCK_P, BLOCK_C, 2)))
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = m_p[:, None] & (c < CHANNELS)[None, :]
    out_h, out_w = (h * PHASES + phase_h).to(tl.int64), (w * PHASES + phase_w).to(tl.int64)
    out_rows, out_columns = rows * PHASES, columns * PHASES
    if KEEP_PRE:
        o_pre = _pixel(b, out_h, out_w, out_rows, out_columns, pre_b, pre_h, pre_w, 2 * CHANNELS if ROWS else 0)
        o_c = c if ROWS else c.to(tl.int64) * pre_c
        p_feature = p_pre + (o_pre[:, None] + o_c[None, :])
        tl.store(p_feature, f, m)
        tl.store(p_feature + (CHANNELS if ROWS else to_gate(CHANNELS, pre_c)), g, m)
        # The gate of what was rounded: its backward starts from there.
        f, g = f.to(p_pre.dtype.element_ty).to(tl.float32), g.to(p_pre.dtype.element_ty).to(tl.float32)
    act, _, _ = activate(f, ACTIVATION, NEGATIVE_SLOPE)
    o_y = _pixel(b, out_h, out_w, out_rows, out_columns, y_b, y_h, y_w, CHANNELS if ROWS else 0)
    o_c = c if ROWS else c.to(tl.int64) * y_c
    tl.store(p_y + (o_y[:, None] + o_c[None, :]), act * tl.sigmoid(g), m)


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


def pack_bias(bias: Tensor) -> Tensor:
    """(2 Cout,) → (Cout, 2) in float32, by one launch; of 16 bits, some tiles would read it a number at a time."""
    halves = bias.unflatten(0, (2, -1))
    return torch.empty_like(halves.t(), dtype=torch.float32, memory_format=torch.contiguous_format).copy_(halves.t())


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
        images = [x, y, pre] if keep_pre else [x, y]
        rows_known = all(image.movedim(1, -1).is_contiguous() for image in images)
        strides = [0] * 12 if rows_known else [*x.stride(), *y.stride(), *(pre if keep_pre else y).stride()]
        steps = packed.shape[1] * packed.shape[2] * triton.cdiv(x.shape[1], config.depth)
        forward_kernel[grid](
            x, packed, packed if bias is None else pack_bias(bias), y, pre,
            len(x), *x.shape[2:], rows, columns, steps, *strides, x.shape[1], channels, rows_known,
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
