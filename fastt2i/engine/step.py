"""One training step: a pure function of the players' state and its inputs.

All that is random comes in with the inputs, and nothing here waits for the device.
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
from fastt2i.engine.execution.spans import span
from fastt2i.engine.losses import (
    discriminator_adversarial,
    generator_adversarial,
    ma_gp_penalty,
    r1_penalty,
    region_match,
    sentence_match,
)
from fastt2i.engine.optim import Player
from fastt2i.engine.precision import Precision
from fastt2i.models.discriminator import Discriminator, ImageFeatures
from fastt2i.models.generator import Generated, Generator
from fastt2i.pictures.pixels import to_signed
from fastt2i.text.features import TextFeatures


class Others(NamedTuple):
    """What a step knows of the batches of all ranks, N images together.

    caption_ids, class_ids: (N,) as in `StepInputs`; valid: float32 scalar, how many mismatched pairs take part, or 1,
    divided by the number of ranks.
    """

    caption_ids: Tensor
    class_ids: Tensor | None
    valid: Tensor


class StepInputs(NamedTuple):
    """What a step of batch size B reads, all on the device.

    images: (B, S, S, 3) uint8; text: features of their captions; mismatched_sentence: (B, d) sentence features of
    other captions; caption_ids, mismatched_ids: (B,) int64, equal numbers for equal captions; class_ids: (B,) int64,
    equal numbers for images of one class, or None where none is known; noise: (B, z) standard normal; augmentation:
    (3, B, draws) uniform in [0, 1) for real images, fakes and the generator's turn; others: None until the step has
    asked the other ranks, and where there are none.
    """

    images: Tensor
    text: TextFeatures
    mismatched_sentence: Tensor
    caption_ids: Tensor
    mismatched_ids: Tensor
    class_ids: Tensor | None
    noise: Tensor
    augmentation: Tensor
    others: Others | None = None


class RealAndFake(NamedTuple):
    """What the losses of the discriminator read, float32: features of B real images and of B fakes, and their captions,
    the mismatched ones and the keywords in the images' spaces."""

    real: ImageFeatures
    fake: ImageFeatures
    matching: Tensor
    mismatched: Tensor
    words: Tensor


class Fakes(NamedTuple):
    """What the losses of the generator read, float32: features of B fakes, and their captions and keywords in the
    images' spaces."""

    fake: ImageFeatures
    matching: Tensor
    words: Tensor


