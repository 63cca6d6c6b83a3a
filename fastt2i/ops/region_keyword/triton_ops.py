"""Custom operators of the Triton region-keyword scores: fake implementations for tracing, and the autograd formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastt2i.kernels import region_keyword as kernels
from fastt2i.kernels.region_keyword_operands import Operands, operands_like


def region_keyword_scores(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> Tensor:
    """Scores (I, J) in float32 of regions (I, R, D) and keywords (J, T, D) with mask (J, T); differentiable once."""
    return region_keyword(regions, keywords, mask, variant, gamma_attention, gamma_pooling)[0]


@torch.library.custom_op("fastt2i::region_keyword", mutates_args=())
def region_keyword(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores (I, J), the (3, I, J * T) statistics and the five operands that its gradient needs."""
    scores, statistics, operands = kernels.forward(regions, keywords, mask, variant, gamma_attention, gamma_pooling)
    return scores, statistics, *operands


@torch.library.custom_op("fastt2i::region_keyword_backward", mutates_args=())
def region_keyword_backward(
    dscores: Tensor,
    regions: Tensor,
    keywords: Tensor,
    scores: Tensor,
    statistics: Tensor,
    operands: list[Tensor],
    variant: str,
    gamma_attention: float,
    gamma_pooling: float,
    for_regions: bool,
    for_keywords: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of regions and keywords, an empty tensor for one that is not wanted.

    Having no formula of its own, it raises where it is differentiated.
    """
    return kernels.backward(
        dscores.contiguous(),
        regions,
        keywords,
        scores,
        statistics,
        Operands(*operands),
        variant,
        gamma_attention,
        gamma_pooling,
        for_regions,
        for_keywords,
    )


@region_keyword.register_fake
def _(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    images, (captions, count) = regions.shape[0], mask.shape
    scores = regions.new_empty(images, captions, dtype=torch.float32)
    statistics = regions.new_empty(3, images, captions * count, dtype=torch.float32)
    return scores, statistics, *operands_like(regions, keywords)


@region_keyword_backward.register_fake
def _(dscores: Tensor, regions: Tensor, keywords: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, for_regions, for_keywords = others
    return (
        regions.new_empty(regions.shape if for_regions else 0),
        keywords.new_empty(keywords.shape if for_keywords else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    regions, keywords, _, *ctx.settings = inputs
    ctx.mark_non_differentiable(*output[1:])
    # Regions and keywords for autograd alone: that the backward is given them makes it raise in a second derivative.
    ctx.save_for_backward(regions, keywords, *output)


def _autograd_backward(ctx: Any, dscores: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    for_regions, for_keywords = ctx.needs_input_grad[:2]
    regions, keywords, scores, statistics, *operands = ctx.saved_tensors
    dregions, dkeywords = region_keyword_backward(
        dscores, regions, keywords, scores, statistics, operands, *ctx.settings, for_regions, for_keywords
    )
    return dregions if for_regions else None, dkeywords if for_keywords else None, None, None, None, None


region_keyword.register_autograd(_autograd_backward, setup_context=_setup_context)
