"""Images and scores that depend on their own inputs alone, bit for bit, whatever is drawn beside them.

On a CPU the sums of a product or a convolution are rounded in another order where a batch has another size: BLAS takes
other kernels for few rows, or for the last ones, and oneDNN divides what the threads do not share out evenly. So
products of features are computed in float64, of `ROWS` rows at a time, and rounded to float32, which leaves some of
the order in one of some 10^8 numbers; and convolutions are of as many images as give each thread whole ones. What is
missing is filled up. On a GPU batches are as they come, and other sizes round otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator, Latent
from fastt2i.ops.numerics import upcast

NetworkT = TypeVar("NetworkT", bound=nn.Module)

#: Rows of every product of features on a CPU: times an even width they fill whole vector registers, so that no element
#: is computed apart from the others, as torch does with what is left over.
ROWS = 16
#: Images scored in one pass by one thread, which convolves 16 and more by a 1x1 kernel through another library.
SCORED_BY_ONE_THREAD = 14


class IndependentRows:
    """A generator and a discriminator, used on batches of any size.

    Args:
        generator, discriminator: in evaluation mode, on `device`; on a CPU what multiplies features is copied here.
        device: where they are.
        dtype: what they multiply in.
    """

    def __init__(
        self, generator: Generator, discriminator: Discriminator, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._generator, self._discriminator = generator, discriminator
        self._device, self._dtype = device, dtype
        self._of_features = (generator, discriminator)
        if device.type == "cpu":
            self._of_features = (
                _without_convolutions(generator).double(),
                _without_convolutions(discriminator).double(),
            )

    def images(self, sentences: Tensor, noise: Tensor, batch_size: int) -> Tensor:
        """Images (N, 3, S, S) in float32 of sentence features (N, d) and noise (N, noise_dim).

        batch_size: images drawn in one pass; on a CPU rounded up to what all threads share evenly.
        """
        with self.autocast():
            latent = self._of_rows(lambda s, z: self._of_features[0].latent(s, z)[0], sentences, noise)
            [images] = self._of_images(
                lambda *z: (self._generator.synthesize(Latent(*z)).float(),), *latent, batch_size=batch_size
            )
        return images

    def logits(self, images: Tensor, sentences: Tensor, negative: Tensor | None, batch_size: int) -> Tensor:
        """The discriminator's logits (N,) of images (N, 3, S, S) under sentences (N, d), less their match with negative
        ones (N, d), which are zero where there is none."""
        if self._device.type == "cpu" and torch.get_num_threads() == 1:
            batch_size = min(batch_size, SCORED_BY_ONE_THREAD)
        with self.autocast():
            [seen] = self._of_images(lambda x: (self._discriminator.trunk(x)[0],), images, batch_size=batch_size)
            [logits] = self._of_rows(self._score, seen, sentences, *([] if negative is None else [negative]))
        return logits

    def autocast(self) -> AbstractContextManager[object]:
        """In which the networks multiply in `dtype`."""
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _score(self, seen: Tensor, sentences: Tensor, negative: Tensor | None = None) -> tuple[Tensor]:
        discriminator = self._of_features[1]
        global_, unconditional = map(upcast, discriminator.head(seen))
        logits = unconditional + (global_ * discriminator.sentence(sentences)).sum(dim=1)
        if negative is not None:
            unwanted = (global_ * discriminator.sentence(negative)).sum(dim=1)
            logits = logits - unwanted * negative.any(dim=1)
        return (logits,)

    def _of_rows(self, run: Callable[..., Sequence[Tensor]], *given: Tensor) -> list[Tensor]:
        if self._device.type != "cpu":
            return [found.float() for found in run(*given)]
        with torch.autocast("cpu", enabled=False):
            return [found.float() for found in _in_parts(run, [x.double() for x in given], ROWS, ROWS)]

    def _of_images(self, run: Callable[..., Sequence[Tensor]], *given: Tensor, batch_size: int) -> list[Tensor]:
        # One image alone torch convolves by a function of its own.
        multiple = max(2, torch.get_num_threads()) if self._device.type == "cpu" else 1
        return _in_parts(run, given, -(-batch_size // multiple) * multiple, multiple)


def _without_convolutions(network: NetworkT) -> NetworkT:
    """A copy without the weights of convolutions, which products of features do not need."""
    return copy.deepcopy(network, {id(weight): None for weight in network.parameters() if weight.ndim == 4})


def _in_parts(
    run: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], largest: int, multiple: int
) -> list[Tensor]:
    """What `run` makes of tensors (N, ...), of at most `largest` rows at a time; the last ones are filled up to a
    multiple by copies of the last row."""
    parts = []
    for some in zip(*(each.split(largest) for each in given), strict=True):
        missing = -len(some[0]) % multiple
        parts.append(run(*(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x for x in some)))
    return [torch.cat(column)[: len(given[0])] for column in zip(*parts, strict=True)]
