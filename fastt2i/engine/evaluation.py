"""How well a generator follows captions that it was not trained on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastt2i.config import LossConfig
from fastt2i.data.shapes import parse_caption
from fastt2i.engine.inputs import seeded
from fastt2i.metrics.attributes import attribute_accuracy
from fastt2i.metrics.r_precision import r_precision
from fastt2i.metrics.spread import pair_distance, spread
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.ops import region_keyword_attention
from fastt2i.pictures.pixels import to_uint8
from fastt2i.text.features import TextFeatures

#: Noises that are tried on a caption, and captions that this is done with.
NOISES, SPREAD_CAPTIONS = 8, 32


class CaptionSet:
    """Captions with their features and a fixed noise for each: what grids and scores are made from.

    Args:
        captions: N captions.
        features: their text features.
        noise_dim: size of the generator's noise.
        seed: of the noise.
        device: where the networks are.
        real_distance: mean absolute difference of two real images of one caption, in [-1, 1]; None if none are known.
    """

    def __init__(
        self,
        captions: Sequence[str],
        features: TextFeatures,
        *,
        noise_dim: int,
        seed: int,
        device: torch.device,
        real_distance: float | None = None,
    ) -> None:
        self.captions = list(captions)
        self._sentence, self._keywords, self._mask = (part.to(device) for part in features)
        self._noise = torch.randn(len(captions), noise_dim, generator=seeded(seed, "captions")).to(device)
        self._noises = torch.randn(NOISES, noise_dim, generator=seeded(seed, "noises")).to(device)
        self._real_distance = real_distance

    @torch.inference_mode()
    def draw(self, generator: Generator, count: int | None = None, batch_size: int = 64) -> Tensor:
        """Images (count, 3, S, S) of the first `count` captions; all by default."""
        sentence, noise = self._sentence[:count], self._noise[:count]
        images = [
            generator(s, z).images for s, z in zip(sentence.split(batch_size), noise.split(batch_size), strict=True)
        ]
        return torch.cat(images)

    @torch.inference_mode()
    def attention(self, images: Tensor, discriminator: Discriminator, config: LossConfig) -> Tensor:
        """Where the keywords look in images (N, 3, S, S) of the first N captions: (N, T, R), as the loss has it."""
        count = len(images)
        return region_keyword_attention(
            discriminator.encode(images).regions,
            discriminator.keywords(self._keywords[:count]),
            self._mask[:count],
            variant=config.region_variant,
            gamma_attention=config.gamma_attention,
        )

    def score(self, generator: Generator, discriminator: Discriminator) -> dict[str, float]:
        """All scores by name; those that do not apply to these captions are left out."""
        images = self.draw(generator)
        return self.r_precision(images, discriminator) | self.accuracy(images) | self.spread(generator)

    @torch.inference_mode()
    def draw_variations(self, generator: Generator, count: int) -> Tensor:
        """Images (C, NOISES, 3, S, S) of the first `count` captions, C of them; all from the same noises."""
        return torch.stack(
            [generator(s.expand(NOISES, -1), self._noises).images.float() for s in self._sentence[:count]]
        )

    def spread(self, generator: Generator) -> dict[str, float]:
        """How much images of one caption differ, over the first `SPREAD_CAPTIONS` captions.

        `spread`: see `fastt2i.metrics.spread`; `spread_of_real`: the mean absolute difference of two images as a
        multiple of that of real images of one caption, where that is known.
        """
        images = self.draw_variations(generator, SPREAD_CAPTIONS)
        scores = {"spread": spread(images)}
        if self._real_distance:
            scores["spread_of_real"] = statistics.fmean(map(pair_distance, images)) / self._real_distance
        return scores

    @torch.inference_mode()
    def r_precision(
        self, images: Tensor, discriminator: Discriminator, *, candidates: int = 100, batch_size: int = 64
    ) -> dict[str, float]:
        """`r_precision` of images (N, 3, S, S), one for each caption, by the discriminator's own features.

        Empty where all captions are the same. See `fastt2i.metrics.r_precision`.
        """
        ids = np.unique(self.captions, return_inverse=True)[1]
        if ids.max() == 0:
            return {}
        features = torch.cat([discriminator.encode(x).global_ for x in images.split(batch_size)])
        sentences = discriminator.sentence(self._sentence)
        return {"r_precision": r_precision(features, sentences, ids, candidates=candidates)}

    def accuracy(self, images: Tensor) -> dict[str, float]:
        """Shares of images (N, 3, S, S), one for each caption, whose attributes can be read back from the pixels.

        `accuracy_all` is the share with all of them right. Empty unless all captions describe the embedded shapes.
        """
        expected = [parse_caption(caption) for caption in self.captions]
        if not all(expected):
            return {}
        shares = attribute_accuracy(to_uint8(images), [e for e in expected if e])
        return {f"accuracy_{name}": share for name, share in shares.items()}
