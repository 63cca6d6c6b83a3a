"""Matching of image regions with keywords, and of images with sentences: the public functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastt2i.kernels.launch import unavailable_reason
from fastt2i.kernels.tiles import MOST_KEYWORDS
from fastt2i.ops import reference
from fastt2i.ops.autocast import promote_for_autocast
from fastt2i.ops.checks import (
    check_as_many,
    check_exclude,
    check_floating,
    check_positive,
    check_region_keyword,
    check_tensors,
)
from fastt2i.ops.dispatch.registry import Call, Implementation, describe, register, select
from fastt2i.ops.gather import Ranks
from fastt2i.ops.region_keyword import torch_impl as region_keyword_torch

#: Multiply-adds of the similarities, masked ones included, from which the blocked form won on a CPU (2 cores).
BLOCKS_FROM = 2**24


def _triton_scores(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> Tensor:
    # Imported when first used: Triton takes a while to load, and may not be there.
    from fastt2i.ops.region_keyword.triton_ops import region_keyword_scores as triton_scores

    return triton_scores(regions, keywords, mask, variant, gamma_attention, gamma_pooling)


def _no_torch_scores(call: Call) -> str | None:
    if call.device.type != "cuda" or torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return None
    if torch.cuda.is_current_stream_capturing():
        return "the host reads the captions' lengths, which cannot be captured in a CUDA graph"
    return None


def _no_triton_scores(call: Call) -> str | None:
    if call.dtype == torch.float64:
        return "the kernels compute in float32, so float64 goes through torch or the reference"
    variant, keywords = call.settings[0], call.shapes[-1][1]
    if variant == "damsm" and keywords > MOST_KEYWORDS:
        return f"keywords has {keywords} for every caption; with variant='damsm' it takes at most {MOST_KEYWORDS}"
    return unavailable_reason(call.device.type)


def _prefer_scores(call: Call) -> tuple[str, ...]:
    if call.device.type == "cuda":
        return ("triton", "torch")
    (images, regions, features), (captions, keywords, _) = call.shapes
    return ("torch",) if images * captions * keywords * regions * features >= BLOCKS_FROM else ("reference",)


register(
    "region_keyword_scores",
    {
        "reference": Implementation(reference.region_keyword_scores),
        "torch": Implementation(region_keyword_torch.region_keyword_scores, _no_torch_scores),
        "triton": Implementation(_triton_scores, _no_triton_scores),
    },
    _prefer_scores,
    f"triton, then torch on CUDA; on a CPU torch from {BLOCKS_FROM / 1e6:.0f} million multiply-adds of a similarity "
    "(B_img x B_cap x T x R x D), reference below",
)


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
    """How well every image goes with every caption, by attention of the caption's keywords over the image's regions.

    `xmc`: the score inside XMC-GAN's `word_loss` (Zhang et al. 2021, eq. 7-9): cosine similarities, attention
    softmax_r(gamma_attention * s), the attended context's cosine with its keyword, log-sum-exp over keywords
    sharpened by gamma_pooling and divided by it. `damsm`: the score inside AttnGAN's `words_loss` (Xu et al. 2018,
    eq. 7-10): dot products, a softmax over the caption's keywords before the one over regions, and no division.

    Args:
        regions: (B_img, R, D) region features.
        keywords: (B_cap, T, D) keyword features, of the same dtype and on the same device.
        keyword_mask: (B_cap, T) bool, true where a keyword is; None means everywhere.
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
    check_tensors(op, regions=regions, keywords=keywords, keyword_mask=keyword_mask)
    regions, keywords = promote_for_autocast(regions, keywords)
    check_region_keyword(op, regions, keywords, keyword_mask, variant)
    check_positive(op, gamma_attention=gamma_attention, gamma_pooling=gamma_pooling)
    if keyword_mask is None:
        keyword_mask = keywords.new_ones(keywords.shape[:2], dtype=torch.bool)
    arguments = (regions, keywords, keyword_mask, variant, gamma_attention, gamma_pooling)
    run = select(describe(op, regions, keywords, settings=(variant,), shaping=2), impl, arguments)
    with torch.autocast(regions.device.type, enabled=False):
        return run(*arguments)


