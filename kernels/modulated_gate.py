"""The gate of a convolution with its bias, a modulation by text and a residual, in one pass; and its derivative.

    y = leaky_relu(gain * (residual + scale * act(f + bias_f) * sigmoid(g + bias_g) + shift))

Of the leaky ReLU, which stands behind the last of a network's convolutions, the derivative needs signs alone: a bit for
each number. Where the sum inside has a second gradient, by another way, the backward kernel adds it as it reads both.

pre = [f, g] is (batch, 2 * channels, positions); scale and shift have a number for each image and channel. A program
owns some tiles of positions of one image, of a block of channels, in float32; channels and strides are known to the
compiler, so that neighbouring channels are read and written 16 bytes at a time. What scale, shift and bias get leaves
the kernel as one partial sum for each program, and these are added up in a fixed order: the same bits every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gate import MOST_CHANNELS, TILE, activate, like, strides
from .partial_sums import sum_groups
from .signs import pack, program_channels, sign_bytes, signs_like, unpack

#: The most tiles that a program takes in turn: partial sums then take an eightieth of the bytes, or less.
MOST_STEPS = 16
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _place(tiles, CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image, number of the program in it, and channels with whether they exist."""
    place = tl.program_id(0)
    c = program_channels(WIDE, BLOCK_C)
    return (place // tiles).to(tl.int64), place % tiles, c, c < CHANNELS


@triton.jit
def _positions(tile, step, positions, STEPS: tl.constexpr, BLOCK_P: tl.constexpr, WIDE: tl.constexpr):
    """Positions (BLOCK_P, 1) of a step of a program; WIDE: an image's offsets take more than 32 bits."""
    if WIDE:
        tile = tile.to(tl.int64)
    return (tile * STEPS + step) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]


@triton.jit
def _biases(p_bias, c, m, CHANNELS: tl.constexpr, BIASED: tl.constexpr):
    """What is added to both halves (1, BLOCK_C)."""
    if BIASED:
        feature, gate = tl.load(p_bias + c, m, 0.0), tl.load(p_bias + CHANNELS + c, m, 0.0)
        return feature.to(tl.float32)[None, :], gate.to(tl.float32)[None, :]
    else:
        return 0.0, 0.0


@triton.jit
def _modulation(p, b, c, m, STRIDE_B: tl.constexpr, STRIDE_C: tl.constexpr):
    """Scale or shift of an image (1, BLOCK_C)."""
    return tl.load(p + b * STRIDE_B + c * STRIDE_C, m, 0.0).to(tl.float32)[None, :]