class TrainStep:
    """Updates both players once; one generator pass serves both.

    The discriminator sees the fakes detached; then the generator is scored by the updated discriminator.

    Attributes:
        PARTS: methods between which nothing is computed; together with the penalty they are what a compiler gets.
    """

    PARTS: tuple[str, ...] = ("_generate", "_discriminator_losses", "_generator_losses")

    def __init__(
        self,
        config: LossConfig,
        generator: Player[Generator],
        discriminator: Player[Discriminator],
        ema: Ema[Generator],
        precision: Precision,
        world: World | None = None,
    ) -> None:
        """world: the processes of the run, one by default."""
        self.config = config
        self.generator = generator
        self.discriminator = discriminator
        self.ema = ema
        self.precision = precision
        self.world = world or World()
        self._group = self.world.group if config.gather else None

    @property
    def gathers(self) -> bool:
        """Whether its losses take in the captions of several processes."""
        return self._group is not None

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """The discriminator scores, and gets no gradient; afterwards it does again, whatever happens."""
        self.discriminator.module.requires_grad_(False)
        try:
            yield
        finally:
            self.discriminator.module.requires_grad_(True)

    def has_penalty(self, step: int) -> bool:
        """Whether step number `step`, counted from 0, takes the gradient penalty."""
        return self.config.penalty != "none" and step % self.config.penalty_every == 0

    def __call__(self, inputs: StepInputs, ema_weight: Tensor, with_penalty: bool) -> dict[str, Tensor]:
        """Run a step; returns every loss by name, detached scalars on the device.

        ema_weight: float32 scalar, what the new weights weigh in their moving average.
        """
        with self.precision.in_force():
            inputs = self._ask_others(inputs)
            with span("generate"):
                drawn = self._draw(inputs)
            losses = self._differentiate_discriminator(inputs, drawn, with_penalty)
            with span("discriminator update"):
                self.discriminator.step()
            with self._scoring():
                losses |= self._differentiate_generator(inputs, drawn)
            with span("generator update"):
                self.generator.step()
                self.ema.update(ema_weight)
            return {name: loss.detach() for name, loss in losses.items()}

    def rehearse(self, inputs: StepInputs, penalty: bool = True) -> None:
        """Compute what a step does, forward and backward, and change nothing: whatever is compiled, is then.

        The mean of the gradients over all ranks is left out: where compiling fails on one, the others must not wait.
        """
        own = copy.copy(self)
        own.generator, own.discriminator = replace(self.generator, mean=None), replace(self.discriminator, mean=None)
        with self.precision.in_force():
            inputs = own._ask_others(inputs)
            drawn = own._draw(inputs)
            own._differentiate_discriminator(inputs, drawn, penalty and own.config.penalty != "none")
            with own._scoring():
                own._differentiate_generator(inputs, drawn)
        for player in (own.generator, own.discriminator):
            player.forget_gradients()

    def with_parts(self, change: Callable[[Callable[..., Any]], Callable[..., Any]], penalty: bool = True) -> TrainStep:
        """The same step, on the same players, with what it computes between their updates changed, as by a compiler."""
        changed = copy.copy(self)
        for part in (*self.PARTS, *(("_penalty",) if penalty else ())):
            setattr(changed, part, change(getattr(self, part)))
        return changed

    def _ask_others(self, inputs: StepInputs) -> StepInputs:
        if self.world.size == 1:
            return inputs
        known = [inputs.caption_ids, inputs.mismatched_ids]
        if inputs.class_ids is not None:
            known.append(inputs.class_ids)
        captions, mismatched, *classes = self.world.all_gather(torch.stack(known, dim=1)).unbind(dim=1)
        valid = (captions != mismatched).sum().clamp(min=1) / self.world.size
        return inputs._replace(others=Others(captions, classes[0] if classes else None, valid))

    def _draw(self, inputs: StepInputs) -> Generated:
        """The fakes of a step, which both players' turns take."""
        return self._generate(inputs)

    def _differentiate_discriminator(
        self, inputs: StepInputs, drawn: Generated, with_penalty: bool
    ) -> dict[str, Tensor]:
        """Leave the gradient of the discriminator's turn in its weights; returns the losses."""
        with span("discriminator"):
            total, losses = self._discriminator_losses(inputs, drawn.images.detach())
        if with_penalty:
            with span("penalty"):
                losses["d_penalty"] = self._penalty(inputs, *differentiable(inputs))
                total = total + self._penalty_weight * losses["d_penalty"]
        with span("discriminator backward"):
            self.discriminator.forget_gradients()
            self.discriminator.add_gradient(total)
        return losses

    def _differentiate_generator(self, inputs: StepInputs, drawn: Generated) -> dict[str, Tensor]:
        """Leave the gradient of the generator's turn in its weights; returns the losses."""
        with span("generator"):
            total, losses = self._generator_losses(inputs, *drawn)
        with span("generator backward"):
            self.generator.forget_gradients()
            self.generator.add_gradient(total)
        return losses

    @property
    def _penalty_weight(self) -> float:
        """Of a penalty in a step that has it, which stands for those that have none."""
        return self.config.penalty_weight * self.config.penalty_every

    def _generate(self, inputs: StepInputs) -> Generated:
        with self.precision.autocast():
            return self.generator.module(inputs.text.sentence, inputs.noise)

    def _discriminator_losses(self, inputs: StepInputs, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self._judge_both(inputs, self._see_both(inputs, fake))

    def _see_both(self, inputs: StepInputs, fake: Tensor) -> RealAndFake:
        """Real images and fakes in one pass; what it gives for an image and a caption depends on no other one."""
        real, batch = to_signed(inputs.images), len(inputs.images)
        images = torch.cat([self._augment(real, inputs, 0), self._augment(fake, inputs, 1).to(real.dtype)])
        features, sentences, words = self._discriminate(
            images, torch.cat([inputs.text.sentence, inputs.mismatched_sentence]), inputs.text.keywords
        )
        (seen_real, seen_fake), (matching, mismatched) = features.split(batch), sentences.split(batch)
        return RealAndFake(seen_real, seen_fake, matching, mismatched, words)

    def _judge_both(self, inputs: StepInputs, seen: RealAndFake) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's losses and their weighted sum, without the penalty."""
        config, mask, exclude = self.config, inputs.text.mask, self._exclude(inputs)
        losses = {
            "d_adversarial": discriminator_adversarial(
                config.adversarial,
                seen.real.logits(seen.matching),
                seen.fake.logits(seen.matching),
                seen.real.logits(seen.mismatched),
                inputs.caption_ids != inputs.mismatched_ids,
                config.mismatched,
                inputs.others and inputs.others.valid,
            ),
            "d_region": region_match(config, seen.real, seen.words, mask, exclude, self._group),
            "d_sentence": sentence_match(config, seen.real, seen.matching, exclude, self._group),
        }
        total = losses["d_adversarial"] + config.region * losses["d_region"] + config.sentence * losses["d_sentence"]
        return total, losses

    def _generator_losses(
        self, inputs: StepInputs, fake: Tensor, kl: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, losses = self._judge_fakes(inputs, self._see_fakes(inputs, fake))
        if kl is not None:
            losses["g_kl"] = kl
            total = total + self.config.kl * kl
        return total, losses

    def _see_fakes(self, inputs: StepInputs, fake: Tensor) -> Fakes:
        """What it gives for an image and a caption depends on no other one."""
        return Fakes(*self._discriminate(self._augment(fake, inputs, 2), inputs.text.sentence, inputs.text.keywords))

    def _judge_fakes(self, inputs: StepInputs, seen: Fakes) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's losses and their weighted sum, without the KL term."""
        config, mask, exclude = self.config, inputs.text.mask, self._exclude(inputs)
        losses = {
            "g_adversarial": generator_adversarial(config.adversarial, seen.fake.logits(seen.matching)),
            "g_region": region_match(config, seen.fake, seen.words, mask, exclude, self._group),
            "g_sentence": sentence_match(config, seen.fake, seen.matching, exclude, self._group),
        }
        total = losses["g_adversarial"] + config.region * losses["g_region"] + config.sentence * losses["g_sentence"]
        return total, losses

    def _discriminate(
        self, images: Tensor, sentences: Tensor, keywords: Tensor
    ) -> tuple[ImageFeatures, Tensor, Tensor]:
        with self.precision.autocast():
            features, projected_sentences, projected_keywords = self.discriminator.module(images, sentences, keywords)
        return features.float(), projected_sentences.float(), projected_keywords.float()

    def _penalty(self, inputs: StepInputs, images: Tensor, sentences: Tensor) -> Tensor:
        """The gradient penalty in float32, on a pass of its own: it comes once in many steps, for real images alone.

        images, sentences: those of the inputs, which require a gradient.
        """
        features, projected, _ = self.discriminator.module(
            self._augment(images, inputs, 0), sentences, inputs.text.keywords
        )
        logits = features.logits(projected)
        if self.config.penalty == "r1":
            return r1_penalty(logits, images)
        return ma_gp_penalty(logits, images, sentences)

    def _exclude(self, inputs: StepInputs) -> Tensor:
        """Which images and captions are no negatives of each other, (B, B) bool; with a group, (B, all captions)."""
        others = inputs.others if self._group is not None and inputs.others is not None else inputs
        exclude = inputs.caption_ids[:, None] == others.caption_ids
        if inputs.class_ids is not None and others.class_ids is not None:
            exclude = exclude | (inputs.class_ids[:, None] == others.class_ids)
        return exclude

    def _augment(self, images: Tensor, inputs: StepInputs, turn: int) -> Tensor:
        return augment(images, self.config.augment, inputs.augmentation[turn])


def differentiable(inputs: StepInputs) -> tuple[Tensor, Tensor]:
    """Images and sentence features, to differentiate by."""
    return to_signed(inputs.images).requires_grad_(), inputs.text.sentence.detach().requires_grad_()
