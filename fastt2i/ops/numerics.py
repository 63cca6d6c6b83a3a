"""Precision, norms and cross-entropies that the definitions of several operators share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: XMC-GAN's floor of a squared norm.
NORM_FLOOR = 1e-12


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype that losses are accumulated in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def upcast(x: Tensor) -> Tensor:
    """x in its `accumulation_dtype`."""
    return x.to(accumulation_dtype(x))


def l2_normalize(x: Tensor) -> Tensor:
    """x / |x| along the last dimension; tiny vectors go to zero instead of to NaN."""
    return x * squared_norm(x).clamp(min=NORM_FLOOR).rsqrt()


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 along the last dimension, which stays."""
    return infinity_to_nan(x.square().sum(dim=-1, keepdim=True))


def infinity_to_nan(square: Tensor) -> Tensor:
    """NaN in the place of infinity: what is divided by that would be 0, as if it were a result."""
    return square.masked_fill(square == torch.inf, torch.nan)


def symmetric_cross_entropy(logits: Tensor, exclude: Tensor | None) -> Tensor:
    """Cross-entropy of logits (B, B) with the diagonal, over columns plus over rows, each a mean over the batch."""
    if logits.shape[0] == 0:
        return logits.sum()
    if exclude is not None:
        negative = exclude & ~torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(negative, -torch.inf)
    target = torch.arange(logits.shape[0], device=logits.device)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
