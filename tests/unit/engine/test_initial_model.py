"""Runs that start from a model: the same networks, or larger and smaller ones that begin with what it knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.config import Config, ModelConfig, TrainConfig
from fastt2i.engine.initial_model import resized, settings_from, start_from
from fastt2i.errors import UserError
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.models.pretrained import PretrainedModel, load_pretrained, save_pretrained
from fastt2i.text.features import TextFeatures

SENTENCES, NOISE = torch.randn(5, 16), torch.randn(5, 3)
KEYWORDS = torch.randn(5, 2, 16)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> PretrainedModel:
    return load_pretrained(model_folder)


def networks(config: ModelConfig) -> tuple[Generator, Discriminator]:
    torch.manual_seed(7)
    return Generator(config, 16).eval(), Discriminator(config, 16, 16).eval()


def started(folder: Path, config: ModelConfig) -> tuple[Generator, Discriminator]:
    """From a model whose captions were like this run's: a little beside the mean of them."""
    made = networks(config)
    mean = load_pretrained(folder).generator.whitening.mean
    run = Config(model=config, train=TrainConfig(init_from=str(folder)))
    assert "but for" not in start_from(run, *made, lambda *_: True, text_features(mean + 0.01 * SENTENCES))
    return made


def text_features(sentences: Tensor) -> TextFeatures:
    return TextFeatures(sentences, KEYWORDS, torch.ones(5, 2, dtype=torch.bool))


@torch.no_grad()
def drawn(generator: Generator) -> Tensor:
    return generator(SENTENCES, NOISE).images


@torch.no_grad()
def judged(discriminator: Discriminator, images: Tensor) -> list[Tensor]:
    features, projected, keywords = discriminator(images, SENTENCES, KEYWORDS)
    return [features.logits(projected), features.regions, keywords]


def test_the_same_size_is_the_same_model(model: PretrainedModel, model_folder: Path) -> None:
    generator, discriminator = started(model_folder, model.config)
    assert torch.equal(drawn(generator), drawn(model.generator))
    images = drawn(generator)
    for ours, theirs in zip(judged(discriminator, images), judged(model.discriminator, images), strict=True):
        assert torch.equal(ours, theirs)


def test_captions_that_say_other_things_keep_their_own_whitening(model: PretrainedModel, model_folder: Path) -> None:
    made, captions = networks(model.config), text_features(1e3 * SENTENCES)
    for network in made:
        network.fit(captions)
    own = [{name: value for name, value in network.state_dict().items() if "whitening" in name} for network in made]
    config = Config(model=model.config, train=TrainConfig(init_from=str(model_folder)))
    assert "but for the whitening of text features" in start_from(config, *made, lambda *_: True, captions)
    for network, whitenings, trained in zip(made, own, (model.generator, model.discriminator), strict=True):
        weights = trained.state_dict()
        for name, value in network.state_dict().items():
            assert torch.equal(value, whitenings.get(name, weights[name]))


@pytest.mark.parametrize("size", [64, 128])
def test_a_larger_one_draws_the_old_picture_and_judges_as_before(
    model: PretrainedModel, model_folder: Path, size: int
) -> None:
    config = resized(model.config, size)
    assert config.grown_from == (32,) and config.region_grid == model.config.region_grid
    generator, discriminator = started(model_folder, config)
    old = drawn(model.generator)
    torch.testing.assert_close(drawn(generator), F.interpolate(old, size=size, mode="nearest"))
    images = torch.randn(5, 3, size, size).tanh()
    for ours, theirs in zip(
        judged(discriminator, images), judged(model.discriminator, F.adaptive_avg_pool2d(images, 32)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # And what is new learns.
    generator(SENTENCES, NOISE).images.square().sum().backward()
    discriminator.encode(images).unconditional.sum().backward()
    for convolution in (generator.decoder[1], discriminator.blocks[size // 64 - 1].conv):
        assert convolution.weight.grad.abs().max() > 0  # type: ignore[union-attr, operator]


def test_it_grows_again(model: PretrainedModel, model_folder: Path, tmp_path: Path) -> None:
    config = resized(model.config, 64)
    generator, discriminator = started(model_folder, config)
    with torch.no_grad():
        torch.nn.init.normal_(generator.decoder[1].weight, std=0.1)
        torch.nn.init.normal_(discriminator.blocks[0].conv.weight, std=0.1)  # type: ignore[arg-type, union-attr]
    grown = dataclasses.replace(model, config=config, generator=generator, discriminator=discriminator)
    save_pretrained(grown, tmp_path / "grown", "", {})
    larger = resized(config, 128)
    assert larger.grown_from == (32, 64)
    again, judge = started(tmp_path / "grown", larger)
    torch.testing.assert_close(drawn(again), F.interpolate(drawn(generator), size=128, mode="nearest"))
    images = drawn(again)
    for ours, theirs in zip(judged(judge, images), judged(discriminator, F.avg_pool2d(images, 2)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert resized(larger, 64) == config
    small, _ = started(tmp_path / "grown", resized(config, 32))
    assert torch.equal(small.blocks[2].residual.weight, model.generator.blocks[2].residual.weight)  # type: ignore


def test_settings_are_the_models(model: PretrainedModel, model_folder: Path) -> None:
    base = Config()
    config = settings_from(str(model_folder), base, None)
    assert config.model == model.config and config.text.model == model.text.model
    assert config.train.init_from == str(model_folder) and config.optim == base.optim
    assert settings_from(str(model_folder), base, 64).model.generator_channels == (4,) * 5


def test_mistakes_are_one_sentence(model: PretrainedModel, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        settings_from(str(tmp_path), Config(), None)
    with pytest.raises(UserError, match="model.image_size is 48"):
        settings_from(str(model_folder), Config(), 48)
    wider = dataclasses.replace(model.config, generator_channels=(5, 4, 4, 4))
    with pytest.raises(UserError, match=r"has encoder.2.weight of shape \(64, 256\), where this run's is \(80, 256\)"):
        started(model_folder, wider)
    config = Config(model=model.config, train=TrainConfig(init_from=str(model_folder)))
    with pytest.raises(UserError, match="was trained with the language model"):
        start_from(config, *networks(model.config), lambda *_: False, text_features(SENTENCES))
