"""Matching of image regions with keywords: the public functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

import fastt2i.ops.region_keyword.implementations  # noqa: F401  registers them
from fastt2i.ops.autocast import autocast_disabled, promote_for_autocast
from fastt2i.ops.checks import check_as_many, check_constants, check_positive, check_tensors
from fastt2i.ops.contrastive import check_pairs, contrastive_loss
from fastt2i.ops.dispatch.registry import make_call, run
from fastt2i.ops.overrides import overridable
from fastt2i.ops.region_keyword import reference
from fastt2i.ops.region_keyword.checks import INTEGERS, check_region_keyword


@overridable
def region_keyword_scores(
    regions: Tensor,
    keywords: Tensor,
    keyword_mask: Tensor | None = None,
    *,
    variant: str = "xmc",
    gamma_attention: float = 5.0,
    gamma_pooling: float = 5.0,
    impl: str | None = None,
) -> Tensor:
    """Matching scores of every image with every caption, by attention of a caption's keywords over an image's regions.

    `xmc`: the score inside XMC-GAN's `word_loss` (Zhang et al. 2021, eq. 7-9): cosine similarities, attention
    softmax_r(gamma_attention * s), the attended context's cosine with its keyword, log-sum-exp over keywords
    sharpened by gamma_pooling and divided by it. `damsm`: the score inside AttnGAN's `words_loss` (Xu et al. 2018,
    eq. 7-10): dot products, a softmax over the caption's keywords before the one over regions, and no division.

    Args:
        regions: (B_img, R, D) region features.
        keywords: (B_cap, T, D) keyword features, of the same dtype and on the same device.
        keyword_mask: (B_cap, T) bool, true where a keyword is, or whole numbers, not 0 there; None means everywhere.
        variant: `xmc` or `damsm`.
        gamma_attention: sharpness of the attention over regions (gamma 1).
        gamma_pooling: sharpness of the pooling over keywords (gamma 2).
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B_img, B_cap) float32, or float64 for float64 features. A feature that is NaN makes its scores NaN,
        and one whose squared norm is not finite (in float32, a norm above 1.8e19) does so instead of giving wrong ones.
        A caption without keywords scores 0, whatever the image, and sends no gradient; but NaN is what goes back
        through scores that are NaN, even if 0 arrives at them.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    op = "region_keyword_scores"
    regions, keywords, mask = _checked(op, regions, keywords, keyword_mask, variant)
    check_positive(op, gamma_attention=gamma_attention, gamma_pooling=gamma_pooling)
    return _scores(regions, keywords, mask, variant, gamma_attention, gamma_pooling, impl)


@overridable
def region_keyword_attention(
    regions: Tensor,
    keywords: Tensor,
    keyword_mask: Tensor | None = None,
    *,
    variant: str = "xmc",
    gamma_attention: float = 5.0,
) -> Tensor:
    """The attention of each caption's keywords over the regions of its own image, as inside the scores.

    Args:
        regions: (B, R, D) region features; image i belongs to caption i.
        keywords: (B, T, D) keyword features, of the same dtype and on the same device.
        keyword_mask: (B, T) bool, true where a keyword is, or whole numbers, not 0 there; None means everywhere.
        variant: `xmc` or `damsm`, as of `region_keyword_scores`.
        gamma_attention: sharpness of the attention over regions (gamma 1).

    Returns:
        (B, T, R) float32, or float64 for float64 features, differentiable any number of times: a keyword's row sums to
        1, and is zero where no keyword is.

    Raises:
        ValueError, TypeError: an argument does not fit.
    """
    op = "region_keyword_attention"
    regions, keywords, mask = _checked(op, regions, keywords, keyword_mask, variant)
    check_as_many(op, regions, keywords)
    check_positive(op, gamma_attention=gamma_attention)
    with autocast_disabled(regions.device):
        return reference.region_keyword_attention(regions, keywords, mask, variant, gamma_attention)


