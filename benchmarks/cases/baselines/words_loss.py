"""AttnGAN's region-keyword loss (Xu et al. 2018) in the form of its published code: a loop over captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def words_loss(
    regions: Tensor, keywords: Tensor, mask: Tensor, lengths: Sequence[int], gammas: Sequence[float]
) -> Tensor:
    """Caption after caption against all images at once.

    Args:
        regions: (B, R, D).
        keywords: (B, T, D), of which the first `lengths` of each caption are real.
        mask: (B, T), unused: this form has the lengths.
        lengths: of the captions.
        gammas: sharpness of attention, pooling and matching.
    """
    attention_gamma, pooling_gamma, matching_gamma = gammas
    columns = []
    for keyword, length in zip(keywords, lengths, strict=True):
        word = keyword[:length]
        per_region = torch.softmax(regions @ word.T, dim=2)  # B x R x T, over words
        attention = torch.softmax(attention_gamma * per_region, dim=1)
        cosine = F.cosine_similarity(attention.mT @ regions, word[None], dim=2, eps=1e-8)
        columns.append(torch.exp(pooling_gamma * cosine).sum(dim=1).log())
    logits = matching_gamma * torch.stack(columns, dim=1)
    own = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
