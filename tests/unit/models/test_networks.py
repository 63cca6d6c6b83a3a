"""Generator and discriminator: shapes, sizes, text's late entry, and how much a pass costs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastt2i.config import ModelConfig
from fastt2i.models.discriminator import Discriminator, ImageFeatures
from fastt2i.models.generator import Generator, modulate
from fastt2i.models.model_card import parameter_count
from fastt2i.presets import PRESETS, preset

SENTENCE = 20

#: Parameters of DF-GAN's published networks, in millions: the ceiling for ours at the same image size.
CEILINGS = {64: (4.9, 3.5), 256: (9.7, 6.9)}


def small(**changes: object) -> ModelConfig:
    base = ModelConfig(
        generator_channels=(6, 5, 4, 3), discriminator_channels=(4, 5, 6, 7), region_dim=9, global_dim=11, noise_dim=3
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_lighter_than_df_gan(name: str) -> None:
    config = preset(name).model
    with torch.device("meta"):
        generator, discriminator = Generator(config, 384), Discriminator(config, 384, 384)
    most = CEILINGS[64 if config.image_size <= 64 else 256]
    assert parameter_count(generator) < most[0] * 1e6
    assert parameter_count(discriminator) < most[1] * 1e6


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("grid", [4, 8, 16])
def test_every_size_and_region_grid(size: int, grid: int) -> None:
    levels = size.bit_length() - 2
    config = small(
        image_size=size,
        generator_channels=(4,) * levels,
        discriminator_channels=tuple(range(3, 3 + levels)),
        region_grid=grid,
    )
    images = Generator(config, SENTENCE)(torch.randn(2, SENTENCE), torch.randn(2, 3)).images
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    features, sentences, keywords = Discriminator(config, SENTENCE, 8)(
        images, torch.randn(5, SENTENCE), torch.randn(2, 4, 8)
    )
    assert features.regions.shape == (2, grid**2, 9)
    assert features.global_.shape == (2, 11) and features.unconditional.shape == (2,)
    assert sentences.shape == (5, 11) and keywords.shape == (2, 4, 9)


def test_all_modulations_at_once_are_those_of_each_layer() -> None:
    generator = Generator(small(), SENTENCE).double()
    layers = [block.modulation for block in generator.blocks]
    text = torch.randn(3, layers[0].in_features, dtype=torch.float64)
    together = modulate(layers, text, generator._is_scale).split([layer.out_features for layer in layers], dim=1)
    for layer, found in zip(layers, together, strict=True):
        scales, shifts = layer(text).chunk(2, dim=1)
        torch.testing.assert_close(found, torch.cat([1 + scales.tanh(), shifts], dim=1))


def test_regions_are_where_their_pixels_are() -> None:
    config = small()
    discriminator = Discriminator(config, SENTENCE, 8)
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    regions = discriminator.encode(images).regions
    row, column = 3, 4
    (gradient,) = torch.autograd.grad(regions[0, row * 8 + column].sum(), images)
    weight = gradient[0].abs().sum(0)
    at = torch.arange(32.0)
    center = [(weight.sum(dim=1 - k) * at).sum() / weight.sum() for k in (0, 1)]
    assert abs(center[0] - (4 * row + 1.5)) < 1.5 and abs(center[1] - (4 * column + 1.5)) < 1.5


def test_text_enters_the_discriminator_only_in_the_head() -> None:
    features = ImageFeatures(torch.randn(4, 9, 5), torch.randn(4, 7), torch.randn(4))
    sentences = torch.randn(4, 7)
    expected = torch.stack([features.global_[i] @ sentences[i] + features.unconditional[i] for i in range(4)])
    torch.testing.assert_close(features.logits(sentences), expected)
    first, rest = features.split(1)
    torch.testing.assert_close(first.logits(sentences[:1]), expected[:1])
    torch.testing.assert_close(rest.logits(sentences[1:]), expected[1:])


def test_an_untrained_generator_keeps_its_signal() -> None:
    """Without normalisation, the variance must neither vanish nor explode on the way to 256 px."""
    config = preset("256px").model
    torch.manual_seed(0)
    generator = Generator(config, SENTENCE)
    scales = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: scales.append(output.std().item()))
    sentence = torch.nn.functional.normalize(torch.randn(8, SENTENCE)) * SENTENCE**0.5
    generator(sentence, torch.randn(8, config.noise_dim))
    assert all(0.2 < scale < 5 for scale in scales), scales
