"""How much images of one caption differ: generated ones, and those of a data set."""

from __future__ import annotations

import itertools
import statistics

import torch
from torch import Tensor

from fastt2i.data.alike import groups_of_alike
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import BadImage, Decoder
from fastt2i.pictures.pixels import to_signed

#: Groups of like images in a data set, and images of each, whose differences are measured.
GROUPS, IMAGES = 128, 4


def spread(images: Tensor) -> float:
    """Mean over captions and pixels of the standard deviation over images, in levels of 255.

    images: (C, N, 3, S, S) in [-1, 1], N images of each of C captions.
    """
    return float(images.float().std(dim=1, correction=0).mean()) * 127.5


def pair_distance(images: Tensor) -> float:
    """Mean absolute difference of two images of one caption, over all pairs and pixels.

    Its expectation is the same for every number of images, unlike that of a standard deviation: so generated images can
    be compared with a data set that has few images a caption.

    images: (N, 3, S, S), N at least 2, in [-1, 1]; the difference is in the same units.
    """
    first, second = torch.triu_indices(len(images), len(images), 1)
    return float((images[first] - images[second]).abs().mean())


def real_distance(dataset: Dataset, image_size: int) -> float | None:
    """Mean absolute difference of two images of one caption or class, in [-1, 1]; None where the set has no such.

    It is the same in every run on the same set, and for every decoder: images are chosen by their places. Those that
    cannot be decoded are passed over.
    """
    decode, distances = Decoder.of(dataset, image_size), []
    for group in itertools.islice(groups_of_alike(dataset), GROUPS):
        images = []
        for place in group[:IMAGES].tolist():
            try:
                images.append(torch.from_numpy(decode(place)))
            except (BadImage, OSError):
                continue
        if len(images) > 1:
            distances.append(pair_distance(to_signed(torch.stack(images))))
    return statistics.fmean(distances) or None if distances else None
