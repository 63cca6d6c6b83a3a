"""Training steps to be timed, and their inputs: new networks, noise for images, random features of captions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from fastt2i.config import Config
from fastt2i.engine.augment import draws_per_image
from fastt2i.engine.precision import Precision
from fastt2i.engine.state import TrainingState
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.presets import preset
from fastt2i.text.cache import TextCache

#: Features of the demo's language model, and keywords of its captions.
SENTENCE, KEYWORDS = 384, 8


def configured(name: str, batch: int | None = None, **train: Any) -> Config:
    """The preset with this batch size, its own by default; train: other fields of `Config.train`."""
    config = preset(name)
    return replace(config, train=replace(config.train, batch_size=batch or config.train.batch_size, **train))


def random_features(number: int, keywords: int = KEYWORDS) -> TextCache:
    """A cache of text features that no language model has made: they cost the same."""
    random = np.random.default_rng(0)
    return TextCache(
        {
            "sentence": random.standard_normal((number, SENTENCE), dtype=np.float32).astype(np.float16),
            "keywords": random.standard_normal((number, keywords, SENTENCE), dtype=np.float32).astype(np.float16),
            "mask": np.ones((number, keywords), dtype=np.bool_),
        }
    )


def make_step(config: Config, device: torch.device, kind: type[TrainStep] = TrainStep) -> TrainStep:
    """A step of a configuration on new networks, which are the same for each kind of step."""
    precision = Precision(config.train.precision, device)
    features = random_features(2000).rows(torch.arange(2000))
    state = TrainingState(config, captions=features, text_digest="", device=device, precision=precision)
    return kind(config.loss, state.generator, state.discriminator, state.ema, precision)


def make_inputs(config: Config, device: torch.device) -> StepInputs:
    """Inputs of one step: noise for images, a caption each."""
    batch, size = config.train.batch_size, config.model.image_size
    random = torch.Generator().manual_seed(0)
    features, ids = random_features(2 * batch), torch.arange(batch)
    inputs = StepInputs(
        images=torch.randint(0, 256, (batch, size, size, 3), generator=random, dtype=torch.uint8),
        text=features.rows(ids),
        mismatched_sentence=features.sentences(ids + batch),
        caption_ids=ids,
        mismatched_ids=ids + batch,
        class_ids=None,
        noise=torch.randn(batch, config.model.noise_dim, generator=random),
        augmentation=torch.rand(3, batch, draws_per_image(config.loss.augment), generator=random),
    )
    return tree_map(lambda part: None if part is None else part.to(device), inputs)
