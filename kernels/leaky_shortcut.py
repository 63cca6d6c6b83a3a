"""What stands behind a convolution of a residual network, in one pass; and its derivative, in one.

    y = gain * (leaky_relu(pre + bias) + shortcut + shortcut_bias), and its average pooling by 2

With the sides of the leaky ReLU given, this is linear: its derivative at those sides is the same kernel, and the
adjoint of that is the backward kernel, so that there are derivatives of every order. A program owns four tiles of
positions and a block of channels, in float32: with a pooling the four pixels of as many pooled ones. Channels, sizes
and strides are known to the compiler, so that neighbouring channels are read and written 16 bytes at a time. What the
biases get leaves the kernel as one partial sum for each program, and these are added up in a fixed order: the same bits
every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gate import MOST_CHANNELS, TILE, like, strides
from .partial_sums import sum_groups

#: Tiles of a program.
STEPS = 4
#: Partial sums that are added up by one program at first.
SUMMED = 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _place(
    step: tl.constexpr, elements, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Image, position in it and whether it exists (BLOCK_P, 1), and the pooled position, of a step of a program.

    elements: of all images, or with POOL of the pooled ones. WIDE: offsets take more than 32 bits.
    """
    program = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    if POOL:
        n = program * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
        pooled = n % (HEIGHT // 2 * (WIDTH // 2))
        row, column = pooled // (WIDTH // 2), pooled % (WIDTH // 2)
        p = (2 * row + step // 2) * WIDTH + 2 * column + step % 2
        return n // (HEIGHT // 2 * (WIDTH // 2)), p, pooled, n < elements
    else:
        n = (program * 4 + step) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
        p = n % (HEIGHT * WIDTH)
        return n // (HEIGHT * WIDTH), p, p, n < elements


@triton.jit
def _channels(WIDE: tl.constexpr, BLOCK_C: tl.constexpr):
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return c.to(tl.int64) if WIDE else c


@triton.jit
def _bias(p_bias, c, m, BIASED: tl.constexpr):
    """A bias (1, BLOCK_C), or zero."""
    if BIASED:
        return tl.load(p_bias + c, m, 0.0).to(tl.float32)[None, :]
    else:
        return 0.0


@triton.jit
def forward_kernel(
    p_pre, p_bias, p_shortcut, p_shortcut_bias, p_sides, p_sides_bias, p_y, p_pooled, elements,
    PRE_B: tl.constexpr, PRE_C: tl.constexpr, PRE_P: tl.constexpr,
    SHORT_B: tl.constexpr, SHORT_C: tl.constexpr, SHORT_P: tl.constexpr,
    SIDES_B: tl.constexpr, SIDES_C: tl.constexpr, SIDES_P: tl.constexpr,
    Y_B: tl.constexpr, Y_C: tl.constexpr, Y_P: tl.constexpr,
    POOLED_B: tl.constexpr, POOLED_C: tl.constexpr, POOLED_P: tl.constexpr,
    PRE: tl.constexpr, BIASED: tl.constexpr, SHORTCUT: tl.constexpr, SHORTCUT_BIASED: tl.constexpr,
    SIDES: tl.constexpr, SIDES_BIASED: tl.constexpr, POOL: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GAIN: tl.constexpr, SLOPE: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """With SIDES, where the leaky ReLU is steep is not where pre + bias is positive, but sides + sides_bias."""
    c = _channels(WIDE, BLOCK_C)
    m_c = c < CHANNELS
    bias, shortcut_bias = _bias(p_bias, c, m_c, BIASED), _bias(p_shortcut_bias, c, m_c, SHORTCUT_BIASED)
    sides_bias = _bias(p_sides_bias, c, m_c, SIDES_BIASED)
    c, m_c = c[None, :], m_c[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for step in tl.static_range(4):
        b, p, pooled, m = _place(step, elements, HEIGHT, WIDTH, POOL, WIDE, BLOCK_P)
        m = m & m_c
        x = tl.zeros((BLOCK_P, BLOCK_C), tl.float32) + bias
        if PRE:
            x += tl.load(p_pre + (b * PRE_B + c * PRE_C + p * PRE_P), m, 0.0).to(tl.float32)
        side = x
        if SIDES:
            side = tl.load(p_sides + (b * SIDES_B + c * SIDES_C + p * SIDES_P), m, 0.0).to(tl.float32) + sides_bias
        y = tl.where(side > 0, x, SLOPE * x) + shortcut_bias
        if SHORTCUT:
            y += tl.load(p_shortcut + (b * SHORT_B + c * SHORT_C + p * SHORT_P), m, 0.0).to(tl.float32)
        y *= GAIN
        tl.store(p_y + (b * Y_B + c * Y_C + p * Y_P), y, m)
        if POOL:
            # Of y as it is stored, as a pooling that came after would read it.
            total += y.to(p_y.dtype.element_ty).to(tl.float32)
            if step == 3:
                tl.store(p_pooled + (b * POOLED_B + c * POOLED_C + pooled * POOLED_P), 0.25 * total, m)


@triton.jit
def backward_kernel(
    p_dy, p_dpooled, p_sides, p_sides_bias, p_dpre, p_dshortcut, p_partial, elements,
    DY_B: tl.constexpr, DY_C: tl.constexpr, DY_P: tl.constexpr,
    POOLED_B: tl.constexpr, POOLED_C: tl.constexpr, POOLED_P: tl.constexpr,
    SIDES_B: tl.constexpr, SIDES_C: tl.constexpr, SIDES_P: tl.constexpr,
    DPRE_B: tl.constexpr, DPRE_C: tl.constexpr, DPRE_P: tl.constexpr,
    UPSTREAM: tl.constexpr, SIDES_BIASED: tl.constexpr, SHORTCUT: tl.constexpr, SUMS: tl.constexpr, POOL: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GAIN: tl.constexpr, SLOPE: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """p_partial: (programs of positions, CHANNELS, or twice as many with SHORTCUT), what the biases get."""
    c = _channels(WIDE, BLOCK_C)
    o_partial, m_partial = tl.program_id(0).to(tl.int64) * ((1 + SHORTCUT) * CHANNELS) + c, c < CHANNELS
    sides_bias = _bias(p_sides_bias, c, m_partial, SIDES_BIASED)
    c, m_c = c[None, :], m_partial[None, :]
    sum_pre = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_shortcut = sum_pre
    for step in tl.static_range(4):
        b, p, pooled, m = _place(step, elements, HEIGHT, WIDTH, POOL, WIDE, BLOCK_P)
        m = m & m_c
        dy = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        if UPSTREAM:
            dy += tl.load(p_dy + (b * DY_B + c * DY_C + p * DY_P), m, 0.0).to(tl.float32)
        if POOL:
            dy += 0.25 * tl.load(p_dpooled + (b * POOLED_B + c * POOLED_C + pooled * POOLED_P), m, 0.0).to(tl.float32)
        dy *= GAIN
        side = tl.load(p_sides + (b * SIDES_B + c * SIDES_C + p * SIDES_P), m, 0.0).to(tl.float32) + sides_bias
        dpre = tl.where(side > 0, dy, SLOPE * dy)
        o_dpre = b * DPRE_B + c * DPRE_C + p * DPRE_P
        tl.store(p_dpre + o_dpre, dpre, m)
        if SHORTCUT:
            tl.store(p_dshortcut + o_dpre, dy, m)
        # Where there is no element, dy is zero, and so is all that is summed.
        sum_pre += dpre
        sum_shortcut += dy
    if SUMS:
        tl.store(p_partial + o_partial, tl.sum(sum_pre, axis=0), m_partial)
        if SHORTCUT:
            tl.store(p_partial + o_partial + CHANNELS, tl.sum(sum_shortcut, axis=0), m_partial)


def forward(
    pre: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    gain: float,
    negative_slope: float,
    pool: bool,
    sides: Tensor | None = None,
    sides_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """gain * (leaky_relu(pre + bias) + shortcut + shortcut_bias), (B, C, H, W), in the memory format of the first
    tensor that is given, and its average pooling by 2, empty without `pool`.

    pre, shortcut: (B, C, H, W) or None, each with one stride for positions; bias, shortcut_bias: (C,), dense, or None.
    With sides (B, C, H, W) and sides_bias (C,), the leaky ReLU is steep where their sum is positive: this is linear.
    """
    model = next(x for x in (pre, shortcut, sides) if x is not None)
    height, width = model.shape[2:]
    y = like(model, model.shape[1])
    pooled = like(model, model.shape[1], (height // 2, width // 2)) if pool else model.new_empty(0)
    if y.numel():
        grid, sizes, tiles = _launch(y, pool, pre, shortcut, sides)
        forward_kernel[grid](
            pre, bias, shortcut, shortcut_bias, sides, sides_bias, y, pooled if pool else None, sizes[0],
            *strides(pre), *strides(shortcut), *strides(sides), *strides(y), *strides(pooled if pool else None),
            pre is not None, bias is not None, shortcut is not None, shortcut_bias is not None, sides is not None,
            sides_bias is not None, pool, *sizes[1:], gain, negative_slope, *tiles, **OPTIONS,
        )  # fmt: skip
    return y, pooled


def backward(
    dy: Tensor | None,
    dpooled: Tensor | None,
    sides: Tensor,
    sides_bias: Tensor | None,
    has_shortcut: bool,
    with_sums: bool,
    gain: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of pre and of shortcut, in the dtype and memory format of sides, and those of both biases, (C,).

    dy: (B, C, H, W), or None for zeros; dpooled: (B, C, H / 2, W / 2) or None; sides, sides_bias: where their sum is
    positive the leaky ReLU was steep. The second is empty without a shortcut, and the last ones without sums.
    """
    channels = sides.shape[1]
    dpre = like(sides, channels)
    dshortcut = like(sides, channels) if has_shortcut else sides.new_empty(0)
    dbias, dshortcut_bias = (
        sides.new_empty(channels if wanted else 0) for wanted in (with_sums, with_sums and has_shortcut)
    )
    if not dpre.numel():
        return dpre, dshortcut, dbias.zero_(), dshortcut_bias.zero_()
    grid, sizes, tiles = _launch(dpre, dpooled is not None, dy, sides)
    columns = (2 if has_shortcut else 1) * channels
    partial = torch.empty(grid[0] if with_sums else 0, columns, dtype=torch.float32, device=sides.device)
    backward_kernel[grid](
        dy, dpooled, sides, sides_bias, dpre, dshortcut if has_shortcut else None, partial if with_sums else None,
        sizes[0], *strides(dy), *strides(dpooled), *strides(sides), *strides(dpre), dy is not None,
        sides_bias is not None, has_shortcut, with_sums, dpooled is not None, *sizes[1:], gain, negative_slope, *tiles,
        **OPTIONS,
    )  # fmt: skip
    if with_sums:
        groups = torch.empty(triton.cdiv(len(partial), SUMMED), columns, dtype=torch.float32, device=sides.device)
        sum_groups(partial, SUMMED, groups)
        sum_groups(groups, len(groups), dbias, dshortcut_bias if has_shortcut else None)
    return dpre, dshortcut, dbias, dshortcut_bias


def _launch(
    y: Tensor, pool: bool, *others: Tensor | None
) -> tuple[tuple[int, int], tuple[int, int, int, int], tuple[bool, int, int]]:
    """Grid, sizes (positions of all images or of their pooled ones, channels, height, width) and (whether offsets take
    64 bits, positions, channels of a tile)."""
    batch, channels, height, width = y.shape
    block_c = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    block_p = TILE // block_c
    elements = batch * height * width // (4 if pool else 1)
    program = block_p if pool else STEPS * block_p
    furthest = max(sum(n * s for n, s in zip(x.shape, x.stride(), strict=True)) for x in (y, *others) if x is not None)
    # Lanes beyond the last element have offsets, too.
    wide = furthest + STEPS * TILE * max(x.stride(-1) for x in (y, *others) if x is not None) >= 2**31
    return (
        (triton.cdiv(elements, program), triton.cdiv(channels, block_c)),
        (elements, channels, height, width),
        (wide, block_p, block_c),
    )
