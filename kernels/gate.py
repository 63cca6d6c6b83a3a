"""The gate act(f) * sigmoid(g) and its derivatives: each reads every input once and writes every output once.

All kernels see pre = [f, g] as (batch, 2 * channels, positions) with any strides. A program owns a tile of positions of
one image, and channels, in float32. Channels-last without gaps is one image of all positions, whose rows are known to
the compiler, so that accesses have 16 bytes where channels are multiples of 8. Only where a tile begins is counted in
64 bits, unless strides are large.
What the bias gets leaves the kernel as one partial sum for each program's positions, and these are added up in a fixed
order: the same bits every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Positions times channels of a tile: with 4 warps every thread has 16 bytes of half-precision channels-last input, one
#: access. And the most channels in it.
TILE, MOST_CHANNELS = 1024, 64
#: Tiles of positions that a program of the backward kernel has one after another, where there are as many programs as
#: fill a GPU.
STEPS, MANY_PROGRAMS = 4, 4096
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def activate(f, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr):
    """act(f) and its first two derivatives; those that a kernel leaves unused are not computed."""
    if ACTIVATION == "identity":
        return f, tl.full(f.shape, 1.0, tl.float32), tl.full(f.shape, 0.0, tl.float32)
    elif ACTIVATION == "leaky_relu":
        return (
            tl.where(f > 0, f, NEGATIVE_SLOPE * f),
            tl.where(f > 0, 1.0, NEGATIVE_SLOPE),
            tl.full(f.shape, 0.0, tl.float32),
        )
    elif ACTIVATION == "relu":
        # A comparison with NaN is false: take f where it is not negative.
        return tl.where(f <= 0, 0.0, f), tl.where(f > 0, 1.0, 0.0), tl.full(f.shape, 0.0, tl.float32)
    elif ACTIVATION == "elu":
        e = tl.exp(tl.where(f > 0, 0.0, f))  # NaN is not above zero, and so stays
        return tl.where(f > 0, f, e - 1.0), tl.where(f > 0, 1.0, e), tl.where(f > 0, 0.0, e)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(f)
        slope = s * (1.0 - s)
        return f * s, s + f * slope, slope * (2.0 + f * (1.0 - 2.0 * s))
    else:
        t = 2.0 * tl.sigmoid(2.0 * f) - 1.0
        return t, 1.0 - t * t, -2.0 * t * (1.0 - t * t)


@triton.jit
def _tile(
    tile, tiles, positions, there,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Image and first position of a tile, positions behind that one and channels of its elements, and which exist.

    there: 1, or 0 if the tile does not exist.
    """
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    b, first = (tile // tiles).to(tl.int64), (tile % tiles).to(tl.int64) * BLOCK_P
    p = tl.arange(0, BLOCK_P)[:, None]
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    m = (p < tl.minimum(positions - first, BLOCK_P).to(tl.int32) * there) & (c < CHANNELS)
    return b, first, p.to(index), c.to(index), m


@triton.jit
def _at(p_x, b, first, p, c, x_b, x_c, x_p, ROW: tl.constexpr):
    """Where a tile's elements lie; ROW: channels of each position, if that is all that there is of strides, or 0."""
    if ROW:
        return p_x + first * ROW + (p * ROW + c)
    else:
        return p_x + (b * x_b + first * x_p) + (p * x_p + c * x_c)


@triton.jit
def to_gate(channels, stride):
    """How far behind the feature half the gate half lies: more than 32 bits hold, for strides that are large."""
    return tl.cast(channels, tl.int64) * stride


@triton.jit
def _to_gate(CHANNELS: tl.constexpr, x_c, ROW: tl.constexpr):
    return CHANNELS if ROW else to_gate(CHANNELS, x_c)


@triton.jit
def _halves(p_feature, x_c, m, CHANNELS: tl.constexpr, ROW: tl.constexpr):
    """The feature half and the gate half of a tile, in float32."""
    p_gate = p_feature + _to_gate(CHANNELS, x_c, ROW)
    return tl.load(p_feature, m, 0.0).to(tl.float32), tl.load(p_gate, m, 0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    p_pre, p_y, tiles, positions, pre_b, pre_c, pre_p, y_b, y_c, y_p,
    CHANNELS: tl.constexpr, ROW: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, first, p, c, m = _tile(tl.program_id(0), tiles, positions, 1, CHANNELS, WIDE, BLOCK_P, BLOCK_C)
    f, g = _halves(_at(p_pre, b, first, p, c, pre_b, pre_c, pre_p, 2 * ROW), pre_c, m, CHANNELS, ROW)
    act, _, _ = activate(f, ACTIVATION, NEGATIVE_SLOPE)
    tl.store(_at(p_y, b, first, p, c, y_b, y_c, y_p, ROW), act * tl.sigmoid(g), m)


@triton.jit
def backward_kernel(
    p_dy, p_pre, p_dpre, p_partial, count, tiles, positions,
    dy_b, dy_c, dy_p, pre_b, pre_c, pre_p, dpre_b, dpre_c, dpre_p,
    CHANNELS: tl.constexpr, ROW: tl.constexpr, WIDE: tl.constexpr, STEPS: tl.constexpr,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """count: of tiles, those of all images."""
    sum_f, sum_g = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for step in range(STEPS):
        tile = tl.program_id(0) * STEPS + step
        there = (tile < count).to(tl.int32)
        b, first, p, c, m = _tile(tile, tiles, positions, there, CHANNELS, WIDE, BLOCK_P, BLOCK_C)
        f, g = _halves(_at(p_pre, b, first, p, c, pre_b, pre_c, pre_p, 2 * ROW), pre_c, m, CHANNELS, ROW)
        dy = tl.load(_at(p_dy, b, first, p, c, dy_b, dy_c, dy_p, ROW), m, 0.0).to(tl.float32)
        act, slope, _ = activate(f, ACTIVATION, NEGATIVE_SLOPE)
        s = tl.sigmoid(g)
        df = dy * slope * s
        dg = dy * act * s * (1.0 - s)
        p_feature = _at(p_dpre, b, first, p, c, dpre_b, dpre_c, dpre_p, 2 * ROW)
        tl.store(p_feature, df, m)
        tl.store(p_feature + _to_gate(CHANNELS, dpre_c, ROW), dg, m)
        sum_f += tl.sum(tl.where(m, df, 0.0), axis=0)
        sum_g += tl.sum(tl.where(m, dg, 0.0), axis=0)
    # Partial sums (programs, 2 * channels) of what the bias gets.
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p_out = p_partial + tl.program_id(0).to(tl.int64) * (2 * CHANNELS) + o_c
    tl.store(p_out, sum_f, o_c < CHANNELS)
    tl.store(p_out + CHANNELS, sum_g, o_c < CHANNELS)


@triton.jit
def backward_backward_kernel(
    p_ddpre, p_dy, p_pre, p_ddy, p_dpre, tiles, positions,
    ddpre_b, ddpre_c, ddpre_p, dy_b, dy_c, dy_p, pre_b, pre_c, pre_p, ddy_b, ddy_c, ddy_p, dpre_b, dpre_c, dpre_p,
    CHANNELS: tl.constexpr, ROW: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, first, p, c, m = _tile(tl.program_id(0), tiles, positions, 1, CHANNELS, WIDE, BLOCK_P, BLOCK_C)
    f, g = _halves(_at(p_pre, b, first, p, c, pre_b, pre_c, pre_p, 2 * ROW), pre_c, m, CHANNELS, ROW)
    dy = tl.load(_at(p_dy, b, first, p, c, dy_b, dy_c, dy_p, ROW), m, 0.0).to(tl.float32)
    u, v = _halves(_at(p_ddpre, b, first, p, c, ddpre_b, ddpre_c, ddpre_p, 2 * ROW), ddpre_c, m, CHANNELS, ROW)
    act, slope, curvature = activate(f, ACTIVATION, NEGATIVE_SLOPE)
    s = tl.sigmoid(g)
    s1 = s * (1.0 - s)
    tl.store(_at(p_ddy, b, first, p, c, ddy_b, ddy_c, ddy_p, ROW), u * slope * s + v * act * s1, m)
    p_feature = _at(p_dpre, b, first, p, c, dpre_b, dpre_c, dpre_p, 2 * ROW)
    tl.store(p_feature, dy * (u * curvature * s + v * slope * s1), m)
    tl.store(p_feature + _to_gate(CHANNELS, dpre_c, ROW), dy * s1 * (u * slope + v * act * (1.0 - 2.0 * s)), m)


def forward(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f) * sigmoid(g) of pre (B, 2C, ...), in pre's dtype and memory format."""
    y = like(pre, pre.shape[1] // 2)
    if y.numel():
        plan = _plan(y, pre, y)
        forward_kernel[plan.grid](
            pre, y, plan.tiles, plan.positions, *plan.strides, **plan.constants,
            ACTIVATION=activation, NEGATIVE_SLOPE=negative_slope, **OPTIONS,
        )  # fmt: skip
    return y


def backward(dy: Tensor, pre: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor]:
    """The gradients of pre (B, 2C, ...), in its dtype and memory format, and of a bias (2C,), in float32."""
    dpre = like(pre, pre.shape[1])
    if not dpre.numel():
        return dpre, dpre.new_zeros(pre.shape[1], dtype=torch.float32)
    plan = _plan(dy, dy, pre, dpre)
    count, groups = plan.grid
    steps = STEPS if count * groups >= STEPS * MANY_PROGRAMS else 1
    grid = triton.cdiv(count, steps), groups
    partial = torch.empty(grid[0], pre.shape[1], dtype=torch.float32, device=pre.device)
    backward_kernel[grid](
        dy, pre, dpre, partial, count, plan.tiles, plan.positions, *plan.strides, **plan.constants,
        STEPS=steps, ACTIVATION=activation, NEGATIVE_SLOPE=negative_slope, **OPTIONS,
    )  # fmt: skip
    return dpre, partial.sum(dim=0)


def backward_backward(
    ddpre: Tensor, dy: Tensor, pre: Tensor, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """The gradients of dy and pre, given that of the dpre that `backward` returns."""
    ddy, dpre = like(pre, dy.shape[1]), like(pre, pre.shape[1])
    if ddy.numel():
        plan = _plan(dy, ddpre, dy, pre, ddy, dpre)
        backward_backward_kernel[plan.grid](
            ddpre, dy, pre, ddy, dpre, plan.tiles, plan.positions, *plan.strides, **plan.constants,
            ACTIVATION=activation, NEGATIVE_SLOPE=negative_slope, **OPTIONS,
        )  # fmt: skip
    return ddy, dpre


def like(x: Tensor, channels: int, size: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of another number of channels (and size and dtype), in the memory format of x."""
    shape = (x.shape[0], channels, *(x.shape[2:] if size is None else size))
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format)


class Plan(NamedTuple):
    """How kernels walk through tensors: programs, tiles and positions of an image, strides of batch, channel and
    position of each tensor, and what programs are compiled for."""

    grid: tuple[int, int]
    tiles: int
    positions: int
    strides: list[int]
    constants: dict[str, int]


def _plan(y: Tensor, *given: Tensor) -> Plan:
    """For an output of y's shape (B, C, ...), and tensors of C or 2C channels."""
    batch, channels = y.shape[:2]
    positions = y[0, 0].numel()
    rows = all(x.movedim(1, -1).is_contiguous() for x in given)
    if rows:
        batch, positions = 1, batch * positions
    block_c = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    block_p = TILE // block_c
    by_tensor = [strides(x) for x in given]
    tiles = triton.cdiv(positions, block_p)
    farthest = max(block_p * stride_p + x.shape[1] * stride_c
                   for x, (_, stride_c, stride_p) in zip(given, by_tensor, strict=True))  # fmt: skip
    constants = {"CHANNELS": channels, "ROW": channels if rows else 0, "WIDE": not rows and farthest >= 2**31}
    return Plan(
        (batch * tiles, triton.cdiv(channels, block_c)),
        tiles,
        positions,
        [0] * (3 * len(given)) if rows else [stride for three in by_tensor for stride in three],
        constants | {"BLOCK_P": block_p, "BLOCK_C": block_c},
    )


def strides(x: Tensor | None) -> tuple[int, int, int]:
    """Strides of batch, channel and position; the caller sees to it that positions have one. Of no tensor, zeros."""
    return (0, 0, 0) if x is None else (x.stride(0), x.stride(1), x.stride(-1) if x.ndim > 2 else 1)


def with_one_position_stride(x: Tensor) -> Tensor:
    """x itself in NCHW, channels-last and all else that has one stride for positions; a copy of anything stranger."""
    one = all(x.stride(k) == x.stride(k + 1) * x.shape[k + 1] for k in range(2, x.ndim - 1))
    return x if one else x.contiguous()
