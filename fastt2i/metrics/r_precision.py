"""R-precision: does an image go with the caption that it was drawn from?"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_ROWS = 256  # images whose candidates are compared at once


def r_precision(
    images: Tensor,
    sentences: Tensor,
    caption_ids: NDArray[np.int64],
    *,
    candidates: int = 100,
    seed: int = 0,
    classes: NDArray[np.int64] | None = None,
) -> float:
    """Share of images whose own caption is the nearest of `candidates`.

    For every image the candidates are its own caption and `candidates - 1` captions drawn at random, without
    replacement, from the other captions of the set (all of them if there are fewer); nearest is by the cosine of the
    image's feature and the projected sentence features, and a tie is a miss. This is the protocol of AttnGAN (Xu et
    al. 2018, section 4) with R = 1; with `classes` it is DM-GAN's (Zhu et al. 2019), whose other captions are of other
    classes. The encoders are the caller's to name, since figures of different encoders cannot be compared.

    Args:
        images: (N, D) features of images drawn from captions.
        sentences: (N, D) features of those captions.
        caption_ids: (N,) equal numbers for equal captions; an equal caption is no candidate.
        candidates: captions to choose from.
        seed: of the random candidates.
        classes: (N,) of the images; a caption that any image of the own class has is no candidate. None for no classes.

    Raises:
        ValueError: an image has no other caption that it could be told apart from.
    """
    ids, first, numbers = np.unique(caption_ids, return_index=True, return_inverse=True)
    if len(ids) < 2:
        raise ValueError(f"R-precision needs 2 different captions or more, and there is {len(ids)}")
    texts = F.normalize(sentences[torch.from_numpy(first)].double(), dim=1)
    random = np.random.default_rng(seed)
    others = _Others(numbers, classes, len(ids))
    hits = 0
    for start in range(0, len(images), _ROWS):
        seen = F.normalize(images[start : start + _ROWS].double(), dim=1)
        for image, row in zip(seen, range(start, start + len(seen)), strict=True):
            chosen = others.choose(row, candidates - 1, random)
            cosines = texts[torch.from_numpy(np.append(chosen, numbers[row]))] @ image
            hits += bool(cosines[-1] > cosines[:-1].max())
    return hits / len(caption_ids)


class _Others:
    """The captions that are candidates beside an image's own.

    Args:
        numbers: (N,) caption of each image, from 0.
        classes: (N,) class of each image, or None.
        count: of captions.
    """

    def __init__(self, numbers: NDArray[np.int64], classes: NDArray[np.int64] | None, count: int) -> None:
        self._numbers, self._classes, self._count = numbers, classes, count
        self._of_class: dict[int, NDArray[np.int64]] = {}
        if classes is not None:
            for kind in np.unique(classes).tolist():
                self._of_class[kind] = np.setdiff1d(np.arange(count), numbers[classes == kind])
            if not all(len(own) for own in self._of_class.values()):
                raise ValueError("R-precision by other classes needs captions of 2 different classes or more")

    def choose(self, row: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
        """At most so many of them at random, without replacement."""
        own = int(self._numbers[row])
        if self._classes is not None:
            others = self._of_class[int(self._classes[row])]
            return others if len(others) <= most else random.choice(others, most, replace=False)
        count = self._count - 1
        chosen = np.arange(count) if count <= most else random.choice(count, most, replace=False)
        return chosen + (chosen >= own)
