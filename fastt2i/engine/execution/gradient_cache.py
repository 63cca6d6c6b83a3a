"""Steps whose batch is more than memory holds at once: networks see it part by part, and the losses see all of it.

Plain accumulation of gradients would leave the matching losses with the negatives of a part. Here, as GradCache does
(Gao et al. 2021, arXiv 2101.06983), every part is seen twice: first without a graph, to have the features of the whole
batch, on which the losses are computed and differentiated; then with one, to carry the gradients of the features on to
the weights. What memory must hold is a graph of one part, and features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastt2i.engine.execution.spans import span
from fastt2i.engine.step import StepInputs, TrainStep, differentiable
from fastt2i.models.generator import Generated
from fastt2i.text.features import TextFeatures


class AccumulatedStep(TrainStep):
    """The same step in several parts, up to rounding: each network is run forward twice, and on fewer images at once.

    Both passes of a part read the same inputs, which hold all that is random, and no layer of the networks looks at
    more than one image: so the features are the same both times.

    Args:
        step: the step with the whole batch at once.
        parts: how many, a divisor of the batch size.
    """

    PARTS = ("_generate", "_see_both", "_judge_both", "_see_fakes", "_judge_fakes")

    def __init__(self, step: TrainStep, parts: int) -> None:
        super().__init__(step.config, step.generator, step.discriminator, step.ema, step.precision, step.world)
        self._parts = parts
        self._last = [False] * (parts - 1) + [True]

    @torch.no_grad()
    def _draw(self, inputs: StepInputs) -> Generated:
        images, kl = zip(*(self._generate(part) for part in self._split(inputs)), strict=True)
        return Generated(torch.cat(images), None if kl[0] is None else torch.stack(kl).mean())

    def _differentiate_discriminator(
        self, inputs: StepInputs, drawn: Generated, with_penalty: bool
    ) -> dict[str, Tensor]:
        parts = list(zip(self._split(inputs), drawn.images.chunk(self._parts), strict=True))
        with span("discriminator"):
            with torch.no_grad():
                seen = _joined([self._see_both(*part) for part in parts])
            leaves = _map(_leaf, seen)
            total, losses = self._judge_both(inputs, leaves)
            slopes = self._slopes(total, leaves)
        penalties = []
        self.discriminator.forget_gradients()
        for (part, fake), slope, last in zip(parts, slopes, self._last, strict=True):
            with span("discriminator"):
                share = _along(self._see_both(part, fake), slope)
            if with_penalty:
                with span("penalty"):
                    penalty = self._penalty(part, *differentiable(part)) / self._parts
                    share = share + self._penalty_weight * penalty
                    penalties.append(penalty.detach())
            with span("discriminator backward"):
                self.discriminator.add_gradient(share, last=last)
        return losses | ({"d_penalty": torch.stack(penalties).sum()} if with_penalty else {})

    def _differentiate_generator(self, inputs: StepInputs, drawn: Generated) -> dict[str, Tensor]:
        parts = list(zip(self._split(inputs), drawn.images.chunk(self._parts), strict=True))
        with span("generator"):
            with torch.no_grad():
                seen = _joined([self._see_fakes(*part) for part in parts])
            leaves = _map(_leaf, seen.fake)  # captions are projected by the discriminator, whose turn it is not
            total, losses = self._judge_fakes(inputs, seen._replace(fake=leaves))
            slopes = self._slopes(total, leaves)
        self.generator.forget_gradients()
        for (part, _), slope, last in zip(parts, slopes, self._last, strict=True):
            with span("generator"):
                fake, kl = self._generate(part)
                share = _along(self._see_fakes(part, fake).fake, slope)
                if kl is not None:
                    share = share + self.config.kl * kl / self._parts
            with span("generator backward"):
                self.generator.add_gradient(share, last=last)
        return losses | ({} if drawn.kl is None else {"g_kl": drawn.kl})

    def _split(self, inputs: StepInputs) -> Iterator[StepInputs]:
        """The inputs of each part; what is known of other ranks is for the losses alone, which see the whole batch."""
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

    def _slopes(self, total: Tensor, leaves: Any) -> list[list[Tensor | None]]:
        """The gradients of the loss by the features, for each part; None for features that it does not read."""
        slopes: list[list[Tensor | None]] = [[] for _ in range(self._parts)]
        for gradient in torch.autograd.grad(total, list(_flat(leaves)), allow_unused=True):
            chunks = [None] * self._parts if gradient is None else gradient.chunk(self._parts)
            for slope, chunk in zip(slopes, chunks, strict=True):
                slope.append(chunk)
        return slopes


def _along(features: Any, slope: Sequence[Tensor | None]) -> Tensor:
    """A scalar that has, by the weights, the gradient of the loss whose gradient by the features is `slope`."""
    products = [(x * g).sum() for x, g in zip(_flat(features), slope, strict=True) if g is not None]
    return torch.stack(products).sum()


def _leaf(features: Tensor) -> Tensor:
    return features.requires_grad_()


def _joined(parts: Sequence[Any]) -> Any:
    """Features of parts as those of the whole."""
    return _map(lambda *tensors: torch.cat(tensors), *parts)


def _map(change: Callable[..., Tensor], *named: Any) -> Any:
    """Named tuples of one kind as one, with each tensor made of those in its place; they may be nested."""
    if isinstance(named[0], Tensor):
        return change(*named)
    return type(named[0])(*(_map(change, *field) for field in zip(*named, strict=True)))


def _flat(named: Any) -> Iterator[Tensor]:
    """All tensors of a named tuple."""
    if isinstance(named, Tensor):
        yield named
    else:
        for field in named:
            yield from _flat(field)
