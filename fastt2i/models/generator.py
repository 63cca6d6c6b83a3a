"""The generator: whitened sentence feature → noised text feature → 4x4 latent code → gated convolutions → image.

After patent publication CN115619903A: one generator, one stage. Nothing in it is normalised: the gated convolutions
are initialised so that they keep the variance of what passes through them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastt2i.config import ModelConfig
from fastt2i.models.noise import make_noise
from fastt2i.models.whitening import Whitening
from fastt2i.nn import GatedConv2d, UpsampleGatedConv2d
from fastt2i.nn.few_channel_conv import FewChannelConv2d
from fastt2i.ops import modulated_gated_block
from fastt2i.ops.gated_block.functional import ModulatedConv
from fastt2i.text.features import TextFeatures

CODE_SIZE = 4
ENCODER_WIDTH = 256
SLOPE = 0.2


class Generated(NamedTuple):
    """What a generator pass returns: images (B, 3, S, S) in [-1, 1], and the KL term of the noise, a scalar; None for
    the kinds that have none."""

    images: Tensor
    kl: Tensor | None


class Latent(NamedTuple):
    """What images are made of: code (B, C * 16), the 4x4 latent codes, and modulation (B, M), what `modulate` gives."""

    code: Tensor
    modulation: Tensor


class GeneratorBlock(nn.Module):
    """Doubles the resolution: an upsampling gated convolution, then a residual one, each scaled and shifted by text.

    Attributes:
        modulation: of the text, in this order scales of both convolutions, each of `out_channels`, and their shifts;
            `modulate` computes those of all blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, text_dim: int, activation: str) -> None:
        super().__init__()
        self.upsample = UpsampleGatedConv2d(in_channels, out_channels, activation=activation)
        self.residual = GatedConv2d(out_channels, out_channels, 3, padding=1, activation=activation)
        self.modulation = nn.Linear(text_dim, 4 * out_channels)
        nn.init.normal_(self.modulation.weight, std=0.5 / math.sqrt(text_dim))
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        scale: Tensor,
        residual_scale: Tensor,
        shift: Tensor,
        residual_shift: Tensor,
        output_slope: float = 1.0,
    ) -> Tensor:
        """x: (B, in_channels, H, W); scales and shifts: (B, out_channels), what `modulate` gives for this block;
        output_slope: of a leaky ReLU behind it, 1 for none."""
        return modulated_gated_block(
            x,
            ModulatedConv(self.upsample.weight, self.upsample.bias, scale, shift),
            ModulatedConv(self.residual.weight, self.residual.bias, residual_scale, residual_shift),
            gain=math.sqrt(0.5),
            activation=self.upsample.activation,
            output_slope=output_slope,
        )


def modulate(layers: Sequence[nn.Linear], text: Tensor, is_scale: Tensor) -> Tensor:
    """The scales and shifts of all blocks by one product; see `GeneratorBlock.modulation`.

    Args:
        layers: the blocks' `modulation`.
        text: (B, text_dim).
        is_scale: (features of all layers,) bool, which of them are scales.

    Returns:
        (B, features of all layers): for one block after the other both scales and both shifts.
    """
    weight, bias = (torch.cat(parts) for parts in zip(*((layer.weight, layer.bias) for layer in layers), strict=True))
    modulation = F.linear(text, weight, bias)
    # Bounded: with factors that were not, features of an unseen combination of words grew from block to block, to
    # 4,500 where 16 is usual, and the image was noise.
    return torch.where(is_scale, 1 + modulation.tanh(), modulation)


class Generator(nn.Module):
    """Images from sentence features and noise.

    Args:
        config: the model's sizes; `generator_channels` lists the widths from the 4x4 code to the image.
        sentence_dim: size of the sentence feature.
    """

    _is_scale: Tensor

    def __init__(self, config: ModelConfig, sentence_dim: int) -> None:
        super().__init__()
        self.whitening = Whitening(sentence_dim)
        self.noise = make_noise(config, sentence_dim)
        text_dim = self.noise.out_dim
        widths = config.generator_channels
        self.encoder = nn.Sequential(
            nn.Linear(text_dim, ENCODER_WIDTH),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Linear(ENCODER_WIDTH, widths[0] * CODE_SIZE**2),
        )
        self.blocks = nn.ModuleList(
            GeneratorBlock(before, after, text_dim, config.activation) for before, after in itertools.pairwise(widths)
        )
        is_scale = [torch.arange(4 * width) < 2 * width for width in widths[1:]]
        self.register_buffer("_is_scale", torch.cat(is_scale), persistent=False)
        # The first is the last block's leaky ReLU, which the block computes; saved weights have their names by place.
        self.decoder = nn.Sequential(nn.Identity(), FewChannelConv2d(widths[-1], 3, 3), nn.Tanh())
        self.grown_from = config.grown_from
        self.smaller_decoders = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(SLOPE), FewChannelConv2d(widths[_level(size)], 3, 3)) for size in self.grown_from
        )

    def fit(self, captions: TextFeatures) -> None:
        """Adapt to the features of training captions (N of them), before training."""
        self.whitening.fit(captions.sentence)

    @property
    def noise_dim(self) -> int:
        """Size of the noise vector that `forward` takes."""
        return self.noise.noise_dim

    def forward(self, sentence: Tensor, noise: Tensor) -> Generated:
        """Draw images.

        Args:
            sentence: (B, sentence_dim) sentence features.
            noise: (B, noise_dim) standard normal noise.
        """
        latent, kl = self.latent(sentence, noise)
        return Generated(self.synthesize(latent), kl)

    def latent(self, sentence: Tensor, noise: Tensor) -> tuple[Latent, Tensor | None]:
        """What the images are made of, by products of features alone, and the KL term; arguments as of `forward`."""
        text, kl = self.noise(self.whitening(sentence), noise)
        layers = cast(list[nn.Linear], [block.modulation for block in self.blocks])
        return Latent(self.encoder(text), modulate(layers, text, self._is_scale)), kl

    def synthesize(self, latent: Latent) -> Tensor:
        """The images (B, 3, S, S), by convolutions."""
        code = latent.code.unflatten(1, (-1, CODE_SIZE, CODE_SIZE))
        x = code.contiguous(memory_format=torch.channels_last)
        smaller = dict(zip(self.grown_from, self.smaller_decoders, strict=True))
        below = None
        layers = cast(list[nn.Linear], [block.modulation for block in self.blocks])
        modulation = latent.modulation.split([layer.out_features // 4 for layer in layers for _ in range(4)], dim=1)
        for number, block in enumerate(self.blocks):
            slope = SLOPE if number + 1 == len(self.blocks) else 1.0
            x = block(x, *modulation[4 * number : 4 * number + 4], output_slope=slope)
            if below is not None:
                below = F.interpolate(below, scale_factor=2, mode="nearest")
            if x.shape[-1] in smaller:
                drawn = smaller[x.shape[-1]](x)
                below = drawn if below is None else below + drawn
        if below is None:
            return self.decoder(x)
        _, convolution, tanh = self.decoder
        return tanh(convolution(x) + below)


def _level(size: int) -> int:
    """The place in `generator_channels` of the level of this width and height."""
    return size.bit_length() - CODE_SIZE.bit_length()
