"""The gate act(f) * sigmoid(g) and its derivatives: each reads every input once and writes every output once.

All kernels see pre = [f, g] as (batch, 2 * channels, positions) with any strides, so NCHW and channels-last take the
same path. A program owns a tile of positions (of the whole batch, numbered through) and channels, in float32.
What the bias gets leaves the kernel as one partial sum for each tile of positions, and these are added up in a fixed
order: the same bits every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Positions times channels of a tile: with 4 warps every thread has 16 bytes of half-precision channels-last input, one
#: access. And the most channels in it.
TILE, MOST_CHANNELS = 1024, 64
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
def _tile(batch, channels, positions, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which batch, position and channel every element of this program's tile has, and whether it exists."""
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return p // positions, p % positions, c, (p < tl.cast(batch, tl.int64) * positions) & (c < channels)


@triton.jit
def to_gate(channels, stride):
    """How far behind the feature half the gate half lies: more than 32 bits hold, for strides that are large."""
    return tl.cast(channels, tl.int64) * stride


@triton.jit
def _halves(p_feature, channels, stride, m):
    """The feature half and the gate half of a tile, in float32."""
    p_gate = p_feature + to_gate(channels, stride)
    return tl.load(p_feature, m, 0.0).to(tl.float32), tl.load(p_gate, m, 0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    p_pre, p_y, batch, channels, positions,
    pre_b, pre_c, pre_p, y_b, y_c, y_p,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, p, c, m = _tile(batch, channels, positions, BLOCK_P, BLOCK_C)
    o_pre = b * pre_b + c * pre_c + p * pre_p
    f, g = _halves(p_pre + o_pre, channels, pre_c, m)
    act, _, _ = activate(f, ACTIVATION, NEGATIVE_SLOPE)
    tl.store(p_y + b * y_b + c * y_c + p * y_p, act * tl.sigmoid(g), m)


@triton.jit
def backward_kernel(
    p_dy, p_pre, p_dpre, p_partial, batch, channels, positions,
    dy_b, dy_c, dy_p, pre_b, pre_c, pre_p, dpre_b, dpre_c, dpre_p,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, p, c, m = _tile(batch, channels, positions, BLOCK_P, BLOCK_C)
    o_pre = b * pre_b + c * pre_c + p * pre_p
    f, g = _halves(p_pre + o_pre, channels, pre_c, m)
    dy = tl.load(p_dy + b * dy_b + c * dy_c + p * dy_p, m, 0.0).to(tl.float32)
    act, slope, _ = activate(f, ACTIVATION, NEGATIVE_SLOPE)
    s = tl.sigmoid(g)
    df = dy * slope * s
    dg = dy * act * s * (1.0 - s)
    o_dpre = b * dpre_b + c * dpre_c + p * dpre_p
    tl.store(p_dpre + o_dpre, df, m)
    tl.store(p_dpre + o_dpre + to_gate(channels, dpre_c), dg, m)
    # Partial sums (tiles of positions, 2 * channels) of what the bias gets.
    o_c = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_partial = tl.program_id(0).to(tl.int64) * 2 * channels + o_c
    tl.store(p_partial + o_partial, tl.sum(tl.where(m, df, 0.0), axis=0), o_c < channels)
    tl.store(p_partial + o_partial + channels, tl.sum(tl.where(m, dg, 0.0), axis=0), o_c < channels)


@triton.jit
def backward_backward_kernel(
    p_ddpre, p_dy, p_pre, p_ddy, p_dpre, batch, channels, positions,
    ddpre_b, ddpre_c, ddpre_p, dy_b, dy_c, dy_p, pre_b, pre_c, pre_p, ddy_b, ddy_c, ddy_p, dpre_b, dpre_c, dpre_p,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, p, c, m = _tile(batch, channels, positions, BLOCK_P, BLOCK_C)
    o_pre = b * pre_b + c * pre_c + p * pre_p
    f, g = _halves(p_pre + o_pre, channels, pre_c, m)
    dy = tl.load(p_dy + b * dy_b + c * dy_c + p * dy_p, m, 0.0).to(tl.float32)
    o_ddpre = b * ddpre_b + c * ddpre_c + p * ddpre_p
    u, v = _halves(p_ddpre + o_ddpre, channels, ddpre_c, m)
    act, slope, curvature = activate(f, ACTIVATION, NEGATIVE_SLOPE)
    s = tl.sigmoid(g)
    s1 = s * (1.0 - s)
    tl.store(p_ddy + b * ddy_b + c * ddy_c + p * ddy_p, u * slope * s + v * act * s1, m)
    o_dpre = b * dpre_b + c * dpre_c + p * dpre_p
    tl.store(p_dpre + o_dpre, dy * (u * curvature * s + v * slope * s1), m)
    tl.store(p_dpre + o_dpre + to_gate(channels, dpre_c), dy * s1 * (u * slope + v * act * (1.0 - 2.0 * s)), m)


def forward(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f) * sigmoid(g) of pre (B, 2C, ...), in pre's dtype and memory format."""
    y = like(pre, pre.shape[1] // 2)
    if y.numel():
        grid, sizes, blocks = _launch(y)
        forward_kernel[grid](
            pre, y, *sizes, *_strides(pre), *_strides(y), activation, negative_slope, *blocks, **OPTIONS
        )
    return y


def backward(dy: Tensor, pre: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor]:
    """The gradients of pre (B, 2C, ...), in its dtype and memory format, and of a bias (2C,), in float32."""
    dpre = like(pre, pre.shape[1])
    if not dpre.numel():
        return dpre, dpre.new_zeros(pre.shape[1], dtype=torch.float32)
    grid, sizes, blocks = _launch(dy)
    partial = torch.empty(grid[0], pre.shape[1], dtype=torch.float32, device=pre.device)
    backward_kernel[grid](
        dy, pre, dpre, partial, *sizes, *_strides(dy), *_strides(pre), *_strides(dpre),
        activation, negative_slope, *blocks, **OPTIONS,
    )  # fmt: skip
    return dpre, partial.sum(dim=0)


def backward_backward(
    ddpre: Tensor, dy: Tensor, pre: Tensor, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """The gradients of dy and pre, given that of the dpre that `backward` returns."""
    ddy, dpre = like(pre, dy.shape[1]), like(pre, pre.shape[1])
    if ddy.numel():
        grid, sizes, blocks = _launch(dy)
        backward_backward_kernel[grid](
            ddpre, dy, pre, ddy, dpre, *sizes,
            *_strides(ddpre), *_strides(dy), *_strides(pre), *_strides(ddy), *_strides(dpre),
            activation, negative_slope, *blocks, **OPTIONS,
        )  # fmt: skip
    return ddy, dpre


def like(x: Tensor, channels: int, size: Sequence[int] | None = None) -> Tensor:
    """An uninitialised tensor of another number of channels (and size), in the memory format of x."""
    shape = (x.shape[0], channels, *(x.shape[2:] if size is None else size))
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _launch(y: Tensor) -> tuple[tuple[int, int], tuple[int, int, int], tuple[int, int]]:
    """Grid, sizes (batch, channels, positions) and tile (positions, channels) for an output of y's shape."""
    batch, channels = y.shape[:2]
    positions = y[0, 0].numel()
    block_c = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    block_p = TILE // block_c
    grid = triton.cdiv(batch * positions, block_p), triton.cdiv(channels, block_c)
    return grid, (batch, channels, positions), (block_p, block_c)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, channel and position; the caller sees to it that positions have one."""
    return x.stride(0), x.stride(1), x.stride(-1) if x.ndim > 2 else 1


def one_position_stride(x: Tensor) -> bool:
    """Whether all dimensions behind the channels can be walked with one stride, as in NCHW and channels-last."""
    return all(x.stride(k) == x.stride(k + 1) * x.shape[k + 1] for k in range(2, x.ndim - 1))
