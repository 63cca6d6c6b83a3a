"""What stands behind a convolution of a residual network, in one pass; and its derivative, in one.

    y = gain * (leaky_relu(pre + bias) + shortcut + shortcut_bias), and its average pooling by 2

With the sign of pre + bias given, this is linear: its derivative at those signs is the same kernel, and the adjoint of
that is the backward kernel, so that there are derivatives of every order. The signs are all that derivatives need: a
bit for each number, where pre or y would be read again.

A program owns four tiles of positions and a block of channels, in float32: with a pooling the four pixels of as many
pooled ones. Channels, sizes and strides are known to the compiler, so that neighbouring channels are read and written
16 bytes at a time. What the biases get leaves the kernel as one partial sum for each program, and these are added up in
a fixed order: the same bits every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gate import MOST_CHANNELS, TILE, like, strides
from .partial_sums import sum_groups
from .signs import pack, program_channels, sign_bytes, signs_like, unpack

#: Tiles of a program.
STEPS = 4
#: Partial sums that are added up by one program, where there are more, at first.
SUMMED = 256
#: Said how many registers there may be, ptxas spills none; by itself it once took 40, and a stack, with Triton 3.6.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True, "maxnreg": 128}


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
def _bias(p_bias, c, m, BIASED: tl.constexpr):
    """A bias (1, BLOCK_C), or zero."""
    if BIASED:
        return tl.load(p_bias + c, m, 0.0).to(tl.float32)[None, :]
    else:
        return 0.0


@triton.jit
def forward_kernel(
    p_pre, p_bias, p_shortcut, p_shortcut_bias, p_signs, p_y, p_pooled, elements,
    PRE_B: tl.constexpr, PRE_C: tl.constexpr, PRE_P: tl.constexpr,
    SHORT_B: tl.constexpr, SHORT_C: tl.constexpr, SHORT_P: tl.constexpr,
    SIGNS_B: tl.constexpr, SIGNS_C: tl.constexpr, SIGNS_P: tl.constexpr,
    Y_B: tl.constexpr, Y_C: tl.constexpr, Y_P: tl.constexpr,
    POOLED_B: tl.constexpr, POOLED_C: tl.constexpr, POOLED_P: tl.constexpr,
    PRE: tl.constexpr, BIASED: tl.constexpr, SHORTCUT: tl.constexpr, SHORTCUT_BIASED: tl.constexpr,
    SIGNS: tl.constexpr, POOL: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GAIN: tl.constexpr, SLOPE: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """With SIGNS, those that are given tell where the leaky ReLU is steep; without, pre + bias does, and they are
    stored."""
    c = program_channels(WIDE, BLOCK_C)
    m_c = c < CHANNELS
    bias, shortcut_bias = _bias(p_bias, c, m_c, BIASED), _bias(p_shortcut_bias, c, m_c, SHORTCUT_BIASED)
    c, m_c = c[None, :], m_c[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for step in tl.static_range(4):
        b, p, pooled, m = _place(step, elements, HEIGHT, WIDTH, POOL, WIDE, BLOCK_P)
        p_bytes, m_bytes = sign_bytes(p_signs, b, p, m, SIGNS_B, SIGNS_C, SIGNS_P, CHANNELS, WIDE, BLOCK_C)
        m = m & m_c
        x = tl.zeros((BLOCK_P, BLOCK_C), tl.float32) + bias
        if PRE:
            x += tl.load(p_pre + (b * PRE_B + c * PRE_C + p * PRE_P), m, 0.0).to(tl.float32)
        if SIGNS:
            positive = unpack(tl.load(p_bytes, m_bytes, 0), BLOCK_P, BLOCK_C)
        else:
            positive = x > 0
            tl.store(p_bytes, pack(positive, BLOCK_P, BLOCK_C), m_bytes)
        y = tl.where(positive, x, SLOPE * x) + shortcut_bias
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
    p_dy, p_dpooled, p_signs, p_dpre, p_dshortcut, p_partial, elements,
    DY_B: tl.constexpr, DY_C: tl.constexpr, DY_P: tl.constexpr,
    POOLED_B: tl.constexpr, POOLED_C: tl.constexpr, POOLED_P: tl.constexpr,
    SIGNS_B: tl.constexpr, SIGNS_C: tl.constexpr, SIGNS_P: tl.constexpr,
    DPRE_B: tl.constexpr, DPRE_C: tl.constexpr, DPRE_P: tl.constexpr,
    UPSTREAM: tl.constexpr, SHORTCUT: tl.constexpr, SUMS: tl.constexpr, POOL: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GAIN: tl.constexpr, SLOPE: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """p_partial: (programs of positions, CHANNELS, or twice as many with SHORTCUT), what the biases get."""
    c = program_channels(WIDE, BLOCK_C)
    o_partial, m_partial = tl.program_id(0).to(tl.int64) * ((1 + SHORTCUT) * CHANNELS) + c, c < CHANNELS
    c, m_c = c[None, :], m_partial[None, :]
    sum_pre = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_shortcut = sum_pre
    for step in tl.static_range(4):
        b, p, pooled, m = _place(step, elements, HEIGHT, WIDTH, POOL, WIDE, BLOCK_P)
        p_bytes, m_bytes = sign_bytes(p_signs, b, p, m, SIGNS_B, SIGNS_C, SIGNS_P, CHANNELS, WIDE, BLOCK_C)
        m = m & m_c
        dy = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        if UPSTREAM:
            dy += tl.load(p_dy + (b * DY_B + c * DY_C + p * DY_P), m, 0.0).to(tl.float32)
        if POOL:
            dy += 0.25 * tl.load(p_dpooled + (b * POOLED_B + c * POOLED_C + pooled * POOLED_P), m, 0.0).to(tl.float32)
        dy *= GAIN
        positive = unpack(tl.load(p_bytes, m_bytes, 0), BLOCK_P, BLOCK_C)
        dpre = tl.where(positive, dy, SLOPE * dy)
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
    pre: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    gain: float,
    negative_slope: float,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """gain * (leaky_relu(pre + bias) + shortcut + shortcut_bias), (B, C, H, W), in the memory format of pre; its
    average pooling by 2, empty without `pool`; and the signs of pre + bias, (B, C / 8, H, W) uint8.

    pre, shortcut: (B, C, H, W), shortcut or None, each with one stride for positions; bias, shortcut_bias: (C,), dense,
    or None.
    """
    signs = signs_like(pre, pre.shape[1])
    return *_forward(pre, bias, shortcut, shortcut_bias, signs, False, gain, negative_slope, pool), signs


def tangent(
    pre: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    signs: Tensor,
    gain: float,
    negative_slope: float,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    """The first two of `forward` at these signs, of which this is linear; None stands for zeros, but not for all."""
    return _forward(pre, bias, shortcut, shortcut_bias, signs, True, gain, negative_slope, pool)


def _forward(
    pre: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    signs: Tensor,
    given: bool,
    gain: float,
    negative_slope: float,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    """given: whether the signs are; otherwise they are written."""
    y, pooled = outputs(pre, bias, shortcut, shortcut_bias, signs, pool)
    if y.numel():
        grid, sizes, tiles = _launch(y, pool, pre, shortcut, signs)
        forward_kernel[grid](
            pre, bias, shortcut, shortcut_bias, signs, y, pooled if pool else None, sizes[0],
            *strides(pre), *strides(shortcut), *strides(signs), *strides(y), *strides(pooled if pool else None),
            pre is not None, bias is not None, shortcut is not None, shortcut_bias is not None, given, pool, *sizes[1:],
            gain, negative_slope, *tiles, **OPTIONS,
        )  # fmt: skip
    return y, pooled


def outputs(
    pre: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    signs: Tensor,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    """What `tangent` returns, uninitialised, in the memory format of the signs."""
    model = next(x for x in (pre, shortcut, bias, shortcut_bias) if x is not None)
    channels, (height, width) = model.shape[1 if model.ndim > 1 else 0], signs.shape[2:]
    size = (height // 2, width // 2) if pool else (0, 0)
    y, pooled = like(signs, channels, dtype=model.dtype), like(signs, channels, size, model.dtype)
    return y, pooled if pool else model.new_empty(0)


def backward(
    dy: Tensor | None,
    dpooled: Tensor | None,
    signs: Tensor,
    has_shortcut: bool,
    with_sums: bool,
    gain: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of pre and of shortcut, in the memory format of the signs, and those of both biases, (C,).

    dy: (B, C, H, W), or None for zeros; dpooled: (B, C, H / 2, W / 2) or None, but one of them is there; signs: those
    of `forward`. The second is empty without a shortcut, and the last ones without sums.
    """
    dpre, dshortcut, dbias, dshortcut_bias = gradients(dy, dpooled, signs, has_shortcut, with_sums)
    if not dpre.numel():
        return dpre, dshortcut, dbias.zero_(), dshortcut_bias.zero_()
    grid, sizes, tiles = _launch(dpre, dpooled is not None, dy, signs)
    columns = (2 if has_shortcut else 1) * dpre.shape[1]
    partial = torch.empty(grid[0] if with_sums else 0, columns, dtype=torch.float32, device=signs.device)
    backward_kernel[grid](
        dy, dpooled, signs, dpre, dshortcut if has_shortcut else None, partial if with_sums else None, sizes[0],
        *strides(dy), *strides(dpooled), *strides(signs), *strides(dpre), dy is not None, has_shortcut, with_sums,
        dpooled is not None, *sizes[1:], gain, negative_slope, *tiles, **OPTIONS,
    )  # fmt: skip
    if with_sums:
        if len(partial) > SUMMED:
            groups = torch.empty(triton.cdiv(len(partial), SUMMED), columns, dtype=torch.float32, device=signs.device)
            sum_groups(partial, SUMMED, groups)
            partial = groups
        sum_groups(partial, len(partial), dbias, dshortcut_bias if has_shortcut else None)
    return dpre, dshortcut, dbias, dshortcut_bias


def gradients(
    dy: Tensor | None, dpooled: Tensor | None, signs: Tensor, has_shortcut: bool, with_sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `backward` returns, uninitialised."""
    model = next(x for x in (dy, dpooled) if x is not None)
    channels = model.shape[1]
    dpre = like(signs, channels, dtype=model.dtype)
    dshortcut = torch.empty_like(dpre) if has_shortcut else model.new_empty(0)
    dbias, dshortcut_bias = (
        model.new_empty(channels if wanted else 0) for wanted in (with_sums, with_sums and has_shortcut)
    )
    return dpre, dshortcut, dbias, dshortcut_bias


def _launch(
    y: Tensor, pool: bool, *others: Tensor | None
) -> tuple[tuple[int, int], tuple[int, int, int, int], tuple[bool, int, int]]:
    """Grid, sizes (positions of all images or of their pooled ones, channels, height, width) and (whether offsets take
    64 bits, positions, channels of a tile)."""
    batch, channels, height, width = y.shape
    block_c = max(8, min(MOST_CHANNELS, triton.next_power_of_2(channels)))  # a byte of signs at least
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
