"""Contrastive losses of images and captions: what all of them share, and that of global features and sentences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastt2i.kernels.launch import unavailable_reason
from fastt2i.ops import numerics
from fastt2i.ops.autocast import autocast_disabled, promote_for_autocast
from fastt2i.ops.checks import check_as_many, check_exclude, check_floating, check_positive, check_tensors
from fastt2i.ops.gather import GlobalBatch
from fastt2i.ops.numerics import upcast
from fastt2i.ops.overrides import overridable
from fastt2i.ops.transforms import under_transform


@overridable
def global_match_loss(
    global_features: Tensor,
    sentences: Tensor,
    temperature: float = 0.1,
    exclude: Tensor | None = None,
    *,
    gather: ProcessGroup | None = None,
    equal_batch_sizes: bool = False,
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
        equal_batch_sizes: with `gather`, B of all ranks is that of this one, which is for the caller to ensure.

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
    batch = check_pairs(op, global_features, sentences, exclude, gather, equal_batch_sizes)
    if batch is not None:
        sentences = batch.gather(sentences)
    with autocast_disabled(global_features.device):
        return contrastive_loss(cosines(global_features, sentences) / temperature, exclude, batch)


def check_pairs(
    op: str,
    images: Tensor,
    captions: Tensor,
    exclude: Tensor | None,
    gather: ProcessGroup | None,
    equal_batch_sizes: bool,
) -> GlobalBatch | None:
    """As many images as captions, and exclude fits; the batch of all ranks, where there are others."""
    check_as_many(op, images, captions)
    batch = None if gather is None else GlobalBatch(op, gather, captions, exclude, equal_batch_sizes)
    check_exclude(op, images, images.shape[0] if batch is None else sum(batch.sizes), exclude)
    return batch


def contrastive_loss(logits: Tensor, exclude: Tensor | None, batch: GlobalBatch | None) -> Tensor:
    """The loss of logits (B, captions of all ranks) of this rank's images."""
    if batch is None:
        return symmetric_cross_entropy(logits, exclude)
    own = torch.arange(logits.shape[0], device=logits.device)
    at = own + sum(batch.sizes[: batch.rank])
    if exclude is not None:
        exclude = exclude.clone()
        exclude[own, at] = False
        logits = logits.masked_fill(exclude, -torch.inf)
    # A rank has all captions of its images but not all images of its captions: of these it needs no more than the sums
    # that the others have, so that two rows travel and not the (all images, all captions) logits.
    over_captions = batch.sum((logits.logsumexp(dim=1) - 2 * logits[own, at]).sum())
    return (over_captions + batch.logsumexp(logits).sum()) / max(1, sum(batch.sizes))


def symmetric_cross_entropy(logits: Tensor, exclude: Tensor | None) -> Tensor:
    """Cross-entropy of logits (B, B) with the diagonal, over columns plus over rows, each a mean over the batch."""
    if not (_runs_triton(logits) and logits.shape[0]):
        return numerics.symmetric_cross_entropy(logits, exclude)
    # Imported when first used: Triton takes a while to load.
    from fastt2i.ops.contrastive_triton import symmetric_cross_entropy as by_triton

    return by_triton(logits, exclude)[0]


def cosines(images: Tensor, sentences: Tensor) -> Tensor:
    """Cosines (I, J) of features (I, D) and (J, D)."""
    return _normalized(upcast(images)) @ _normalized(upcast(sentences)).T


def _normalized(features: Tensor) -> Tensor:
    """Features (N, D) over their norms."""
    if not _runs_triton(features):
        return numerics.l2_normalize(features)
    from fastt2i.ops.contrastive_triton import l2_normalize as by_triton

    return by_triton(features)[0]


def _runs_triton(x: Tensor) -> bool:
    """On a GPU, where the definitions take a dozen small launches each; a compiler fuses these itself."""
    if not x.is_cuda or x.dtype != torch.float32:
        return False
    return not (torch.compiler.is_compiling() or unavailable_reason("cuda") or under_transform())
