"""From the loader's batches to what a step reads: text features, noise and everything else that is random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastt2i.data.loaders import Batch, Loader
from fastt2i.data.text_cache import TextCache
from fastt2i.engine.step import StepInputs
from fastt2i.engine.world import World
from fastt2i.text_features import TextFeatures


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator whose numbers depend on `parts` alone."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class InputSource:
    """The inputs of every step from the loader's first one on.

    Noise is drawn on the CPU from (seed, step), so that it is the same on every device and after every resume. It is
    drawn for the whole batch, of which every rank takes its own rows: so it is the same for every number of ranks, too.

    Args:
        loader: gives the batches.
        features: text features, a row for each caption id.
        classes: int64 (N,) of the index's samples, or None; see `Index.classes`.
        noise_dim: size of the generator's noise.
        draws: uniform numbers that augmentation takes for each image.
        seed: the run's seed.
        first_step: the step of the loader's first batch.
        device: where the inputs go.
        world: the processes of the run; one by default.
    """

    def __init__(
        self,
        loader: Loader,
        features: TextCache,
        classes: NDArray[np.int64] | None,
        *,
        noise_dim: int,
        draws: int,
        seed: int,
        first_step: int,
        device: torch.device,
        world: World | None = None,
    ) -> None:
        self._loader = loader
        self._features = features
        self._classes = None if classes is None else torch.from_numpy(classes)
        self._noise_dim = noise_dim
        self._draws = draws
        self._seed = seed
        self._first_step = first_step
        self._device = device
        self._world = world or World()

    def __iter__(self) -> Iterator[StepInputs]:
        for step, batch in enumerate(self._loader, self._first_step):
            yield self._inputs(batch, step)

    def _inputs(self, batch: Batch, step: int) -> StepInputs:
        size, world = len(batch.images), self._world
        whole, own = size * world.size, slice(size * world.rank, size * (world.rank + 1))
        random = seeded(self._seed, "step", step)
        inputs = StepInputs(
            images=batch.images,
            text=self._features.rows(batch.caption_ids),
            mismatched_sentence=self._features.sentences(batch.mismatched_ids),
            caption_ids=batch.caption_ids,
            mismatched_ids=batch.mismatched_ids,
            class_ids=None if self._classes is None else self._classes[batch.samples],
            noise=torch.randn(whole, self._noise_dim, generator=random)[own],
            augmentation=torch.rand(3, whole, self._draws, generator=random)[:, own],
        )
        return StepInputs(*(self._to_device(part) for part in inputs))

    def _to_device(self, part: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, TextFeatures):
            return TextFeatures(*(self._to_device(x) for x in part))
        tensor: Tensor = part
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
