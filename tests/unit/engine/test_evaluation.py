"""What is drawn and scored from held-out captions."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastt2i.config import LossConfig, ModelConfig
from fastt2i.engine.evaluation import CaptionSet
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.text.features import TextFeatures


def test_attention_is_the_losss_own_of_the_images_that_are_shown() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        generator_channels=(4, 4, 4, 4), discriminator_channels=(4, 4, 4, 4), region_dim=8, noise_dim=3
    )
    generator, discriminator = Generator(config, 6), Discriminator(config, 6, 6)
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
