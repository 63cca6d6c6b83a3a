"""A run that starts from a trained model, at its image size or at another one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastt2i.config import Config, ModelConfig
from fastt2i.errors import UserError
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.models.pretrained import load_pretrained
from fastt2i.text.features import TextFeatures


def settings_from(folder: str, base: Config, image_size: int | None) -> Config:
    """A run's configuration with the model's own settings, at this image size, its own by default.

    Levels that are new have as many channels as the nearest one that is there.

    Raises:
        UserError: there is no such model.
    """
    trained = load_pretrained(folder)
    text = dataclasses.replace(trained.text, model=trained.language_model, cache_dir=base.text.cache_dir)
    train = dataclasses.replace(base.train, init_from=folder)
    return dataclasses.replace(base, model=resized(trained.config, image_size), text=text, train=train)


def resized(config: ModelConfig, image_size: int | None) -> ModelConfig:
    """A model's settings at another image size, a power of two."""
    if image_size is None or image_size == config.image_size:
        return config
    if image_size not in (32, 64, 128, 256):
        raise UserError(f"model.image_size is {image_size}; it must be 32, 64, 128 or 256")
    generator, discriminator = config.generator_channels, config.discriminator_channels
    levels = image_size.bit_length() - config.image_size.bit_length()
    if levels < 0:
        return dataclasses.replace(
            config,
            image_size=image_size,
            generator_channels=generator[:levels],
            discriminator_channels=discriminator[-levels:],
            region_grid=min(config.region_grid, image_size // 4),
            grown_from=tuple(size for size in config.grown_from if size < image_size),
        )
    return dataclasses.replace(
        config,
        image_size=image_size,
        generator_channels=generator + generator[-1:] * levels,
        discriminator_channels=discriminator[:1] * levels + discriminator,
        grown_from=(*config.grown_from, config.image_size),
    )


def start_from(
    config: Config,
    generator: Generator,
    discriminator: Discriminator,
    is_language_model: Callable[[str, Sequence[float]], bool],
    captions: TextFeatures,
) -> str:
    """Give new networks the weights of the model that `train.init_from` names; returns what was done in a sentence.

    The model's whitening of text features is taken over where these captions are like those that it was fitted to;
    where they are not, that of the new networks stays, which were fitted to them.

    At a larger image size the new levels draw nothing and judge nothing at first, so that the picture is the old one's
    upscaled, and the score is the old one's of the picture averaged down.

    Raises:
        UserError: there is no such model, its language model is another one, or the networks' sizes do not fit.
    """
    trained = load_pretrained(config.train.init_from)
    where = f"the model in {config.train.init_from}"
    if not is_language_model(trained.text_digest, trained.text_sample):
        raise UserError(
            f"{where} was trained with the language model {trained.text.model}, another one than this run's"
        )
    levels = config.model.image_size.bit_length() - trained.config.image_size.bit_length()
    old = trained.config
    if levels > 0 and old.image_size not in config.model.grown_from:
        raise UserError(f"{where} draws {old.image_size} px; to grow it, set model.grown_from to {old.image_size}")
    place = list(config.model.grown_from).index(old.image_size) if levels > 0 else 0
    alike = trained.generator.whitening.is_for(captions.sentence.cpu())
    weights = (
        _generator_weights(trained.generator.state_dict(), place, levels),
        _discriminator_weights(trained.discriminator.state_dict(), place, levels),
    )
    for network, own in zip((generator, discriminator), weights, strict=True):
        _load(network, own if alike else {n: v for n, v in own.items() if "whitening." not in n}, where)
    if levels > 0:
        with torch.no_grad():
            # Only what new levels end in: behind a level of zeros, another one would have nothing to learn from.
            last = discriminator.blocks[levels - 1]
            for convolution in (generator.decoder[1], last.conv, last.shortcut):
                _silence(convolution)  # type: ignore[arg-type]
    if alike:
        return f"starting from {where}"
    return f"starting from {where}, but for the whitening of text features: its captions said other things than these"


def _generator_weights(weights: dict[str, Tensor], place: int, levels: int) -> dict[str, Tensor]:
    """By their names in the new generator: what drew the old image is a decoder of a smaller size in a larger one."""
    if levels == 0:
        return weights
    own = {name: value for name, value in weights.items() if not name.startswith("decoder.")}
    if levels > 0:
        decoder = {name: value for name, value in weights.items() if name.startswith("decoder.")}
        own |= {name.replace("decoder", f"smaller_decoders.{place}", 1): value for name, value in decoder.items()}
    return own


def _discriminator_weights(weights: dict[str, Tensor], place: int, levels: int) -> dict[str, Tensor]:
    """Likewise; blocks are numbered from the image on, so that those of another size have other numbers."""
    if levels == 0:
        return weights
    moved: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("stem."):
            if levels > 0:
                moved[name.replace("stem", f"smaller_stems.{place}", 1)] = value
            continue
        number = re.match(r"blocks\.(\d+)\.", name)
        if number is None:
            moved[name] = value
        elif (new := int(number[1]) + levels) >= 0:
            moved[f"blocks.{new}.{name[number.end() :]}"] = value
    return moved


def _load(network: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """What the network has of these weights; of one that it has in another shape nothing is taken."""
    own = network.state_dict()
    for name, value in weights.items():
        if name in own and own[name].shape != value.shape:
            raise UserError(
                f"{where} has {name} of shape {tuple(value.shape)}, where this run's is {tuple(own[name].shape)}; "
                "leave the model's settings to --init-from"
            )
    network.load_state_dict({name: value for name, value in weights.items() if name in own}, strict=False)


def _silence(convolution: nn.Conv2d) -> None:
    convolution.weight.zero_()
    if convolution.bias is not None:
        convolution.bias.zero_()
