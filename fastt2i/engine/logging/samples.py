"""Samples, scores and attention of the averaged generator, logged during a run."""

from __future__ import annotations

import torch

from fastt2i.config import Config
from fastt2i.engine.evaluation import CaptionSet
from fastt2i.engine.logging.run_logger import NullLogger
from fastt2i.engine.state import TrainingState
from fastt2i.text.encoder import TextEncoder


def log_samples(
    logger: NullLogger,
    step: int,
    captions: CaptionSet,
    prompts: CaptionSet | None,
    state: TrainingState,
    encoder: TextEncoder,
    config: Config,
) -> dict[str, float]:
    """Draw and score the captions after `step` steps, and log a sample grid, variations and an attention sheet.

    prompts: what the grid shows before the captions.

    Returns:
        the scores, by name.
    """
    generator, discriminator = state.ema.module, state.discriminator.module
    scores = captions.score(generator, discriminator)
    images = captions.draw(generator, config.log.samples)
    shown, texts = images, captions.captions[: len(images)]
    if prompts is not None:
        shown, texts = torch.cat([prompts.draw(generator), images]), prompts.captions + texts
    logger.log_samples(step, shown, texts, scores)
    if config.log.variations:
        variations = captions.draw_variations(generator, config.log.variations)
        logger.log_variations(step, variations, captions.captions[: len(variations)])
    shown = images[: config.log.attention]
    if len(shown):
        texts = captions.captions[: len(shown)]
        attention = captions.attention(shown, discriminator, config.loss)
        logger.log_attention(step, shown, texts, [encoder.keywords(text) for text in texts], attention)
    return scores
