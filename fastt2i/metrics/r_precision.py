"""R-precision: does an image go with the caption that it was drawn from?"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def r_precision(
    images: Tensor, sentences: Tensor, caption_ids: np.ndarray, *, candidates: int = 100, seed: int = 0
) -> float:
    """Share of images whose own caption is the nearest of `candidates`.

    For every image the candidates are its own caption and `candidates - 1` captions drawn at random, without
    replacement, from the other captions of the set (all of them if there are fewer); nearest is by the cosine of the
    image's feature and the projected sentence features, and a tie is a miss. This is the protocol of AttnGAN (Xu et
    al. 2018, section 4) with R = 1; the encoders are the caller's to name, since figures of different encoders cannot
    be compared.

    Args:
        images: (N, D) features of images drawn from captions.
        sentences: (N, D) features of those captions.
        caption_ids: (N,) equal numbers for equal captions; an equal caption is no candidate.
        candidates: captions to choose from.
        seed: of the random candidates.

    Raises:
        ValueError: all captions are the same, so that there is nothing to tell apart.
    """
    ids, first = np.unique(caption_ids, return_index=True)
    if len(ids) < 2:
        raise ValueError(f"R-precision needs 2 different captions or more, and there is {len(ids)}")
    scores = F.normalize(images.double(), dim=1) @ F.normalize(sentences[torch.from_numpy(first)].double(), dim=1).T
    random = np.random.default_rng(seed)
    hits = 0
    for row, caption_id in zip(scores.cpu().numpy(), caption_ids, strict=True):
        own = int(np.searchsorted(ids, caption_id))
        others = np.delete(np.arange(len(ids)), own)
        if len(others) > candidates - 1:
            others = random.choice(others, candidates - 1, replace=False)
        hits += bool(row[own] > row[others].max())
    return hits / len(caption_ids)
