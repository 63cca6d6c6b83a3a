"""A language model, a model and the options of a run, each small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastt2i.config import ModelConfig

VOCABULARY = """
a an the small large little big red orange yellow green cyan blue purple pink circle square triangle cross in
on at of center middle top left right bottom upper lower corner black white gray brown background picture
image canvas there is it and against placed with handwritten digit zero one two three four five six seven
eight nine , .
"""


def write_language_model(folder: Path) -> Path:
    """A random BERT with 16 features and a vocabulary of whole words; returns the folder."""
    from benchmarks.cases.baselines.untrained_language_model import write_untrained

    return write_untrained(folder, VOCABULARY.split(), features=16, layers=1)


def write_model(folder: Path, language_model: Path, config: ModelConfig | None = None) -> Path:
    """An untrained model, by default of 32 px and few channels; images differ from prompt to prompt, seed to seed."""
    import torch

    from fastt2i.config import ModelConfig, TextConfig
    from fastt2i.models.discriminator import Discriminator
    from fastt2i.models.generator import Generator
    from fastt2i.models.model_card import model_card
    from fastt2i.models.pretrained import PretrainedModel, save_pretrained
    from fastt2i.text.encoder import TextEncoder

    captions = [f"a {size} {color} circle" for size in ("small", "large") for color in ("red", "blue", "green", "pink")]
    encoder = TextEncoder(str(language_model))
    encoder.fit_idf(captions)
    config = config or ModelConfig(
        generator_channels=(4,) * 4, discriminator_channels=(4,) * 4, noise_dim=3, region_dim=8, global_dim=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator, discriminator = Generator(config, 16), Discriminator(config, 16, 16)
    for network in (generator, discriminator):
        network.fit(encoder(captions))
    model = PretrainedModel(
        config=config,
        text=TextConfig(model=str(language_model)),
        text_digest=encoder.digest,
        stop_words=encoder.stop_words,
        sentence_dim=16,
        idf=encoder.idf,
        generator=generator,
        discriminator=discriminator,
        facts={"steps": 0, "data": "none", "example_prompts": captions[:2]},
    )
    save_pretrained(model, folder, model_card(model), {})
    return folder


def run_options(language_model: Path, text_cache: Path) -> list[str]:
    """Options of `fastt2i train` for a run of six steps that takes a moment."""
    values = {
        "text.model": language_model,
        "text.cache-dir": text_cache,
        "train.batch-size": 4,
        "train.steps": 6,
        "model.noise-dim": 3,
        "model.region-dim": 8,
        "model.global-dim": 8,
        "log.every": 1,
        "log.samples": 4,
        "checkpoint.every": 2,
        "loss.penalty-every": 3,
    }
    options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    for network in ("generator", "discriminator"):
        options += [f"--model.{network}-channels", *["4"] * 4]
    return [*options, "--log.no-tensorboard"]
