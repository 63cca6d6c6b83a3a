"""Which samples a step takes, with which captions, mirrored or not, and what part of them: pure functions of (seed,
epoch, rank, step).

Nothing of it has to be saved: to resume is to ask for the next step.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastt2i.data.dataset import CaptionTable
from fastt2i.data.hashing import hash64

_ORDER, _CAPTION, _FLIP, _TOP, _LEFT = 1, 2, 3, 4, 5  # tell the streams of random numbers apart
_LOOK_AHEAD = 32  # samples searched for a caption that does not fit; more than that all fit only where most of a set do


class Plan(NamedTuple):
    """One rank's part of a step, B samples."""

    samples: NDArray[np.int64]
    """int64 (B,): places in the dataset."""
    caption_ids: NDArray[np.int64]
    """int64 (B,): one of each sample's own captions."""
    mismatched_ids: NDArray[np.int64]
    """int64 (B,): a caption of another sample of the global batch."""
    flips: NDArray[np.bool_]
    """bool (B,): mirror the image left to right."""
    corners: NDArray[np.int64]
    """int64 (B, 2): row and column, in the mirrored image, of the upper left pixel of the part to take."""


class Sampler:
    """Plans the steps of one rank.

    Position p = step * batch_size + k counts samples over the whole run; its epoch is p // N, and its sample the
    (p % N)-th of that epoch's permutation. Rank r has the r-th of `world_size` equal parts of each step, so the ranks'
    plans one after the other are the plan of a single process. Caption, flip and corner depend on (seed, epoch,
    sample).
    """

    def __init__(
        self,
        table: CaptionTable,
        *,
        batch_size: int,
        seed: int,
        flip: bool,
        margin: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """batch_size: of all ranks together. margin: pixels by which decoded images are larger than the batch's."""
        if len(table) == 0:
            raise ValueError("there are no samples to plan with")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"the batch size {batch_size} must be a positive multiple of {world_size}, the number of ranks"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must be at least 0 and less than {world_size}")
        self.world_size = world_size
        self.margin = margin
        self._offsets, self._ids = table.offsets, table.ids  # the captions themselves need not go to worker processes
        self._count = len(table)
        self._batch_size = batch_size
        self._seed = seed
        self._flip = flip
        self._part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        # A batch may straddle two epochs. It spans more where the set is smaller, but then they are quick to make.
        self._order = functools.lru_cache(maxsize=2)(self._permute)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._order = functools.lru_cache(maxsize=2)(self._permute)

    def plan(self, step: int) -> Plan:
        """This rank's part of a step (counted from 0)."""
        positions, samples, captions = self._planned(step)
        part = self._part
        epochs, own = positions[part] // self._count, samples[part]
        flips = (self._hash(_FLIP, epochs, own) >> np.uint64(63) == 1) & self._flip
        draws = np.stack([self._hash(stream, epochs, own) for stream in (_TOP, _LEFT)], axis=1)
        corners = (draws % np.uint64(self.margin + 1)).astype(np.int64)
        mismatched = self._others(captions, np.arange(len(captions))[part], own)
        return Plan(own, captions[part], mismatched, flips, corners)

    def positions(self, step: int) -> NDArray[np.int64]:
        """The positions in the run of this rank's part of a step -> int64 (B,)."""
        return self._all_positions(step)[self._part]

    def captions(self, positions: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The caption chosen for each sample in the epoch that its position falls in -> int64 (B,)."""
        first, end = self._offsets[samples], self._offsets[samples + 1]
        draw = self._hash(_CAPTION, positions // self._count, samples)
        return self._ids[first + (draw % (end - first).astype(np.uint64)).astype(np.int64)]

    def mismatched(self, positions: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each sample the next caption of its step that is none of its own -> int64 (B,).

        positions: of one step. samples: at these positions, be they those of the plan or others in their places; the
        captions are the plan's in any case, so that no rank has to know what others replace. Where so many as are
        looked at fit the sample, it is the very next one.
        """
        everyone, _, captions = self._planned(int(positions[0]) // self._batch_size)
        return self._others(captions, positions - everyone[0], samples)

    def belongs(self, captions: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each caption id is among the captions of the sample beside it -> bool (B,)."""
        first, counts = self._offsets[samples], np.diff(self._offsets)[samples]
        starts = np.cumsum(counts) - counts
        own = self._ids[np.arange(counts.sum()) + np.repeat(first - starts, counts)]
        return np.logical_or.reduceat(own == np.repeat(captions, counts), starts)

    def _planned(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Positions, samples and captions of all ranks in a step."""
        positions = self._all_positions(step)
        epochs, places = np.divmod(positions, self._count)
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            samples[at] = self._order(int(epoch))[places[at]]
        return positions, samples, self.captions(positions, samples)

    def _all_positions(self, step: int) -> NDArray[np.int64]:
        return step * self._batch_size + np.arange(self._batch_size, dtype=np.int64)

    def _hash(self, stream: int, *values: NDArray[np.int64] | int) -> NDArray[np.uint64]:
        return hash64(self._seed, stream, *values)

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        # numpy's own generators may change their permutations between releases; sorting hashes never does.
        return np.argsort(self._hash(_ORDER, epoch, np.arange(self._count)), kind="stable")

    def _others(
        self, captions: NDArray[np.int64], places: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """As `mismatched`. captions: of the whole step. places: of the samples in it."""
        following = captions[(places + 1) % len(captions)]
        found = following
        for distance in range(2, min(len(captions) + 1, _LOOK_AHEAD)):
            own = self.belongs(found, samples)
            if not own.any():
                return found
            found = np.where(own, captions[(places + distance) % len(captions)], found)
        return np.where(self.belongs(found, samples), following, found)
