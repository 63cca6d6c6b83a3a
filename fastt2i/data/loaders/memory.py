"""A loader for sets that fit in memory: every image is decoded once, up front; a batch is a look-up."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastt2i.data.dataset import Dataset, Problem
from fastt2i.data.decode import BadImage, Decoder
from fastt2i.data.loaders.loader import Batch, Loader, to_batch
from fastt2i.data.loaders.quarantine import Quarantine, replace_undecodable
from fastt2i.data.sampler import Sampler

_CHUNK = 32  # images that a thread decodes at a time


class MemoryLoader(Loader):
    """Keeps the decoded images of the whole dataset: N * S * S * 3 bytes."""

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        *,
        image_size: int,
        workers: int,
        max_bad_fraction: float,
        start_step: int = 0,
        progress: bool = True,
        known: Sequence[Problem] = (),
    ) -> None:
        """workers: threads; Pillow decodes outside the interpreter's lock, and threads start at once."""
        self._sampler = sampler
        self._step = start_step
        self._images = np.zeros((len(dataset), image_size, image_size, 3), dtype=np.uint8)
        failures = _decode_all(dataset, self._images, max(workers, 1), progress)
        self._good = np.ones(len(dataset), dtype=bool)
        self._good[[sample for sample, _ in failures]] = False
        self.quarantine = Quarantine(dataset, max_bad_fraction, known)
        self.quarantine.note(np.arange(len(dataset)), failures)

    def __next__(self) -> Batch:
        plan = self._sampler.plan(self._step)
        if not self._good[plan.samples].all():
            positions = self._sampler.positions(self._step)
            plan = replace_undecodable(
                plan, positions, self._sampler, len(self._good), lambda sample: bool(self._good[sample])
            )
        self._step += 1
        return to_batch(self._images[plan.samples], plan, self._sampler.margin)

    def close(self) -> None:
        """Nothing runs in the background."""


def _decode_all(dataset: Dataset, images: NDArray[np.uint8], workers: int, progress: bool) -> list[tuple[int, str]]:
    """Fill `images` (N, S, S, 3); returns the samples that failed, in order, with reasons."""

    decode = Decoder.of(dataset, images.shape[1])

    def decode_chunk(start: int) -> list[tuple[int, str]]:
        failures = []
        for sample in range(start, min(start + _CHUNK, len(dataset))):
            try:
                images[sample] = decode(sample)
            except (BadImage, OSError) as error:
                failures.append((sample, str(error)))
        return failures

    pool = ThreadPoolExecutor(workers)
    try:
        with tqdm(total=len(dataset), desc="decoding images", unit="img", delay=1, disable=not progress) as bar:
            failures = []
            for found in pool.map(decode_chunk, range(0, len(dataset), _CHUNK)):
                failures += found
                bar.update(min(_CHUNK, len(dataset) - bar.n))
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, what is queued would go on otherwise
    return failures
