"""One training step: generate, discriminator turn with its penalty, generator turn.

A step is a pure function of the networks, their optimizers and its inputs: all that is random comes in with the inputs,
and nothing here waits for the device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.config import LossConfig
from fastt2i.engine.augment import augment
from fastt2i.engine.distributed.world import World
from fastt2i.engine.ema import Ema
from fastt2i.engine.losses import (
    discriminator_adversarial,
    generator_adversarial,
    ma_gp_penalty,
    mode_seeking_loss,
    r1_penalty,
    region_match,
    sentence_match,
)
from fastt2i.engine.optim import Player
from fastt2i.engine.precision import Precision
from fastt2i.engine.trace_span import trace_span
from fastt2i.models.discriminator import Discriminator, ImageFeatures
from fastt2i.models.generator import Generator
from fastt2i.pictures.pixels import to_signed
from fastt2i.text.features import TextFeatures


class GlobalBatchIds(NamedTuple):
    """The ids of the batches of all ranks, N images together.

    caption_ids, class_ids: (N,) as in `StepInputs`; valid: float32 scalar, the number of mismatched pairs that count
    (1 if none), divided by the number of ranks.
    """

    caption_ids: Tensor
    class_ids: Tensor | None
    valid: Tensor


class StepInputs(NamedTuple):
    """The inputs of a step of batch size B, all on the device.

    images: (B, S, S, 3) uint8; text: features of their captions; mismatched_sentence: (B, d) sentence features of
    other captions; caption_ids, mismatched_ids: (B,) int64, equal numbers for equal captions; class_ids: (B,) int64,
    equal numbers for images of one class, or None where none is known; noise: (B, z) standard normal; augmentation:
    (3, B, draws) uniform in [0, 1) for real images, fakes and the generator's turn; others: ids of the whole batch,
    gathered by the step, or None in a run of one process.
    """

    images: Tensor
    text: TextFeatures
    mismatched_sentence: Tensor
    caption_ids: Tensor
    mismatched_ids: Tensor
    class_ids: Tensor | None
    noise: Tensor
    augmentation: Tensor
    others: GlobalBatchIds | None = None


class RealAndFake(NamedTuple):
    """Inputs of the discriminator's losses, float32 but for regions and keywords: features of B real images and of B
    fakes, and the projections of their captions, of the mismatched captions and of the keywords."""

    real: ImageFeatures
    fake: ImageFeatures
    matching: Tensor
    mismatched: Tensor
    words: Tensor


class GeneratedBatch(NamedTuple):
    """A step's generator pass: images (B, 3, S, S) in [-1, 1]; the KL term of the noise, or None; and, with mode
    seeking, images (P, 3, S, S) of every other caption with those of the same captions from other noise, else None."""

    images: Tensor
    kl: Tensor | None
    pairs: tuple[Tensor, Tensor] | None


class Fakes(NamedTuple):
    """Inputs of the generator's losses, float32 but for regions and keywords: features of B fakes, and the projections
    of their captions and keywords."""

    fake: ImageFeatures
    matching: Tensor
    words: Tensor


class TrainStep:
    """Updates both networks once; one generator pass serves both turns.

    The discriminator's turn takes the fakes detached; in the generator's turn the updated discriminator scores them.

    Attributes:
        NETWORKS, LOSSES: what torch.compile gets beside the penalty. The losses may contain passes of the networks.
    """

    NETWORKS = ("_generate", "_encode_real_and_fake", "_encode_fake")
    LOSSES: tuple[str, ...] = ("_discriminator_losses", "_generator_losses")

    def __init__(
        self,
        config: LossConfig,
        generator: Player[Generator],
        discriminator: Player[Discriminator],
        ema: Ema[Generator],
        precision: Precision,
        world: World | None = None,
        real_distance: float | None = None,
    ) -> None:
        """world: the processes of the run, one by default. real_distance: mean absolute difference of two real images
        of one caption, in [-1, 1]; None switches the mode-seeking loss off.
        """
        self.config = config
        self.generator = generator
        self.discriminator = discriminator
        self.ema = ema
        self.precision = precision
        self._penalty_precision = precision.of_penalty()
        self.world = world or World()
        self.real_distance = real_distance if config.mode_seeking else None
        self._group = self.world.group if config.gather else None

    def has_penalty(self, step: int) -> bool:
        """Whether step number `step`, counted from 0, has the gradient penalty."""
        return self.config.penalty != "none" and step % self.config.penalty_every == 0

    def __call__(self, inputs: StepInputs, ema_weight: Tensor, with_penalty: bool) -> dict[str, Tensor]:
        """Run a step; returns every loss by name, detached scalars on the device.

        ema_weight: float32 scalar, the weight of the new parameters in their moving average.
        """
        with self.precision.in_force():
            inputs = self._gather_batch_ids(inputs)
            with trace_span("generate"):
                generated = self._generate_batch(inputs)
            losses = self._discriminator_backward(inputs, generated, with_penalty)
            with trace_span("discriminator update"):
                self.discriminator.step()
            with self._frozen_discriminator():
                losses |= self._generator_backward(inputs, generated)
            with trace_span("generator update"):
                self.generator.step()
                self.ema.update(ema_weight)
            return {name: loss.detach() for name, loss in losses.items()}

    def _gather_batch_ids(self, inputs: StepInputs) -> StepInputs:
        if self.world.size == 1:
            return inputs
        own = [inputs.caption_ids, inputs.mismatched_ids]
        if inputs.class_ids is not None:
            own.append(inputs.class_ids)
        captions, mismatched, *classes = self.world.all_gather(torch.stack(own, dim=1)).unbind(dim=1)
        valid = (captions != mismatched).sum().clamp(min=1) / self.world.size
        return inputs._replace(others=GlobalBatchIds(captions, classes[0] if classes else None, valid))

    # Generate

    def _generate_batch(self, inputs: StepInputs) -> GeneratedBatch:
        """The fakes of a step, for both turns."""
        return self._generate(inputs, self._first_row(inputs))

    def _first_row(self, inputs: StepInputs) -> int:
        """The place of this process's first image in the batch of all, modulo 2."""
        return self.world.rank * len(inputs.noise) % 2

    def _generate(self, inputs: StepInputs, first_row: int = 0) -> GeneratedBatch:
        """first_row: place of the first image in the batch of all ranks; the even places are drawn twice, in one pass,
        so that they are the same however the batch is divided."""
        sentence, noise, batch = inputs.text.sentence, inputs.noise, len(inputs.noise)
        twice = slice(first_row % 2, None, 2)
        if self.real_distance:
            # In reverse order the noise is standard normal, too, and uncorrelated with what it was.
            sentence, noise = torch.cat([sentence, sentence[twice]]), torch.cat([noise, noise[twice].flip(1)])
        images, kl = self.generator.run(self.precision, sentence, noise)
        if not self.real_distance:
            return GeneratedBatch(images, kl, None)
        images, others = images[:batch], images[batch:]
        return GeneratedBatch(images, kl, (images[twice], others))

    # Discriminator turn

    def _discriminator_backward(
        self, inputs: StepInputs, generated: GeneratedBatch, with_penalty: bool
    ) -> dict[str, Tensor]:
        """Compute the discriminator's losses and leave their gradient in its parameters; returns the losses."""
        with trace_span("discriminator"):
            total, losses = self._discriminator_losses(inputs, generated.images.detach())
        if with_penalty:
            with trace_span("penalty"):
                losses["d_penalty"] = self._penalty(inputs, *with_input_gradients(inputs))
                total = total + self._penalty_weight * losses["d_penalty"]
        with trace_span("discriminator backward"):
            self.discriminator.zero_grad()
            self.discriminator.backward(total)
        return losses

    def _discriminator_losses(self, inputs: StepInputs, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self._discriminator_loss_terms(inputs, self._encode_real_and_fake(inputs, fake))

    def _encode_real_and_fake(self, inputs: StepInputs, fake: Tensor) -> RealAndFake:
        """Encode real images and fakes in one pass; the features of an image and a caption depend on no other one."""
        batch, precision = len(inputs.images), self.precision
        real = self._rounded(to_signed(inputs.images), precision)
        images = self._augment(torch.cat([real, fake.to(real.dtype)]), inputs.augmentation[:2].flatten(0, 1), precision)
        features, sentences, words = self._discriminate(
            images, torch.cat([inputs.text.sentence, inputs.mismatched_sentence]), inputs.text.keywords
        )
        (real_features, fake_features), (matching, mismatched) = features.split(batch), sentences.split(batch)
        return RealAndFake(real_features, fake_features, matching, mismatched, words)

    def _discriminator_loss_terms(self, inputs: StepInputs, encoded: RealAndFake) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's losses and their weighted sum, without the penalty."""
        config, mask, exclude = self.config, inputs.text.mask, self._exclude(inputs)
        losses = {
            "d_adversarial": discriminator_adversarial(
                config.adversarial,
                encoded.real.logits(encoded.matching),
                encoded.fake.logits(encoded.matching),
                encoded.real.logits(encoded.mismatched),
                inputs.caption_ids != inputs.mismatched_ids,
                config.mismatched,
                inputs.others and inputs.others.valid,
            ),
            "d_region": region_match(config, encoded.real, encoded.words, mask, exclude, self._group),
            "d_sentence": sentence_match(config, encoded.real, encoded.matching, exclude, self._group),
        }
        total = losses["d_adversarial"] + config.region * losses["d_region"] + config.sentence * losses["d_sentence"]
        return total, losses

    # Penalty

    @property
    def _penalty_weight(self) -> float:
        """Of the penalty in a step that has it, which stands for the steps without."""
        return self.config.penalty_weight * self.config.penalty_every

    def _penalty(self, inputs: StepInputs, images: Tensor, sentences: Tensor) -> Tensor:
        """The gradient penalty, on a pass of its own: few steps have it, and only for real images.

        images, sentences: those of the inputs, which require a gradient.
        """
        precision = self._penalty_precision
        features, projected, _ = self._discriminate(
            self._augment(images, inputs.augmentation[0], precision), sentences, inputs.text.keywords, precision
        )
        logits = features.logits(projected)
        if self.config.penalty == "r1":
            return r1_penalty(logits, images)
        return ma_gp_penalty(logits, images, sentences)

    # Generator turn

    @contextmanager
    def _frozen_discriminator(self) -> Iterator[None]:
        """The discriminator's parameters get no gradient in this block; afterwards they do again, even on an error."""
        self.discriminator.requires_grad_(False)
        try:
            yield
        finally:
            self.discriminator.requires_grad_(True)

    def _generator_backward(self, inputs: StepInputs, generated: GeneratedBatch) -> dict[str, Tensor]:
        """Compute the generator's losses and leave their gradient in its parameters; returns the losses."""
        with trace_span("generator"):
            total, losses = self._generator_losses(inputs, generated)
        with trace_span("generator backward"):
            self.generator.zero_grad()
            self.generator.backward(total)
        return losses

    def _generator_losses(self, inputs: StepInputs, generated: GeneratedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        total, losses = self._generator_loss_terms(inputs, self._encode_fake(inputs, generated.images))
        noise_total, noise_losses = self._noise_loss_terms(generated)
        return total + noise_total, losses | noise_losses

    def _noise_loss_terms(self, generated: GeneratedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's losses that do not depend on the discriminator, and their weighted sum."""
        total = generated.images.new_zeros((), dtype=torch.float32)
        losses: dict[str, Tensor] = {}
        if generated.kl is not None:
            losses["g_kl"] = generated.kl
            total = total + self.config.kl * generated.kl
        if generated.pairs and self.real_distance:
            images, others = generated.pairs
            each = mode_seeking_loss(images.float(), others.float(), self.real_distance)
            # Not their mean: of odd parts of a batch, some have a pair more than others.
            losses["g_mode_seeking"] = each.sum() / (len(generated.images) / 2)
            total = total + self.config.mode_seeking * losses["g_mode_seeking"]
        return total, losses

    def _encode_fake(self, inputs: StepInputs, fake: Tensor) -> Fakes:
        """Encode the fakes; the features of an image and a caption depend on no other one."""
        images = self._augment(fake, inputs.augmentation[2], self.precision)
        return Fakes(*self._discriminate(images, inputs.text.sentence, inputs.text.keywords))

    def _generator_loss_terms(self, inputs: StepInputs, encoded: Fakes) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's losses that depend on the discriminator, and their weighted sum."""
        config, mask, exclude = self.config, inputs.text.mask, self._exclude(inputs)
        losses = {
            "g_adversarial": generator_adversarial(config.adversarial, encoded.fake.logits(encoded.matching)),
            "g_region": region_match(config, encoded.fake, encoded.words, mask, exclude, self._group),
            "g_sentence": sentence_match(config, encoded.fake, encoded.matching, exclude, self._group),
        }
        total = losses["g_adversarial"] + config.region * losses["g_region"] + config.sentence * losses["g_sentence"]
        return total, losses

    # Both turns

    def _discriminate(
        self, images: Tensor, sentences: Tensor, keywords: Tensor, precision: Precision | None = None
    ) -> tuple[ImageFeatures, Tensor, Tensor]:
        features, projected_sentences, projected_keywords = self.discriminator.run(
            precision or self.precision, images, sentences, keywords
        )
        # Regions and keywords stay as they are: their loss multiplies them in that precision and adds up in float32.
        features = features._replace(global_=features.global_.float(), unconditional=features.unconditional.float())
        return features, projected_sentences.float(), projected_keywords

    def _exclude(self, inputs: StepInputs) -> Tensor:
        """Pairs of images and captions that are no negatives, (B, B) bool; with a group, (B, captions of all ranks)."""
        others = inputs.others if self._group is not None and inputs.others is not None else inputs
        exclude = inputs.caption_ids[:, None] == others.caption_ids
        if inputs.class_ids is not None and others.class_ids is not None:
            exclude = exclude | (inputs.class_ids[:, None] == others.class_ids)
        return exclude

    def _augment(self, images: Tensor, uniform: Tensor, precision: Precision) -> Tensor:
        return augment(self._rounded(images, precision), self.config.augment, uniform)

    def _rounded(self, images: Tensor, precision: Precision) -> Tensor:
        """Images as the discriminator rounds them first, where that changes nothing: not before colors are computed.
        Moved and cut out they are the same numbers, in half of the bytes."""
        return images.to(precision.dtype) if precision.casts and "color" not in self.config.augment else images

    # Compilation and measurement

    def forward_backward_only(self, inputs: StepInputs, penalty: bool = True) -> None:
        """Run forward and backward passes without any weight update: triggers compilation of whatever is compiled.

        Neither gradients nor captions come from other ranks: where compilation fails on one, the others must not wait.
        """
        own = copy.copy(self)
        own._group = None
        own.generator = replace(self.generator, gradient_mean=None)
        own.discriminator = replace(self.discriminator, gradient_mean=None)
        with self.precision.in_force():
            inputs = own._gather_batch_ids(inputs)
            generated = own._generate_batch(inputs)
            own._discriminator_backward(inputs, generated, penalty and own.config.penalty != "none")
            with own._frozen_discriminator():
                own._generator_backward(inputs, generated)
        for player in (own.generator, own.discriminator):
            player.zero_grad()

    def with_parts(self, change: Callable[[Callable[..., Any]], Callable[..., Any]], penalty: bool = True) -> TrainStep:
        """The same step, on the same networks, with `change` (such as torch.compile) applied to its parts.

        Losses that gather the captions of several processes stay as they are: that cannot be compiled.

        penalty: whether to change the penalty too.
        """
        changed = copy.copy(self)
        losses = self.LOSSES if self._group is None else ()
        for part in (*self.NETWORKS, *losses, *(("_penalty",) if penalty else ())):
            setattr(changed, part, change(getattr(self, part)))
        return changed


def with_input_gradients(inputs: StepInputs) -> tuple[Tensor, Tensor]:
    """Images (B, 3, S, S) and sentence features (B, d) that require a gradient."""
    return to_signed(inputs.images).requires_grad_(), inputs.text.sentence.detach().requires_grad_()
