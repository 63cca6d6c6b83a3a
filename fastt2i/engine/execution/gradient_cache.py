"""Steps whose batch is more than memory holds at once: networks take it part by part, the losses take all of it.

Plain accumulation of gradients would leave the matching losses with the negatives of a part. Here, as GradCache does
(Gao et al. 2021, arXiv 2101.06983), every part is run twice: first without a graph, to have the features of the whole
batch, on which the losses are computed and differentiated; then with one, to carry the gradients of the features on to
the weights. What memory must hold is a graph of one part, and features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastt2i.engine.step import GeneratedBatch, StepInputs, TrainStep, with_input_gradients
from fastt2i.engine.trace_span import trace_span
from fastt2i.text.features import TextFeatures


class AccumulatedStep(TrainStep):
    """The same step in several parts, up to rounding: each network is run forward twice, and on fewer images at once.

    Both passes of a part read the same inputs, which hold all that is random, and no layer of the networks looks at
    more than one image: so the features are the same both times.

    Args:
        step: the step with the whole batch at once.
        parts: how many, a divisor of the batch size.
    """

    LOSSES = ("_discriminator_loss_terms", "_generator_loss_terms")

    def __init__(self, step: TrainStep, parts: int) -> None:
        super().__init__(
            step.config,
            step.generator,
            step.discriminator,
            step.ema,
            step.precision,
            step.world,
            step.real_distance,
        )
        self._parts = parts
        self._last = [False] * (parts - 1) + [True]

    @torch.no_grad()
    def _generate_batch(self, inputs: StepInputs) -> GeneratedBatch:
        images = [self._generate(part, row).images for part, row in self._split_with_rows(inputs)]
        return GeneratedBatch(torch.cat(images), kl=None, pairs=None)  # the losses of these are those of the parts

    def _discriminator_backward(
        self, inputs: StepInputs, generated: GeneratedBatch, with_penalty: bool
    ) -> dict[str, Tensor]:
        parts = list(zip(self._split(inputs), generated.images.chunk(self._parts), strict=True))
        with trace_span("discriminator"):
            with torch.no_grad():
                encoded = _concatenated([self._encode_real_and_fake(*part) for part in parts])
            leaves = _tree_map(_leaf, encoded)
            total, losses = self._discriminator_loss_terms(inputs, leaves)
            feature_gradients = self._feature_gradients(total, leaves)
        penalties = []
        self.discriminator.zero_grad()
        for (part, fake), gradients, last in zip(parts, feature_gradients, self._last, strict=True):
            with trace_span("discriminator"):
                share = _surrogate_loss(self._encode_real_and_fake(part, fake), gradients)
            if with_penalty:
                with trace_span("penalty"):
                    penalty = self._penalty(part, *with_input_gradients(part)) / self._parts
                    share = share + self._penalty_weight * penalty
                    penalties.append(penalty.detach())
            with trace_span("discriminator backward"):
                self.discriminator.backward(share, last=last)
        return losses | ({"d_penalty": torch.stack(penalties).sum()} if with_penalty else {})

    def _generator_backward(self, inputs: StepInputs, generated: GeneratedBatch) -> dict[str, Tensor]:
        parts = list(zip(self._split(inputs), generated.images.chunk(self._parts), strict=True))
        with trace_span("generator"):
            with torch.no_grad():
                encoded = _concatenated([self._encode_fake(*part) for part in parts])
            leaves = _tree_map(_leaf, encoded.fake)  # captions are projected by the discriminator, whose turn it is not
            total, losses = self._generator_loss_terms(inputs, encoded._replace(fake=leaves))
            feature_gradients = self._feature_gradients(total, leaves)
        self.generator.zero_grad()
        noise_losses: list[dict[str, Tensor]] = []
        for (part, row), gradients, last in zip(
            self._split_with_rows(inputs), feature_gradients, self._last, strict=True
        ):
            with trace_span("generator"):
                own = self._generate(part, row)
                noise_total, terms = self._noise_loss_terms(own)
                noise_losses.append({name: term.detach() for name, term in terms.items()})
                share = _surrogate_loss(self._encode_fake(part, own.images).fake, gradients)
                share = share + noise_total / self._parts
            with trace_span("generator backward"):
                self.generator.backward(share, last=last)
        return losses | {name: torch.stack([terms[name] for terms in noise_losses]).mean() for name in noise_losses[0]}

    def _split(self, inputs: StepInputs) -> Iterator[StepInputs]:
        """The inputs of each part; ids of other ranks are for the losses alone, which take the whole batch."""
        size = len(inputs.images) // self._parts
        for start in range(0, len(inputs.images), size):
            rows = slice(start, start + size)
            yield StepInputs(
                images=inputs.images[rows],
                text=TextFeatures(*(tensor[rows] for tensor in inputs.text)),
                mismatched_sentence=inputs.mismatched_sentence[rows],
                caption_ids=inputs.caption_ids[rows],
                mismatched_ids=inputs.mismatched_ids[rows],
                class_ids=None if inputs.class_ids is None else inputs.class_ids[rows],
                noise=inputs.noise[rows],
                augmentation=inputs.augmentation[:, rows],
            )

    def _split_with_rows(self, inputs: StepInputs) -> Iterator[tuple[StepInputs, int]]:
        """The inputs of each part, and the place of its first image as `_generate` takes it."""
        row = self._first_row(inputs)
        for part in self._split(inputs):
            yield part, row % 2
            row += len(part.noise)

    def _feature_gradients(self, total: Tensor, leaves: Any) -> list[list[Tensor | None]]:
        """The gradients of the loss by the features, for each part; None for features that it does not depend on."""
        by_part: list[list[Tensor | None]] = [[] for _ in range(self._parts)]
        for gradient in torch.autograd.grad(total, list(_tensors(leaves)), allow_unused=True):
            chunks = [None] * self._parts if gradient is None else gradient.chunk(self._parts)
            for gradients, chunk in zip(by_part, chunks, strict=True):
                gradients.append(chunk)
        return by_part


def _surrogate_loss(features: Any, gradients: Sequence[Tensor | None]) -> Tensor:
    """A scalar that has, by the weights, the gradient of the loss whose gradients by the features are given."""
    products = [
        (x * g).sum(dtype=torch.float32) for x, g in zip(_tensors(features), gradients, strict=True) if g is not None
    ]
    return torch.stack(products).sum()


def _leaf(features: Tensor) -> Tensor:
    return features.requires_grad_()


def _concatenated(parts: Sequence[Any]) -> Any:
    """Features of parts as those of the whole."""
    return _tree_map(lambda *tensors: torch.cat(tensors), *parts)


def _tree_map(change: Callable[..., Tensor], *named: Any) -> Any:
    """Apply `change` to the tensors that have the same place in nested named tuples of one type."""
    if isinstance(named[0], Tensor):
        return change(*named)
    return type(named[0])(*(_tree_map(change, *field) for field in zip(*named, strict=True)))


def _tensors(named: Any) -> Iterator[Tensor]:
    """All tensors of a named tuple."""
    if isinstance(named, Tensor):
        yield named
    else:
        for field in named:
            yield from _tensors(field)
