"""Sentence features as the networks want them: decorrelated.

Captions of one data set have nearly the same sentence feature; what tells them apart is a small part of its variance.
Whitened, every direction that the captions vary in counts alike, so that a word such as `left` is as loud as the
subject of the sentence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Eigenvalues of the covariance are raised by this share of their mean, so that directions without variance stay quiet.
SHRINKAGE = 0.1
#: Mean square of whitened features, 1 for those that were fitted, above which captions say what none of these said.
LOUDEST = 4.0


class Whitening(nn.Module):
    """A fixed affine map of features (..., d), the identity until it is fitted.

    Args:
        dim: size of a feature.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take mean and covariance from features (N, d): zero-phase whitening with shrinkage, then unit variance."""
        x = features.double()
        mean = x.mean(dim=0)
        centered = x - mean
        values, vectors = torch.linalg.eigh(centered.T @ centered / len(x))
        matrix = vectors * (values.clamp(min=0) + SHRINKAGE * values.mean()).rsqrt() @ vectors.T
        scale = (centered @ matrix).square().mean().rsqrt()
        if not scale.isfinite():  # all captions are the same one: there is nothing to tell apart
            return
        self.mean.copy_(mean)
        self.matrix.copy_(matrix * scale)

    def is_for(self, features: Tensor) -> bool:
        """Whether features (N, d) are like those that it was fitted to: others come out far louder, since what those
        hardly varied in is raised most."""
        return bool(self(features).square().mean() <= LOUDEST)

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.matrix
