"""Sums over the rows of partial sums, in a fixed order: the same bits every run."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: Rows and columns that are added up at a time.
ROWS, COLUMNS = 16, 64
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def sum_kernel(
    p_partial, p_first, p_second, group_rows, all_rows, COLUMNS: tl.constexpr, FIRST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program adds up a group of rows of partial (all_rows, COLUMNS); the first FIRST columns go to one tensor, the
    rest to another."""
    group = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, group_rows, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)[:, None]
        m = (r < group_rows) & (group * group_rows + r < all_rows) & (c < COLUMNS)[None, :]
        total += tl.load(p_partial + (group * group_rows + r) * COLUMNS + c[None, :], m, 0.0)
    sums = tl.sum(total, axis=0)
    tl.store(p_first + group * FIRST + c, sums, c < FIRST)
    if FIRST < COLUMNS:
        tl.store(p_second + group * (COLUMNS - FIRST) + (c - FIRST), sums, (c >= FIRST) & (c < COLUMNS))


def sum_groups(partial: Tensor, rows: int, first: Tensor, second: Tensor | None = None) -> None:
    """Sums of each `rows` rows of partial (n, columns), float32, the last ones perhaps fewer, one row for each group:
    into the columns of one tensor, or of two side by side, in their dtypes."""
    columns, groups = partial.shape[1], triton.cdiv(len(partial), rows)
    sum_kernel[groups, triton.cdiv(columns, COLUMNS)](
        partial, first, second, rows, len(partial), columns, first.numel() // groups, ROWS, COLUMNS, **OPTIONS
    )
