"""Image retrieval: is a drawn image most like the real image that its caption is of?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 1024  # drawn images that are compared at once


def retrieval_ranks(drawn: Tensor, real: Tensor, own: Tensor) -> Tensor:
    """Rank of each drawn image's own real image among all real ones, int64 (N,), 1 for the nearest.

    Nearest is by the cosine of the features of a network. An image that is as near as the own one is ranked before
    it, so that a generator that draws one image for all captions finds one of them at most.

    Args:
        drawn: features (N, D) of the drawn images.
        real: features (R, D) of real images.
        own: int64 (N,), the row of `real` that each caption is of.
    """
    features = F.normalize(real.double(), dim=1)
    ranks = []
    for rows, places in zip(drawn.split(_ROWS), own.split(_ROWS), strict=True):
        cosines = F.normalize(rows.double(), dim=1) @ features.T
        ranks.append((cosines >= cosines.gather(1, places[:, None])).sum(dim=1))
    return torch.cat(ranks)
