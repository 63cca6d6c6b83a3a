"""Images in groups whose attention fits into one buffer, and the memory that groups take turns in.

N counts the packed keywords of all captions, M those of a chunk, G images of a group, R regions, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastt2i.ops.numerics import accumulation_dtype, upcast
from fastt2i.ops.region_keyword.packing import Chunk, PackedKeywords, normalize, split_chunks

#: Bytes of one (G, M, R) buffer, of which there are three or four. On a CPU, for each thread, about the size of its
#: second-level cache; on a GPU enough work to fill it.
BUFFER, BUFFER_CUDA = 2**20, 64 * 2**20
#: Bytes that the forward pass may save on a CPU, so that the backward pass need not compute them again; on a GPU
#: memory is dearer. Tensors of 32 MiB or more never get pages from glibc that have been used before, and new pages cost
#: what is saved.
SAVED = 24 * 2**20
#: The Gram matrix is taken where R/D + R/N, N = J * T being all keywords, is less than this. By the counts of
#: multiply-adds it would be 1 and 1.5; on 2 CPU cores both took the same time at 1 and, backward, at 1.4.
GRAM_FORWARD, GRAM_BACKWARD = 1.0, 1.4


class ImageGroup(NamedTuple):
    """Images whose attention is computed together."""

    images: slice
    features: Tensor  # (G, R, D)
    scale: Tensor  # (G, R, 1)
    above_floor: Tensor  # (G, R, 1) bool
    chunks: list[Chunk]
    by_gram: bool  # whether products of the attention are with Gram matrices, G a, or contexts
    saved: Tensor | None  # G * N * (R + R or D), from the forward pass


class Workspace:
    """Memory that groups and chunks take turns in: first touching new memory costs more than computing in it."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, shape: Sequence[int]) -> Tensor:
        """An uninitialised tensor of this shape; only one of a name is in use at a time."""
        size = math.prod(shape)
        if name not in self._flat or len(self._flat[name]) < size:
            self._flat[name] = self._like.new_empty(size)
        return self._flat[name][:size].view(shape)


def split_images(
    regions: Tensor, packed: PackedKeywords, variant: str, threads: int, saved: Tensor, gram: float
) -> Iterator[ImageGroup]:
    """Groups of images (I, R, D), as many of them for each thread as fill a buffer.

    Args:
        saved: what the forward pass saves or saved, of the first images.
        gram: below which cost the Gram matrix is taken where nothing is saved.
    """
    images, count, features = regions.shape
    largest = accumulation_dtype(regions).itemsize * count * max(count, features, len(packed.slots))
    most = max(1, _buffer_bytes(regions) // largest)  # images of a thread
    turns = max(1, -(-images // (threads * most)))
    size = threads * max(1, -(-images // (threads * turns)))  # the same for all groups, as far as it goes
    # Chunks that fill a buffer with a group's images, each about as long as the others.
    keywords = len(packed.slots)
    fitting = max(1, threads * _buffer_bytes(regions) // (accumulation_dtype(regions).itemsize * size * count))
    chunks = list(split_chunks(packed.lengths, -(-keywords // -(-keywords // fitting))))
    width = keywords * _saved_width(regions, packed.num_slots)
    for start in range(0, images, size):
        chosen = slice(start, min(start + size, images))
        found = saved[chosen.start * width : chosen.stop * width] if chosen.stop * width <= len(saved) else None
        yield ImageGroup(
            chosen,
            *normalize(upcast(regions[chosen]).contiguous(), variant),
            chunks,
            by_gram=_gram_cost(regions, packed.num_slots) < (gram if found is None else GRAM_FORWARD),
            saved=found,
        )


def new_saved(regions: Tensor, mask: Tensor, save: bool) -> Tensor:
    """An uninitialised flat tensor for what the forward pass saves."""
    dtype = accumulation_dtype(regions)
    most = SAVED // dtype.itemsize if save and regions.device.type != "cuda" else 0
    return regions.new_empty(min(len(regions) * mask.numel() * _saved_width(regions, mask.numel()), most), dtype=dtype)


def num_threads(x: Tensor) -> int:
    """Threads that share a group's images: torch's on a CPU, one on a GPU."""
    if x.device.type == "cuda":
        return 1
    if torch.compiler.is_compiling():
        from fastt2i.ops.dispatch.compile_constants import num_threads_when_traced

        return num_threads_when_traced()
    return torch.get_num_threads()


def _saved_width(regions: Tensor, keywords: int) -> int:
    """Numbers that the forward pass has for a keyword of an image: similarities, and a context or G a."""
    _, count, features = regions.shape
    return count + (count if _gram_cost(regions, keywords) < GRAM_FORWARD else features)


def _gram_cost(regions: Tensor, keywords: int) -> float:
    """R/D + R/N: multiply-adds by Gram matrices as a share of those by contexts."""
    count, features = regions.shape[1:]
    return count / features + count / max(1, keywords)


def _buffer_bytes(x: Tensor) -> int:
    return BUFFER_CUDA if x.device.type == "cuda" else BUFFER
