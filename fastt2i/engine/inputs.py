"""From the loader's batches to what a step reads: text features, noise and everything else that is random."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastt2i.data.loaders.loader import Batch, Loader
from fastt2i.engine.distributed.world import World
from fastt2i.engine.step import StepInputs
from fastt2i.engine.trace_span import trace_span
from fastt2i.text.cache import TextCache
from fastt2i.text.features import TextFeatures


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
        classes: int64 (N,) of the index's samples, or None; see `Dataset.classes`.
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
        if self._device.type == "cuda":
            yield from self._on_a_stream_of_their_own()
            return
        batches = enumerate(self._loader, self._first_step)
        while (inputs := self._next(batches)) is not None:
            yield inputs

    def _on_a_stream_of_their_own(self) -> Iterator[StepInputs]:
        """What is asked for while the device still works at the step before is copied at once, beside that work."""
        own, batches = torch.cuda.Stream(self._device), enumerate(self._loader, self._first_step)
        while True:
            with torch.cuda.stream(own):  # where a loader that decodes on the device gives its images too
                following = self._next(batches)
                if following is None:
                    return
                inputs = StepInputs(*(self._to_device(part) for part in following))
                copied = own.record_event()
            reader = torch.cuda.current_stream(self._device)
            reader.wait_event(copied)
            # Their memory belongs to the other stream, which must not have it back before this one has read them.
            for part in inputs:
                for tensor in part if isinstance(part, tuple) else [part]:
                    if tensor is not None:
                        tensor.record_stream(reader)
            yield inputs

    def _next(self, batches: Iterator[tuple[int, Batch]]) -> StepInputs | None:
        """Those of the next step, where the loader has them; None at its end."""
        with trace_span("load"):
            following = next(batches, None)
            return following and self._inputs(*following)

    def _inputs(self, step: int, batch: Batch) -> StepInputs:
        size, world = len(batch.images), self._world
        whole, own = size * world.size, slice(size * world.rank, size * (world.rank + 1))
        random = seeded(self._seed, "step", step)
        return StepInputs(
            images=batch.images,
            text=self._features.rows(batch.caption_ids),
            mismatched_sentence=self._features.sentences(batch.mismatched_ids),
            caption_ids=batch.caption_ids,
            mismatched_ids=batch.mismatched_ids,
            class_ids=None if self._classes is None else self._classes[batch.samples],
            noise=torch.randn(whole, self._noise_dim, generator=random)[own],
            augmentation=torch.rand(3, whole, self._draws, generator=random)[:, own],
        )

    def _to_device(self, part: Any) -> Any:
        """Through pinned memory, from which the device copies while the host goes on."""
        if isinstance(part, TextFeatures):
            return TextFeatures(*(self._to_device(tensor) for tensor in part))
        if part is None or part.is_cuda:
            return part
        return part.pin_memory().to(self._device, non_blocking=True)
