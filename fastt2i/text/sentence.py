"""From tokens to features: a language model's network and the pooling of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SentenceNetwork(nn.Module):
    """Token features and sentence features of tokenised captions.

    Args:
        network: of a language model: `input_ids` and `attention_mask` (B, L) → token features (B, L, d).
        pooling: how tokens make a sentence: `mean`, `cls`, `max`, `lasttoken`, `weightedmean` or
            `mean_sqrt_len_tokens`, as sentence-transformers has them.
    """

    def __init__(self, network: nn.Module, pooling: str) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B captions.

        Args:
            input_ids: (B, L) int64, padded on the right.
            attention_mask: (B, L) int64, 1 where a token is, 0 in the padding.

        Returns:
            token features (B, L, d) as the model gives them, sentence features (B, d) of length sqrt(d); float32.
        """
        hidden = self.network(input_ids, attention_mask).float()
        return hidden, to_unit_variance(_pool(hidden, attention_mask.sum(dim=1), self.pooling))


def to_unit_variance(features: Tensor) -> Tensor:
    """Features (..., d) at length sqrt(d); zeros stay zero."""
    return torch.nn.functional.normalize(features, dim=-1) * features.shape[-1] ** 0.5


def _pool(hidden: Tensor, lengths: Tensor, mode: str) -> Tensor:
    """Sentence features (B, d) from token features (B, L, d) of captions of these lengths (B,), up to a factor."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    present = (places < lengths[:, None])[..., None]
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    if mode == "max":
        return hidden.masked_fill(~present, -torch.inf).amax(dim=1)
    weight = present * (places + 1)[:, None] if mode == "weightedmean" else present
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
