"""Training steps to be timed: the engine's own, and the same game as peers' code plays it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastt2i.config import Config
from fastt2i.engine.augment import draws_per_image
from fastt2i.engine.losses import discriminator_adversarial, region_match, sentence_match
from fastt2i.engine.precision import Precision
from fastt2i.engine.state import TrainingState
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.pictures.pixels import to_signed
from fastt2i.text.cache import TextCache

#: Features of the demo's language model, and keywords of its captions.
SENTENCE, KEYWORDS = 384, 8


class SeparatePasses(TrainStep):
    """The same losses and updates, written as AttnGAN, DF-GAN and their like write them.

    The discriminator's turn draws images of its own, and sees real images under their captions, real images under
    others and drawn ones in passes of their own; the generator's turn draws anew.

    Attributes:
        draws_once: one generator pass for both turns, as in the engine.
    """

    draws_once = False

    def __call__(self, inputs: StepInputs, ema_weight: Tensor, with_penalty: bool) -> dict[str, Tensor]:
        with self.precision.in_force():
            if self.draws_once:
                drawn = self._generate_batch(inputs)
            else:
                with torch.no_grad():
                    drawn = self._generate_batch(inputs)
            losses = self._discriminator_backward(inputs, drawn, with_penalty)
            self.discriminator.step()
            if not self.draws_once:
                drawn = self._generate_batch(inputs)
            with self._frozen_discriminator():
                losses |= self._generator_backward(inputs, drawn)
            self.generator.step()
            self.ema.update(ema_weight)
            return {name: loss.detach() for name, loss in losses.items()}

    def _discriminator_losses(self, inputs: StepInputs, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        config, (sentence, keywords, mask) = self.config, inputs.text
        real, exclude = to_signed(inputs.images), inputs.caption_ids[:, None] == inputs.caption_ids
        seen, matching, words = self._discriminate(self._augment(real, inputs, 0), sentence, keywords)
        wrong, mismatched, _ = self._discriminate(self._augment(real, inputs, 0), inputs.mismatched_sentence, keywords)
        drawn, _, _ = self._discriminate(self._augment(fake, inputs, 1).to(real.dtype), sentence, keywords)
        losses = {
            "d_adversarial": discriminator_adversarial(
                config.adversarial,
                seen.logits(matching),
                drawn.logits(matching),
                wrong.logits(mismatched),
                inputs.caption_ids != inputs.mismatched_ids,
                config.mismatched,
            ),
            "d_region": region_match(config, seen, words, mask, exclude),
            "d_sentence": sentence_match(config, seen, matching, exclude),
        }
        return losses["d_adversarial"] + config.region * losses["d_region"] + config.sentence * losses[
            "d_sentence"
        ], losses


def captions_features(number: int, keywords: int = KEYWORDS) -> TextCache:
    """Features of captions that no language model has made: they cost the same."""
    random = np.random.default_rng(0)
    return TextCache(
        {
            "sentence": random.standard_normal((number, SENTENCE), dtype=np.float32).astype(np.float16),
            "keywords": random.standard_normal((number, keywords, SENTENCE), dtype=np.float32).astype(np.float16),
            "mask": np.ones((number, keywords), dtype=np.bool_),
        }
    )


def make_step(config: Config, device: torch.device, kind: type[TrainStep] = TrainStep) -> TrainStep:
    """A step of a configuration on new networks, the same whatever its kind."""
    precision = Precision(config.train.precision, device)
    features = captions_features(2000).rows(torch.arange(2000))
    state = TrainingState(config, captions=features, text_digest="", device=device, precision=precision)
    return kind(config.loss, state.generator, state.discriminator, state.ema, precision)


def make_inputs(config: Config, device: torch.device) -> StepInputs:
    """Inputs of one step: noise for images, a caption each."""
    batch, size = config.train.batch_size, config.model.image_size
    random = torch.Generator().manual_seed(0)
    features, ids = captions_features(2 * batch), torch.arange(batch)
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
    return _to(inputs, device)


def _to(part: Any, device: torch.device) -> Any:
    if isinstance(part, tuple):
        return type(part)(*(_to(p, device) for p in part))
    return None if part is None else part.to(device)