@triton.jit
def forward_kernel(
    p_pre, p_bias, p_scale, p_shift, p_residual, p_y, p_signs, positions, tiles,
    PRE_B: tl.constexpr, PRE_C: tl.constexpr, PRE_P: tl.constexpr, R_B: tl.constexpr, R_C: tl.constexpr,
    R_P: tl.constexpr, Y_B: tl.constexpr, Y_C: tl.constexpr, Y_P: tl.constexpr,
    SIGNS_B: tl.constexpr, SIGNS_C: tl.constexpr, SIGNS_P: tl.constexpr,
    SCALE_B: tl.constexpr, SCALE_C: tl.constexpr, SHIFT_B: tl.constexpr, SHIFT_C: tl.constexpr,
    CHANNELS: tl.constexpr, BIASED: tl.constexpr, RESIDUAL: tl.constexpr, GAIN: tl.constexpr,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, OUTPUT_SLOPE: tl.constexpr,
    WIDE: tl.constexpr, STEPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """OUTPUT_SLOPE: of the leaky ReLU, whose signs are stored; 1 for none."""
    b, tile, c, m_c = _place(tiles, CHANNELS, WIDE, BLOCK_C)
    bias_f, bias_g = _biases(p_bias, c, m_c, CHANNELS, BIASED)
    scale = _modulation(p_scale, b, c, m_c, SCALE_B, SCALE_C)
    shift = _modulation(p_shift, b, c, m_c, SHIFT_B, SHIFT_C)
    c, m_c = c[None, :], m_c[None, :]
    for step in range(STEPS):
        p = _positions(tile, step, positions, STEPS, BLOCK_P, WIDE)
        m = (p < positions) & m_c
        p_f = p_pre + b * PRE_B + (c * PRE_C + p * PRE_P)
        f = tl.load(p_f, m, 0.0).to(tl.float32) + bias_f
        g = tl.load(p_f + CHANNELS * PRE_C, m, 0.0).to(tl.float32) + bias_g
        act, _, _ = activate(f, ACTIVATION, NEGATIVE_SLOPE)
        y = scale * (act * tl.sigmoid(g)) + shift
        if RESIDUAL:
            y += tl.load(p_residual + b * R_B + (c * R_C + p * R_P), m, 0.0).to(tl.float32)
        y *= GAIN
        if OUTPUT_SLOPE != 1:
            positive = y > 0
            p_bytes, m_bytes = sign_bytes(
                p_signs, b, p, p < positions, SIGNS_B, SIGNS_C, SIGNS_P, CHANNELS, WIDE, BLOCK_C
            )
            tl.store(p_bytes, pack(positive, BLOCK_P, BLOCK_C), m_bytes)
            y = tl.where(positive, y, OUTPUT_SLOPE * y)
        tl.store(p_y + b * Y_B + (c * Y_C + p * Y_P), y, m)


@triton.jit
def backward_kernel(
    p_dy, p_signs, p_more, p_pre, p_bias, p_scale, p_dpre, p_dresidual, p_partial, positions, tiles,
    DY_B: tl.constexpr, DY_C: tl.constexpr, DY_P: tl.constexpr,
    SIGNS_B: tl.constexpr, SIGNS_C: tl.constexpr, SIGNS_P: tl.constexpr,
    MORE_B: tl.constexpr, MORE_C: tl.constexpr, MORE_P: tl.constexpr,
    PRE_B: tl.constexpr, PRE_C: tl.constexpr, PRE_P: tl.constexpr,
    DPRE_B: tl.constexpr, DPRE_C: tl.constexpr, DPRE_P: tl.constexpr, R_B: tl.constexpr, R_C: tl.constexpr,
    R_P: tl.constexpr, SCALE_B: tl.constexpr, SCALE_C: tl.constexpr,
    CHANNELS: tl.constexpr, BIASED: tl.constexpr, RESIDUAL: tl.constexpr, MORE: tl.constexpr, GAIN: tl.constexpr,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, OUTPUT_SLOPE: tl.constexpr,
    WIDE: tl.constexpr, STEPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """p_partial: (programs of positions, 4, CHANNELS), what scale, shift and both halves of the bias get."""
    b, tile, c, m_c = _place(tiles, CHANNELS, WIDE, BLOCK_C)
    bias_f, bias_g = _biases(p_bias, c, m_c, CHANNELS, BIASED)
    scale = _modulation(p_scale, b, c, m_c, SCALE_B, SCALE_C)
    o_partial, m_partial = tl.program_id(0).to(tl.int64) * (4 * CHANNELS) + c, m_c
    c, m_c = c[None, :], m_c[None, :]
    sum_scale = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_shift, sum_f, sum_g = sum_scale, sum_scale, sum_scale
    for step in range(STEPS):
        p = _positions(tile, step, positions, STEPS, BLOCK_P, WIDE)
        m = (p < positions) & m_c
        p_f = p_pre + b * PRE_B + (c * PRE_C + p * PRE_P)
        f = tl.load(p_f, m, 0.0).to(tl.float32) + bias_f
        g = tl.load(p_f + CHANNELS * PRE_C, m, 0.0).to(tl.float32) + bias_g
        dy = GAIN * tl.load(p_dy + b * DY_B + (c * DY_C + p * DY_P), m, 0.0).to(tl.float32)
        if OUTPUT_SLOPE != 1:
            p_bytes, m_bytes = sign_bytes(
                p_signs, b, p, p < positions, SIGNS_B, SIGNS_C, SIGNS_P, CHANNELS, WIDE, BLOCK_C
            )
            dy = tl.where(unpack(tl.load(p_bytes, m_bytes, 0), BLOCK_P, BLOCK_C), dy, OUTPUT_SLOPE * dy)
        if MORE:
            dy += tl.load(p_more + b * MORE_B + (c * MORE_C + p * MORE_P), m, 0.0).to(tl.float32)
        if RESIDUAL:
            tl.store(p_dresidual + b * R_B + (c * R_C + p * R_P), dy, m)
        act, slope, _ = activate(f, ACTIVATION, NEGATIVE_SLOPE)
        s = tl.sigmoid(g)
        # Where there is no element, dy is zero, and so is all that is summed.
        sum_scale += dy * act * s
        sum_shift += dy
        dgated = dy * scale
        df = dgated * slope * s
        dg = dgated * act * s * (1.0 - s)
        sum_f += df
        sum_g += dg
        o_dpre = b * DPRE_B + (c * DPRE_C + p * DPRE_P)
        tl.store(p_dpre + o_dpre, df, m)
        tl.store(p_dpre + o_dpre + CHANNELS * DPRE_C, dg, m)
    tl.store(p_partial + o_partial, tl.sum(sum_scale, axis=0), m_partial)
    tl.store(p_partial + o_partial + CHANNELS, tl.sum(sum_shift, axis=0), m_partial)
    tl.store(p_partial + o_partial + 2 * CHANNELS, tl.sum(sum_f, axis=0), m_partial)
    tl.store(p_partial + o_partial + 3 * CHANNELS, tl.sum(sum_g, axis=0), m_partial)


def forward(
    pre: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    activation: str,
    negative_slope: float,
    output_slope: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """leaky_relu(gain * (residual + scale * gate(pre + bias) + shift)), (B, C, H, W) in pre's dtype and memory format;
    and the signs of it, (B, C / 8, H, W) uint8, empty without a leaky ReLU.

    pre: (B, 2C, H, W) and residual (B, C, H, W), each with one stride for positions; bias: (2C,), dense; scale, shift:
    (B, C), of any strides; output_slope: of the leaky ReLU, 1 for none.
    """
    y, signs = outputs(pre, output_slope)
    if y.numel():
        there = signs if output_slope != 1 else None
        grid, sizes, tiles = _launch(y, pre, y if residual is None else residual)
        forward_kernel[grid](
            pre, bias, scale, shift, residual, y, there, *sizes, *strides(pre), *strides(residual), *strides(y),
            *strides(there), *scale.stride(), *shift.stride(), y.shape[1], bias is not None, residual is not None,
            gain, activation, negative_slope, output_slope, *tiles, **OPTIONS,
        )  # fmt: skip
    return y, signs


def outputs(pre: Tensor, output_slope: float) -> tuple[Tensor, Tensor]:
    """What `forward` returns, uninitialised."""
    channels = pre.shape[1] // 2
    signs = signs_like(pre, channels) if output_slope != 1 else pre.new_empty(0, dtype=torch.uint8)
    return like(pre, channels), signs


def backward(
    dy: Tensor,
    signs: Tensor | None,
    more: Tensor | None,
    pre: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    has_residual: bool,
    gain: float,
    activation: str,
    negative_slope: float,
    output_slope: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of pre, in its dtype and memory format; of residual, empty without one; of scale and shift, (B, 2,
    C) in their dtype; and of bias, (2C,) in pre's.

    dy: (B, C, H, W), with one stride for positions; signs: those of `forward`, or None without a leaky ReLU; more: the
    sum's second gradient, as dy is, or None; the rest as for `forward`.
    """
    batch, channels = dy.shape[:2]
    dpre, dresidual, dmodulation, dbias = gradients(pre, scale, has_residual)
    if not dpre.numel():
        return dpre, dresidual, dmodulation.zero_(), dbias.zero_()
    grid, sizes, tiles = _launch(dy, pre, dpre, dy if more is None else more)
    partial = torch.empty(grid[0], 4 * channels, dtype=torch.float32, device=pre.device)
    backward_kernel[grid](
        dy, signs, more, pre, bias, scale, dpre, dresidual if has_residual else None, partial, *sizes, *strides(dy),
        *strides(signs), *strides(more), *strides(pre), *strides(dpre), *strides(dresidual if has_residual else None),
        *scale.stride(), channels, bias is not None, has_residual, more is not None, gain, activation, negative_slope,
        output_slope, *tiles, **OPTIONS,
    )  # fmt: skip
    images = torch.empty(batch, 2 * channels, dtype=torch.float32, device=pre.device)
    sum_groups(partial, len(partial) // batch, dmodulation, images)
    sum_groups(images, batch, dbias)
    return dpre, dresidual, dmodulation, dbias


def gradients(pre: Tensor, scale: Tensor, has_residual: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `backward` returns, uninitialised."""
    batch, channels = scale.shape
    dresidual = like(pre, channels) if has_residual else pre.new_empty(0)
    return like(pre, 2 * channels), dresidual, scale.new_empty(batch, 2, channels), pre.new_empty(2 * channels)


def _launch(y: Tensor, *others: Tensor) -> tuple[tuple[int, int], tuple[int, int], tuple[bool, int, int, int]]:
    """Grid, (positions, programs of an image) and (whether offsets take 64 bits, steps, positions, channels of a tile)
    for an output of y's shape."""
    batch, channels = y.shape[:2]
    positions = y[0, 0].numel()
    block_c = max(8, min(MOST_CHANNELS, triton.next_power_of_2(channels)))  # a byte of signs at least
    block_p = TILE // block_c
    # Of small images, as many programs as there are tiles: they would not fill a GPU otherwise.
    steps = min(MOST_STEPS, max(1, triton.next_power_of_2(positions // block_p) // 64))
    programs = triton.cdiv(positions, steps * block_p)
    furthest = max(x.stride(1) * x.shape[1] + strides(x)[2] * (positions + steps * block_p) for x in (y, *others))
    return (
        (batch * programs, triton.cdiv(channels, block_c)),
        (positions, programs),
        (furthest >= 2**31, steps, block_p, block_c),
    )
