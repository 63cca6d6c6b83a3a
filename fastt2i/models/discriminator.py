"""The discriminator: images → region features and a global feature; text meets them only in the head.

Because text enters so late, the logit of an image under another caption costs one dot product, and real and fake
images go through the trunk in one batch.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastt2i.config import ModelConfig
from fastt2i.models.whitening import Whitening
from fastt2i.ops import leaky_conv2d
from fastt2i.ops.leaky_conv.functional import Shortcut
from fastt2i.text.features import TextFeatures

CODE_SIZE = 4
SLOPE = 0.2


class ImageFeatures(NamedTuple):
    """What the discriminator sees in N images: global_ (N, global_dim), the part of the logit that needs no text,
    unconditional (N,), and regions (M, R, region_dim) of the first M images, of all N unless fewer were asked for."""

    regions: Tensor
    global_: Tensor
    unconditional: Tensor

    def split(self, first: int) -> tuple[ImageFeatures, ImageFeatures]:
        """The first images and the rest."""
        parts = [x.split([min(first, len(x)), max(0, len(x) - first)]) for x in self]
        return ImageFeatures(*(a for a, _ in parts)), ImageFeatures(*(b for _, b in parts))

    def float(self) -> ImageFeatures:
        """The same in float32."""
        return ImageFeatures(*(x.float() for x in self))

    def logits(self, projected_sentence: Tensor) -> Tensor:
        """<global, P s> + MLP(global) for image i under sentence i; projected_sentence: (N, global_dim)."""
        return (self.global_ * projected_sentence).sum(dim=1) + self.unconditional


class DiscriminatorBlock(nn.Module):
    """Halves the resolution: two convolutions, the first strided, beside a 1x1 shortcut of the average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, pooled: Tensor, pool: bool) -> tuple[Tensor, Tensor | None]:
        """The block's output and, with `pool`, its average pooling, which a next block takes; pooled: that of x."""
        y, _ = leaky_conv2d(x, self.down.weight, self.down.bias, stride=2, padding=1, negative_slope=SLOPE)
        return leaky_conv2d(
            y,
            self.conv.weight,
            self.conv.bias,
            padding=1,
            negative_slope=SLOPE,
            shortcut=Shortcut(pooled, self.shortcut.weight, self.shortcut.bias),
            gain=math.sqrt(0.5),
            pool=pool,
        )


class TextProjection(nn.Module):
    """Whitened text features (..., in_dim) in a space of the images' features (..., out_dim)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.whitening = Whitening(in_dim)
        self.linear = nn.Linear(in_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.whitening(features))


class Discriminator(nn.Module):
    """Judges images, and images with captions.

    Args:
        config: the model's sizes; `discriminator_channels` lists the widths from the image down to 4x4.
        sentence_dim: size of the sentence feature.
        keyword_dim: size of a keyword feature.
    """

    def __init__(self, config: ModelConfig, sentence_dim: int, keyword_dim: int) -> None:
        super().__init__()
        first, *_, last = widths = config.discriminator_channels
        self.region_block = (config.image_size // config.region_grid).bit_length() - 2
        self.stem = nn.Conv2d(3, first, 3, padding=1)
        self.blocks = nn.ModuleList(DiscriminatorBlock(before, after) for before, after in itertools.pairwise(widths))
        self.grown_from = config.grown_from
        self.smaller_stems = nn.ModuleList(
            nn.Conv2d(3, widths[(config.image_size // size).bit_length() - 1], 3, padding=1) for size in self.grown_from
        )
        self.regions = nn.Conv2d(widths[self.region_block + 1], config.region_dim, 1)
        self.global_ = nn.Linear(last * CODE_SIZE**2, config.global_dim)
        self.unconditional = nn.Sequential(
            nn.Linear(config.global_dim, config.global_dim),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Linear(config.global_dim, 1),
        )
        self.sentence = TextProjection(sentence_dim, config.global_dim)
        self.keywords = TextProjection(keyword_dim, config.region_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # The dot product of two vectors of unit-variance entries has variance global_dim: start it at one.
        nn.init.normal_(self.sentence.linear.weight, std=1 / math.sqrt(sentence_dim * config.global_dim))

    def fit(self, captions: TextFeatures) -> None:
        """Adapt to the features of training captions (N of them), before training."""
        self.sentence.whitening.fit(captions.sentence)
        self.keywords.whitening.fit(captions.keywords[captions.mask])

    def encode(self, images: Tensor, with_regions: int | None = None) -> ImageFeatures:
        """What is seen in images (N, 3, S, S) in [-1, 1].

        with_regions: of how many of them, the first ones, regions are computed; of all by default.
        """
        x, regions = self.trunk(images, with_regions)
        return ImageFeatures(regions, *self.head(x))

    def trunk(self, images: Tensor, with_regions: int | None = None) -> tuple[Tensor, Tensor]:
        """Of images (N, 3, S, S) the last map, flat (N, C * 16), and the regions; arguments as of `encode`."""
        images = images.contiguous(memory_format=torch.channels_last)
        x, pooled = leaky_conv2d(images, self.stem.weight, self.stem.bias, padding=1, negative_slope=SLOPE, pool=True)
        smaller = dict(zip(self.grown_from, self.smaller_stems, strict=True))
        for k, block in enumerate(self.blocks):
            x, pooled = block(x, pooled, pool=k + 1 < len(self.blocks))
            if (size := x.shape[-1]) in smaller:
                x = x + F.leaky_relu(smaller[size](F.avg_pool2d(images, images.shape[-1] // size)), SLOPE)
                pooled = F.avg_pool2d(x, 2)
            if k == self.region_block:
                # Of all, x itself: the derivative even of a whole slice is a copy into zeros. Before the next block, or
                # the sum of both gradients would take the layout of the regions' one, which is not channels-last.
                some = x if with_regions in (None, len(x)) else x[:with_regions]
                regions = self.regions(some).flatten(2).transpose(1, 2)
        return x.flatten(1), regions

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of `trunk`'s last map: the global feature (N, global_dim), and the part of the logit without text, (N,)."""
        global_ = F.leaky_relu_(self.global_(x), SLOPE)
        return global_, self.unconditional(global_).squeeze(1)

    def forward(self, images: Tensor, sentences: Tensor, keywords: Tensor) -> tuple[ImageFeatures, Tensor, Tensor]:
        """Features of images, and of texts in the images' spaces.

        The numbers of images, sentences and captions need not agree: a step asks for real and fake images at once, the
        real ones before, and for matching and mismatched sentences. Keywords are matched with the regions of as many
        images, so the others' are not computed.

        Args:
            images: (N, 3, S, S) in [-1, 1].
            sentences: (M, sentence_dim) sentence features.
            keywords: (B, T, keyword_dim) keyword features.

        Returns:
            the images' features with the regions of the first B, sentences projected to (M, global_dim), keywords
            projected to (B, T, region_dim).
        """
        return self.encode(images, len(keywords)), self.sentence(sentences), self.keywords(keywords)
