"""The contrastive loss of a square of logits: cross-entropies of rows and of columns with the diagonal; its gradient.
And features over their norms, whose products the logits are.

A program owns some rows, or some columns, and walks along them; their losses are added up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Rows of a tile, and how far it goes along them; and the side of the backward kernel's.
BLOCK_M, BLOCK_N, SIDE = 16, 64, 32
#: Features of a tile at most, and how many of them: few rows are to fill a GPU.
ROWS, MOST_FEATURES = 4, 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _logits(p_logits, p_exclude, o, m, diagonal, EXCLUDES: tl.constexpr):
    """Logits at some offsets; -inf where there are none and where a pair is no negative, but for the diagonal."""
    x = tl.load(p_logits + o, m, -float("inf"))
    if EXCLUDES:
        excluded = tl.load(p_exclude + o, m, 0).to(tl.int32)
        x = tl.where((excluded != 0) & (diagonal == 0), -float("inf"), x)
    return x


@triton.jit
def forward_kernel(
    p_logits, p_exclude, p_lse, p_loss, count, EXCLUDES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Log-sum-exp (2, count) of rows and of columns, and the share of each in the loss."""
    columns = tl.program_id(1)
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    stride_m, stride_n = tl.where(columns == 0, count, 1), tl.where(columns == 0, 1, count)
    top, total = tl.full((BLOCK_M,), -float("inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    for n in range(0, count, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        o, m = o_m[:, None] * stride_m + o_n[None, :] * stride_n, (o_m < count)[:, None] & (o_n < count)[None, :]
        x = _logits(p_logits, p_exclude, o, m, (o_m[:, None] == o_n[None, :]).to(tl.int32), EXCLUDES)
        higher = tl.maximum(top, tl.max(x, 1))
        finite = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(top - finite) + tl.sum(tl.exp(x - finite[:, None]), 1)
        top = higher
    lse = top + tl.log(total)
    own = tl.load(p_logits + o_m * (count + 1), o_m < count, 0.0)
    tl.store(p_lse + columns * count + o_m, lse, o_m < count)
    tl.store(p_loss + columns * count + o_m, (lse - own) / count, o_m < count)


@triton.jit
def backward_kernel(p_dloss, p_logits, p_exclude, p_lse, p_dlogits, count, EXCLUDES: tl.constexpr, SIDE: tl.constexpr):
    """(softmax over the row + softmax over the column - 2 on the diagonal) / count, times the gradient of the loss."""
    o_m, o_n = tl.program_id(0) * SIDE + tl.arange(0, SIDE), tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    o, m = o_m[:, None] * count + o_n[None, :], (o_m < count)[:, None] & (o_n < count)[None, :]
    diagonal = (o_m[:, None] == o_n[None, :]).to(tl.int32)
    x = _logits(p_logits, p_exclude, o, m, diagonal, EXCLUDES)
    of_rows = tl.load(p_lse + o_m, o_m < count, 0.0)[:, None]
    of_columns = tl.load(p_lse + count + o_n, o_n < count, 0.0)[None, :]
    gradient = tl.exp(x - of_rows) + tl.exp(x - of_columns) - 2.0 * diagonal.to(tl.float32)
    tl.store(p_dlogits + o, gradient * (tl.load(p_dloss) / count), m)


@triton.jit
def normalize_kernel(
    p_x, p_y, p_inverse, p_radial, rows, x_row, x_feature,
    FEATURES: tl.constexpr, FLOOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """x / |x|, its inverse norm, and that once more, or 0 where the floor of the squared norm, a constant, stands."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    p_x += o_m.to(tl.int64)[:, None] * x_row
    square = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, FEATURES, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(p_x + o_d * x_feature, (o_m < rows)[:, None] & (o_d < FEATURES), 0.0)
        square += tl.sum(x * x, 1)
    # NaN stays, and infinity becomes it: x / infinity would be 0, as if it were a result.
    inverse = 1.0 / tl.sqrt_rn(tl.where(square < FLOOR, FLOOR, square))
    inverse = tl.where(square < float("inf"), inverse, float("nan"))
    tl.store(p_inverse + o_m, inverse, o_m < rows)
    tl.store(p_radial + o_m, tl.where(square < FLOOR, 0.0, inverse), o_m < rows)
    p_y += o_m.to(tl.int64)[:, None] * FEATURES
    for d in range(0, FEATURES, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        m = (o_m < rows)[:, None] & (o_d < FEATURES)
        tl.store(p_y + o_d, tl.load(p_x + o_d * x_feature, m, 0.0) * inverse[:, None], m)


@triton.jit
def normalize_backward_kernel(
    p_dy, p_y, p_inverse, p_radial, p_dx, rows, dy_row, dy_feature,
    FEATURES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx = inverse dy - radial y <y, dy>."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_y = o_m.to(tl.int64)[:, None] * FEATURES
    p_dy += o_m.to(tl.int64)[:, None] * dy_row
    along = tl.zeros((BLOCK_M,), tl.float32)
    for d in range(0, FEATURES, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        m = (o_m < rows)[:, None] & (o_d < FEATURES)
        along += tl.sum(tl.load(p_y + o_y + o_d, m, 0.0) * tl.load(p_dy + o_d * dy_feature, m, 0.0), 1)
    along *= tl.load(p_radial + o_m, o_m < rows, 0.0)
    inverse = tl.load(p_inverse + o_m, o_m < rows, 0.0)
    for d in range(0, FEATURES, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)[None, :]
        m = (o_m < rows)[:, None] & (o_d < FEATURES)
        dx = inverse[:, None] * tl.load(p_dy + o_d * dy_feature, m, 0.0)
        tl.store(p_dx + o_y + o_d, dx - along[:, None] * tl.load(p_y + o_y + o_d, m, 0.0), m)


def forward(logits: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss of logits (B, B), contiguous, float32, and what its gradient needs: log-sum-exps (2, B).

    exclude: (B, B) bool, contiguous.
    """
    count = len(logits)
    lse, losses = (torch.empty(2, count, dtype=torch.float32, device=logits.device) for _ in range(2))
    forward_kernel[triton.cdiv(count, BLOCK_M), 2](
        logits, logits if exclude is None else exclude, lse, losses, count, exclude is not None, BLOCK_M, BLOCK_N,
        **OPTIONS,
    )  # fmt: skip
    return losses.sum(), lse


def backward(dloss: Tensor, logits: Tensor, exclude: Tensor | None, lse: Tensor) -> Tensor:
    """The gradient of the logits, given that of the loss, a scalar."""
    count, dlogits = len(logits), torch.empty_like(logits)
    tiles = triton.cdiv(count, SIDE)
    backward_kernel[tiles, tiles](
        dloss, logits, logits if exclude is None else exclude, lse, dlogits, count, exclude is not None, SIDE,
        **OPTIONS,
    )  # fmt: skip
    return dlogits


def normalize(x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """x (N, D) over its rows' norms, whose squares are at least `floor`; and (2, N) that its gradient needs.

    All are float32; y is contiguous.
    """
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    norms = torch.empty(2, len(x), dtype=torch.float32, device=x.device)
    if len(x):
        normalize_kernel[(triton.cdiv(len(x), ROWS),)](
            x, y, *norms, len(x), *x.stride(), x.shape[1], floor, ROWS, _chunk(x), **OPTIONS
        )
    return y, norms


def normalize_backward(dy: Tensor, y: Tensor, norms: Tensor) -> Tensor:
    """The gradient of x, given that of y (N, D), with any strides."""
    dx = torch.empty_like(y)
    if len(y):
        normalize_backward_kernel[(triton.cdiv(len(y), ROWS),)](
            dy, y, *norms, dx, len(y), *dy.stride(), y.shape[1], ROWS, _chunk(y), **OPTIONS
        )
    return dx


def _chunk(x: Tensor) -> int:
    """Features of a tile."""
    return min(MOST_FEATURES, triton.next_power_of_2(x.shape[1]))
