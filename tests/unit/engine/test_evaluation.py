"""What is drawn and scored from held-out captions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastt2i.config import LossConfig, ModelConfig
from fastt2i.engine.evaluation import NOISES, CaptionSet
from fastt2i.metrics.spread import pair_distance, spread
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.text.features import TextFeatures

CONFIG = ModelConfig(generator_channels=(4, 4, 4, 4), discriminator_channels=(4, 4, 4, 4), region_dim=8, noise_dim=3)


def test_attention_is_the_losss_own_of_the_images_that_are_shown() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(CONFIG, 6), Discriminator(CONFIG, 6, 6)
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    features = TextFeatures(torch.randn(3, 6), torch.randn(3, 5, 6), mask)
    captions = CaptionSet(["a", "b", "c"], features, noise_dim=3, seed=0, device=torch.device("cpu"))
    images = captions.draw(generator, 2)
    loss = LossConfig()
    attention = captions.attention(images, discriminator, loss)
    assert attention.shape == (2, 5, 64)
    torch.testing.assert_close(attention.sum(dim=2), mask[:2].float())
    for other in (replace(loss, region_variant="damsm"), replace(loss, gamma_attention=40.0)):
        assert not torch.equal(captions.attention(images, discriminator, other), attention)
    sharp = captions.attention(images, discriminator, replace(loss, gamma_attention=40.0))
    assert (sharp.amax(dim=2) >= attention.amax(dim=2)).all()


def test_variations_of_a_caption_come_from_the_same_noises_and_are_scored() -> None:
    torch.manual_seed(0)
    generator = Generator(CONFIG, 6)
    features = TextFeatures(torch.randn(3, 6), torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool))
    captions, compared = (
        CaptionSet(["a", "b", "c"], features, noise_dim=3, seed=0, device=torch.device("cpu"), real_distance=distance)
        for distance in (None, 0.25)
    )
    images = captions.draw_variations(generator, 2)
    assert images.shape == (2, NOISES, 3, 32, 32)
    assert not torch.equal(images[0, 0], images[0, 1]) and not torch.equal(images[0], images[1])
    assert torch.equal(images, compared.draw_variations(generator, 2))
    assert captions.spread(generator).keys() == {"spread"}
    scores = compared.spread(generator)
    everything = captions.draw_variations(generator, 3)
    assert scores["spread"] == pytest.approx(spread(everything))
    distance = sum(pair_distance(own) for own in everything) / 3
    assert scores["spread_of_real"] == pytest.approx(distance / 0.25)
