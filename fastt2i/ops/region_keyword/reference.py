"""The definition of region-keyword scores in readable PyTorch, differentiable any number of times.

Shapes are written as suffixes: I images, J captions, T keywords, R regions, D features, B images with their captions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastt2i.ops.numerics import l2_normalize, squared_norm, upcast

VARIANTS = ("xmc", "damsm")

#: AttnGAN's floor of the product of two norms.
COSINE_FLOOR = 1e-8


def region_keyword_scores(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> Tensor:
    """Scores (I, J) of regions (I, R, D) and keywords (J, T, D) with mask (J, T)."""
    v_IRD, e_JTD = _normalized_features(regions, keywords, mask, variant)
    similarity_IJTR = torch.einsum("ird,jtd->ijtr", v_IRD, e_JTD)
    attention_IJTR = _attend(similarity_IJTR, mask, variant, gamma_attention)
    context_IJTD = torch.einsum("ijtr,ird->ijtd", attention_IJTR, v_IRD)
    # A context vector may be zero, and the norm of a zero vector has no gradient: floor the square, far below where the
    # published floor of the product takes hold.
    tiny = torch.finfo(context_IJTD.dtype).tiny
    context_norm = squared_norm(context_IJTD).clamp(min=tiny).sqrt().squeeze(3)
    keyword_norm = squared_norm(e_JTD).clamp(min=tiny).sqrt().squeeze(2)
    cosine_IJT = (context_IJTD * e_JTD).sum(dim=3) / (context_norm * keyword_norm).clamp(min=COSINE_FLOOR)
    return pool(gamma_pooling * cosine_IJT, mask) / (gamma_pooling if variant == "xmc" else 1.0)


def region_keyword_attention(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float
) -> Tensor:
    """Attention (B, T, R) of caption b's keywords over image b's regions; zero where no keyword is."""
    v_BRD, e_BTD = _normalized_features(regions, keywords, mask, variant)
    attention_BTR = _attend(e_BTD @ v_BRD.mT, mask, variant, gamma_attention)
    return attention_BTR.masked_fill(~mask[:, :, None], 0.0)


def pool(logits_IJT: Tensor, mask_JT: Tensor) -> Tensor:
    """Log-sum-exp over the real keywords; 0, without a gradient, for a caption that has none."""
    some_J = mask_JT.any(dim=1)
    # Of a caption without keywords all logits are replaced, so that neither NaN nor a gradient comes out.
    beside_J = torch.where(some_J, -torch.inf, 0.0).to(logits_IJT.dtype)  # two numbers make torch's default dtype
    safe_IJT = torch.where(mask_JT, logits_IJT, beside_J[:, None])
    return torch.where(some_J, torch.logsumexp(safe_IJT, dim=2), 0.0)


def _normalized_features(regions: Tensor, keywords: Tensor, mask: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """Features as their dot products are taken: normalised for `xmc`, as they are for `damsm`; masked keywords zero."""
    # Zeros where no keyword is, not only for its score: what stands there may be NaN, and 0 * NaN in a backward is NaN.
    v_IRD, e_JTD = upcast(regions), upcast(keywords).masked_fill(~mask[:, :, None], 0.0)
    return (l2_normalize(v_IRD), l2_normalize(e_JTD)) if variant == "xmc" else (v_IRD, e_JTD)


def _attend(similarity: Tensor, mask: Tensor, variant: str, gamma: float) -> Tensor:
    """Attention over regions of similarities (..., T, R), with a mask (..., T)."""
    if variant == "damsm":
        hidden = ~mask[..., None] & mask.any(dim=-1)[..., None, None]
        similarity = torch.softmax(similarity.masked_fill(hidden, -torch.inf), dim=-2)
    return torch.softmax(gamma * similarity, dim=-1)
