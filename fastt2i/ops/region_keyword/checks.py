"""Checks of the arguments of region-keyword scores."""

from __future__ import annotations

import torch
from torch import Tensor

from fastt2i.ops.checks import check_device, check_floating
from fastt2i.ops.region_keyword.reference import VARIANTS

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_region_keyword(op: str, regions: Tensor, keywords: Tensor, mask: Tensor | None, variant: str) -> None:
    """regions is (I, R, D), keywords (J, T, D), mask bool (J, T)."""
    check_floating(op, regions=regions, keywords=keywords)
    if regions.ndim != 3 or keywords.ndim != 3 or regions.shape[2] != keywords.shape[2]:
        raise ValueError(
            f"{op}: regions has shape {tuple(regions.shape)} and keywords {tuple(keywords.shape)}; they must be "
            "(B_img, R, D) and (B_cap, T, D) with the same D"
        )
    if 0 in regions.shape[1:] or keywords.shape[1] == 0:
        raise ValueError(
            f"{op}: regions has shape {tuple(regions.shape)} and keywords {tuple(keywords.shape)}; there must be at "
            "least one region, one keyword and one feature"
        )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"{op}: keyword_mask is {mask.dtype}; it must be bool, true where a keyword is")
        if mask.shape != keywords.shape[:2]:
            shape = tuple(keywords.shape[:2])
            raise ValueError(f"{op}: keyword_mask has shape {tuple(mask.shape)}; it must be {shape}, as keywords")
        check_device(op, regions, keyword_mask=mask)
    check_variant(op, variant)


def check_variant(op: str, variant: str) -> None:
    """The variant is one that exists."""
    if variant not in VARIANTS:
        raise ValueError(f"{op}: variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")