def region_keyword_attention(
    regions: Tensor,
    keywords: Tensor,
    keyword_mask: Tensor | None = None,
    *,
    variant: str = "xmc",
    gamma_attention: float = 5.0,
) -> Tensor:
    """Where each keyword of a caption looks in the caption's own image: the attention inside the scores, for people.

    Args:
        regions: (B, R, D) region features; image i belongs to caption i.
        keywords: (B, T, D) keyword features, of the same dtype and on the same device.
        keyword_mask: (B, T) bool, true where a keyword is; None means everywhere.
        variant: `xmc` or `damsm`, as of `region_keyword_scores`.
        gamma_attention: sharpness of the attention over regions (gamma 1).

    Returns:
        (B, T, R) float32, or float64 for float64 features, differentiable any number of times: a keyword's row sums to
        1, and is zero where no keyword is.

    Raises:
        ValueError, TypeError: an argument does not fit.
    """
    op = "region_keyword_attention"
    check_tensors(op, regions=regions, keywords=keywords, keyword_mask=keyword_mask)
    regions, keywords = promote_for_autocast(regions, keywords)
    check_region_keyword(op, regions, keywords, keyword_mask, variant)
    check_as_many(op, regions, keywords)
    check_positive(op, gamma_attention=gamma_attention)
    if keyword_mask is None:
        keyword_mask = keywords.new_ones(keywords.shape[:2], dtype=torch.bool)
    with torch.autocast(regions.device.type, enabled=False):
        return reference.region_keyword_attention(regions, keywords, keyword_mask, variant, gamma_attention)


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
    even: bool = False,
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
    unless they are `even`; `torch.compile(fullgraph=True)` is for one process.

    Args:
        regions: (B, R, D) region features; image i belongs to caption i.
        keywords: (B, T, D) keyword features, of the same dtype and on the same device.
        keyword_mask: (B, T) bool, true where a keyword is; None means everywhere.
        variant: `xmc` (usual gammas 5, 5, 50) or `damsm` (usual gammas 4, 5, 10).
        gamma_attention: sharpness of the attention over regions (gamma 1).
        gamma_pooling: sharpness of the pooling over keywords (gamma 2).
        gamma_matching: sharpness of the cross-entropy (gamma 3).
        exclude: (B, B) bool, true for pairs (image, caption) that are no negatives, such as images of one class; the
            diagonal always takes part. None excludes nothing. With `gather`, (B, captions of all ranks) in the order
            of ranks, as `ids[:, None] == gather_batch(ids, group)` is; on all ranks or on none.
        gather: a process group whose ranks' batches are one; None is this process alone. B and T may differ between
            ranks, and a B may be 0. Note that `torch.distributed.group.WORLD` is None until a group is initialised.
        even: with `gather`, B and T of all ranks are those of this one, which is for the caller to know.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        a scalar, float32, or float64 for float64 features; 0 for an empty batch.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    op = "region_keyword_loss"
    check_tensors(op, regions=regions, keywords=keywords, keyword_mask=keyword_mask, exclude=exclude)
    regions, keywords = promote_for_autocast(regions, keywords)
    check_region_keyword(op, regions, keywords, keyword_mask, variant)
    check_positive(op, gamma_matching=gamma_matching)
    ranks = _check_pairs(op, regions, keywords, exclude, gather, even)
    if ranks is not None:
        if keyword_mask is None:
            keyword_mask = keywords.new_ones(keywords.shape[:2], dtype=torch.bool)
        keywords, keyword_mask = (ranks.gather(ranks.widen(x, 1)) for x in (keywords, keyword_mask))
    scores = region_keyword_scores(
        regions,
        keywords,
        keyword_mask,
        variant=variant,
        gamma_attention=gamma_attention,
        gamma_pooling=gamma_pooling,
        impl=impl,
    )
    return _matching_loss(gamma_matching * scores, exclude, ranks)


def global_match_loss(
    global_features: Tensor,
    sentences: Tensor,
    temperature: float = 0.1,
    exclude: Tensor | None = None,
    *,
    gather: ProcessGroup | None = None,
    even: bool = False,
) -> Tensor:
    """Contrastive loss of images and sentences: cosine / temperature, cross-entropy both ways, summed.

    XMC-GAN's `contrastive_loss` (Zhang et al. 2021, eq. 5), and with temperature 1 / gamma_3 the sum of the two that
    AttnGAN's `sent_loss` returns.

    Args:
        global_features: (B, D) global features of images.
        sentences: (B, D) sentence features, of the same dtype and on the same device; sentence i is image i's.
        temperature: of the softmax.
        exclude: (B, B) bool, true for pairs (image, sentence) that are no negatives; the diagonal always takes part.
            With `gather`, (B, sentences of all ranks).
        gather: a process group whose ranks' batches are one, as in `region_keyword_loss`, gradients included.
        even: with `gather`, B of all ranks is that of this one, which is for the caller to know.

    Returns:
        a scalar, float32, or float64 for float64 features; 0 for an empty batch.

    Raises:
        ValueError, TypeError: an argument does not fit.
    """
    op = "global_match_loss"
    check_tensors(op, global_features=global_features, sentences=sentences, exclude=exclude)
    global_features, sentences = promote_for_autocast(global_features, sentences)
    check_floating(op, global_features=global_features, sentences=sentences)
    if global_features.ndim != 2 or global_features.shape != sentences.shape:
        raise ValueError(
            f"{op}: global_features has shape {tuple(global_features.shape)} and sentences {tuple(sentences.shape)}; "
            "both must be (B, D)"
        )
    check_positive(op, temperature=temperature)
    ranks = _check_pairs(op, global_features, sentences, exclude, gather, even)
    if ranks is not None:
        sentences = ranks.gather(sentences)
    with torch.autocast(global_features.device.type, enabled=False):
        return _matching_loss(reference.cosines(global_features, sentences) / temperature, exclude, ranks)


def _check_pairs(
    op: str, images: Tensor, captions: Tensor, exclude: Tensor | None, gather: ProcessGroup | None, even: bool
) -> Ranks | None:
    """As many images as captions, and exclude fits; the ranks, where there are others."""
    check_as_many(op, images, captions)
    ranks = None if gather is None else Ranks(op, gather, captions, exclude, even)
    check_exclude(op, images, len(images) if ranks is None else sum(ranks.sizes), exclude)
    return ranks


def _matching_loss(logits: Tensor, exclude: Tensor | None, ranks: Ranks | None) -> Tensor:
    """The loss of logits of this rank's images with all captions."""
    if ranks is None:
        return reference.symmetric_cross_entropy(logits, exclude)
    own = torch.arange(len(logits), device=logits.device)
    at = own + sum(ranks.sizes[: ranks.rank])
    if exclude is not None:
        exclude = exclude.clone()
        exclude[own, at] = False
        logits = logits.masked_fill(exclude, -torch.inf)
    # A rank has all captions of its images but not all images of its captions: of these it needs no more than the sums
    # that the others have, so that two rows travel and not the (all images, all captions) logits.
    over_captions = ranks.sum((logits.logsumexp(dim=1) - 2 * logits[own, at]).sum())
    return (over_captions + ranks.logsumexp(logits).sum()) / max(1, sum(ranks.sizes))
