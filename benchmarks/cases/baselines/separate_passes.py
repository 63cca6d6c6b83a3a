"""The training step as AttnGAN's, DF-GAN's and their followers' code has it: a pass for each kind of image."""

from __future__ import annotations

import torch
from torch import Tensor

from fastt2i.engine.augment import augment
from fastt2i.engine.losses import discriminator_adversarial, region_match, sentence_match
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.pictures.pixels import to_signed


class SeparatePasses(TrainStep):
    """The same losses and updates with separate passes.

    The discriminator's turn generates images of its own, and sees real images with their captions, real images with
    mismatched ones and generated images in passes of their own; the generator's turn generates again.

    Attributes:
        draws_once: one generator pass for both turns, as in the engine.
    """

    draws_once = False

    def __call__(self, inputs: StepInputs, ema_weight: Tensor, with_penalty: bool) -> dict[str, Tensor]:
        with self.precision.in_force():
            with torch.set_grad_enabled(self.draws_once):
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
        of_real, of_fake = inputs.augmentation[:2]
        seen, matching, words = self._discriminate(augment(real, config.augment, of_real), sentence, keywords)
        wrong, mismatched, _ = self._discriminate(
            augment(real, config.augment, of_real), inputs.mismatched_sentence, keywords
        )
        drawn, _, _ = self._discriminate(augment(fake, config.augment, of_fake).to(real.dtype), sentence, keywords)
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
        total = losses["d_adversarial"] + config.region * losses["d_region"]
        return total + config.sentence * losses["d_sentence"], losses