@overridable
def region_keyword_loss(
    regions: Tensor,
    keywords: Tensor,
    keyword_mask: Tensor | None = None,
    *,
    variant: str = "xmc",
    gamma_attention: float = 5.0,
    gamma_pooling: float = 5.0,
    gamma_matching: float = 50.0,
    exclude: Tensor | None = None,
    gather: ProcessGroup | None = None,
    equal_batch_sizes: bool = False,
    impl: str | None = None,
) -> Tensor:
    """Contrastive loss of images and captions by their regions and keywords.

    The cross-entropy of gamma_matching * region_keyword_scores with the diagonal, over captions plus over images, each
    a mean over the batch: XMC-GAN's `word_loss`, and the sum of the two that AttnGAN's `words_loss` returns.

    With `gather` the batch is that of all ranks together: every rank's captions are negatives for every rank's images.
    A rank computes the scores of its own images, so that the work is shared. All get the same loss, that of one process
    with the whole batch. Their backward passes, which must all take place, leave the gradient of the sum of all ranks'
    losses: N times the whole batch's for N ranks, which DistributedDataParallel's mean over ranks makes the whole
    batch's, however large each rank's share is. The host waits for the others' sizes, which no CUDA graph can hold,
    unless `equal_batch_sizes`; `torch.compile(fullgraph=True)` is for one process.

    Args:
        regions: (B, R, D) region features; image i belongs to caption i.
        keywords: (B, T, D) keyword features, of the same dtype and on the same device.
        keyword_mask: (B, T) bool, true where a keyword is, or whole numbers, not 0 there; None means everywhere.
        variant: `xmc` (usual gammas 5, 5, 50) or `damsm` (usual gammas 4, 5, 10).
        gamma_attention: sharpness of the attention over regions (gamma 1).
        gamma_pooling: sharpness of the pooling over keywords (gamma 2).
        gamma_matching: sharpness of the cross-entropy (gamma 3).
        exclude: (B, B) bool, true for pairs (image, caption) that are no negatives, such as images of one class; the
            diagonal always takes part. None excludes nothing. With `gather`, (B, captions of all ranks) in the order
            of ranks, as `ids[:, None] == gather_batch(ids, group)` is; on all ranks or on none.
        gather: a process group whose ranks' batches are one; None is this process alone. B and T may differ between
            ranks, and a B may be 0. Note that `torch.distributed.group.WORLD` is None until a group is initialised.
        equal_batch_sizes: with `gather`, B and T of all ranks are those of this one, which is for the caller to
            ensure.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        a scalar, float32, or float64 for float64 features; 0 for an empty batch.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    op = "region_keyword_loss"
    check_tensors(op, exclude=exclude)
    regions, keywords, mask = _checked(op, regions, keywords, keyword_mask, variant)
    gammas = {"gamma_attention": gamma_attention, "gamma_pooling": gamma_pooling, "gamma_matching": gamma_matching}
    check_positive(op, **gammas)
    batch = check_pairs(op, regions, keywords, exclude, gather, equal_batch_sizes)
    if batch is not None:
        keywords, mask = (batch.gather(batch.pad_keywords(x, 1)) for x in (keywords, mask))
    scores = _scores(regions, keywords, mask, variant, gamma_attention, gamma_pooling, impl)
    return contrastive_loss(gamma_matching * scores, exclude, batch)


def _checked(
    op: str, regions: Tensor, keywords: Tensor, mask: Tensor | None, variant: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Regions, keywords and a mask that fit together; a mask of ones for None."""
    check_tensors(op, regions=regions, keywords=keywords, keyword_mask=mask)
    regions, keywords = promote_for_autocast(regions, keywords)
    if mask is not None and mask.dtype in INTEGERS:  # as tokenizers give masks
        mask = mask.bool()
    check_region_keyword(op, regions, keywords, mask, variant)
    return regions, keywords, keywords.new_ones(keywords.shape[:2], dtype=torch.bool) if mask is None else mask


def _scores(
    regions: Tensor,
    keywords: Tensor,
    mask: Tensor,
    variant: str,
    gamma_attention: float,
    gamma_pooling: float,
    impl: str | None,
) -> Tensor:
    """The scores by the implementation that dispatch selects; arguments are checked, but for what it cannot do."""
    check_constants("region_keyword_scores", impl, gamma_attention=gamma_attention, gamma_pooling=gamma_pooling)
    call = make_call("region_keyword_scores", regions, keywords, settings=(variant,), num_key_tensors=2)
    arguments = (regions, keywords, mask, variant, gamma_attention, gamma_pooling)
    return run(call, impl, arguments)
