"""A loader for sets of any size: worker processes decode the steps to come with Pillow."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data as torch_data

from fastt2i.data.dataset import Dataset, Problem
from fastt2i.data.decode import BadImage, Decoder
from fastt2i.data.loaders.loader import Batch, Loader, to_batch
from fastt2i.data.loaders.quarantine import Quarantine, TooManyBad, replace_undecodable
from fastt2i.data.loaders.worker_signals import setup_worker_signals
from fastt2i.data.loaders.worker_start import starting_workers, worker_context
from fastt2i.data.sampler import Sampler
from fastt2i.errors import UserError
from fastt2i.files.io_errors import SystemIOError

_NO_SHARED_MEMORY = (
    "shared memory (/dev/shm) has no room for the batches of the worker processes, which go through pipes instead and "
    "may be slower: give a container more of it, as with --shm-size=1g, or set data.workers to 0"
)


class PillowLoader(Loader):
    """Decodes each image anew whenever its turn comes; a worker makes whole steps."""

    prefetch = 2
    """Steps that each worker is ahead."""

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        *,
        image_size: int,
        workers: int,
        max_bad_fraction: float,
        start_step: int = 0,
        known: Sequence[Problem] = (),
    ) -> None:
        """workers: processes; 0 decodes in this one."""
        self.quarantine = Quarantine(dataset, max_bad_fraction, known, shared=sampler.world_size > 1)
        steps = torch_data.DataLoader(
            _Steps(Decoder.of(dataset, image_size), len(dataset), sampler),
            batch_size=None,
            sampler=_CountFrom(start_step),
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=self.prefetch if workers else None,
            multiprocessing_context=worker_context([__name__]) if workers else None,
            worker_init_fn=_start_worker if workers else None,
        )
        self._told_of_pipes = False
        with starting_workers():
            self._steps: Iterator[_Decoded] | None = iter(steps)

    def __next__(self) -> Batch:
        if self._steps is None:
            raise StopIteration
        decoded = next(self._steps)
        self.quarantine.note(decoded.tried, decoded.failures)
        if isinstance(decoded.batch, SystemIOError):
            raise decoded.batch
        if isinstance(decoded.batch, UserError):
            raise TooManyBad(str(decoded.batch), self.quarantine.problems)
        if isinstance(decoded.batch, Batch):
            return decoded.batch
        if not self._told_of_pipes:
            self._told_of_pipes = True
            warnings.warn(_NO_SHARED_MEMORY, stacklevel=2)
        return Batch(*map(torch.from_numpy, decoded.batch))

    def close(self) -> None:
        # Dropping the iterator ends its workers too, but not while the traceback of an interrupt refers to it.
        getattr(self._steps, "_shutdown_workers", lambda: None)()
        self._steps = None


class _Decoded(NamedTuple):
    """A step from a worker, which cannot raise a clean error itself."""

    batch: Batch | tuple[NDArray[Any], ...] | UserError
    """Tensors in shared memory; or arrays, which go through a pipe, where that has no room for them."""
    tried: NDArray[np.int64]
    failures: list[tuple[int, str]]


class _Steps(torch_data.Dataset[_Decoded]):
    """The step of a given number, decoded."""

    def __init__(self, decode: Decoder, count: int, sampler: Sampler) -> None:
        self._decode = decode
        self._count = count
        self._sampler = sampler
        self._bad: set[int] = set()  # known to this worker: not tried again

    def __getitem__(self, step: int) -> _Decoded:
        images: dict[int, NDArray[np.uint8]] = {}
        failures: list[tuple[int, str]] = []

        def usable(sample: int) -> bool:
            if sample in images or sample in self._bad:
                return sample in images
            try:
                images[sample] = self._decode(sample)
            except (BadImage, OSError) as error:
                self._bad.add(sample)
                failures.append((sample, str(error)))
            return sample in images

        plan = self._sampler.plan(step)
        batch: Batch | tuple[NDArray[Any], ...] | UserError
        try:
            plan = replace_undecodable(plan, self._sampler.positions(step), self._sampler, self._count, usable)
            pixels = np.stack([images[int(sample)] for sample in plan.samples])
            made = to_batch(pixels, plan, self._sampler.margin)
            batch = made if torch_data.get_worker_info() is None else _shared(made)
        except UserError as error:
            batch = error
        return _Decoded(batch, np.fromiter(images, dtype=np.int64), failures)


class _CountFrom(torch_data.Sampler[int]):
    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


def _unchanged(decoded: Any) -> Any:
    return decoded


def _start_worker(number: int) -> None:
    setup_worker_signals()


def _shared(batch: Batch) -> Batch | tuple[NDArray[Any], ...]:
    """The batch in shared memory, where a queue would put it; its arrays where that is full."""
    try:
        for tensor in batch:
            tensor.share_memory_()
    except RuntimeError as error:
        if "shared memory" not in str(error) and "shm" not in str(error):
            raise
        return tuple(tensor.numpy() for tensor in batch)
    return batch
