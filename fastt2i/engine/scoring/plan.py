"""What is drawn to score a model: captions, noise and their order, by a protocol."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastt2i.data.dataset import Dataset
from fastt2i.data.hashing import hash64
from fastt2i.engine.inputs import seeded
from fastt2i.engine.scoring.choices import Protocol

#: Images of the default protocol, where nobody says how many; and how many DF-GAN draws at least, roughly.
MOST_IMAGES, DF_GAN_IMAGES = 1000, 30_000
#: DF-GAN's noise: normal, cut off at two standard deviations by drawing anew, times this.
DF_GAN_TRUNCATION, DF_GAN_CUT = 0.88, 2.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """N images to draw.

    Attributes:
        protocol: whose conventions these are.
        captions: of each image.
        places: int64 (N,), the sample of the dataset that the caption is of.
        classes: int64 (N,), that sample's; None where the set has none.
        seed: of the noise.
        truncation: factor of the noise.
        cut: standard deviations beyond which noise is drawn anew; None for never.
        rounded: whether images are rounded to 8 bits, as in files, before anything is computed of them.
    """

    protocol: Protocol
    captions: list[str]
    places: NDArray[np.int64]
    classes: NDArray[np.int64] | None
    seed: int
    truncation: float
    cut: float | None
    rounded: bool

    def __len__(self) -> int:
        return len(self.captions)

    def noise(self, numbers: range, noise_dim: int) -> Tensor:
        """(n, noise_dim) of these images: each image's own depends on the seed and its number alone."""
        rows = []
        for number in numbers:
            random, row = seeded(self.seed, "scored image", number), torch.empty(noise_dim)
            if self.cut is None:
                row.normal_(generator=random)
            else:
                nn.init.trunc_normal_(row, a=-self.cut, b=self.cut, generator=random)
            rows.append(row)
        return torch.stack(rows) * self.truncation


def shuffled(dataset: Dataset) -> Dataset:
    """The dataset in an order that depends on its length alone, so that its first samples are not all of one class."""
    return dataset.select(np.argsort(hash64(np.arange(len(dataset))), kind="stable"))


def make_plan(
    dataset: Dataset, *, protocol: Protocol = "default", images: int | None, seed: int, truncation: float = 1.0
) -> Plan:
    """Which captions of a dataset are drawn, in which order.

    `default`: the first caption of each sample in turn, then the second of each (the first again where there is none),
    and so on. `df-gan`: a caption at random of each sample in turn, noise that is cut and scaled as DF-GAN's, and
    images that are not rounded to 8 bits.

    Args:
        dataset: with one sample or more.
        protocol: whose conventions to follow.
        images: how many; None for one of each sample, up to 1,000, and in `df-gan` for as many rounds as make up to
            30,000 (ten of CUB, one of COCO).
        seed: of the noise, and of the choice of captions.
        truncation: factor of the noise, in `default`.
    """
    samples = len(dataset)
    if images is None:
        images = min(samples, MOST_IMAGES) if protocol == "default" else samples * max(1, DF_GAN_IMAGES // samples)
    places = np.arange(images, dtype=np.int64) % samples
    rounds = np.arange(images, dtype=np.int64) // samples
    if protocol == "df-gan":
        rounds = np.random.default_rng(seed).integers(2**31, size=images)
    own = [dataset.captions[place] for place in places.tolist()]
    return Plan(
        protocol=protocol,
        captions=[texts[k % len(texts)] for texts, k in zip(own, rounds.tolist(), strict=True)],
        places=places,
        classes=None if dataset.classes is None else dataset.classes[places],
        seed=seed,
        truncation=truncation if protocol == "default" else DF_GAN_TRUNCATION,
        cut=None if protocol == "default" else DF_GAN_CUT,
        rounded=protocol == "default",
    )
