"""Keywords packed for blocked computation: only real ones, captions of equal length side by side, in chunks.

N counts the packed keywords, M those of a chunk, J captions, T keywords of a caption, G images, R regions, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from fastt2i.ops.numerics import NORM_FLOOR, squared_norm, upcast


class PackedKeywords(NamedTuple):
    """Real keywords, captions in order of their lengths."""

    slots: Tensor  # (N,) int64: index in (J * T) that each came from
    captions: Tensor  # (N,) int64
    features: Tensor  # (N, D), times `factor`
    scale: Tensor  # (N, 1) factor of the normalisation
    above_floor: Tensor  # (N, 1) bool: whether it divided by the norm, and not by its floor
    norm: Tensor  # (N,) after normalising
    factor: float  # gamma_attention for `xmc`, where it can be applied before the similarities; else 1
    lengths: list[int]  # of all captions, ascending
    num_slots: int  # J * T


class Chunk(NamedTuple):
    """Packed keywords of whole captions: their rows, and (captions, length) for each length."""

    rows: slice
    captions: list[tuple[int, int]]


def pack_keywords(keywords: Tensor, mask: Tensor, variant: str, gamma: float) -> PackedKeywords:
    """Pack keywords (J, T, D) with mask (J, T); the host reads the captions' lengths."""
    count = mask.shape[1]
    lengths, order = mask.sum(dim=1).sort(stable=True)
    slots = (count * order[:, None] + torch.arange(count, device=mask.device))[mask[order]]
    features, scale, above_floor = normalize(upcast(keywords.flatten(0, 1)[slots]), variant)
    norm = squared_norm(features)[:, 0].clamp(min=tiny(features)).sqrt()
    factor = gamma if variant == "xmc" else 1.0
    features.mul_(factor)
    return PackedKeywords(
        slots, slots // count, features, scale, above_floor, norm, factor, lengths.tolist(), mask.numel()
    )


def split_chunks(lengths: Iterable[int], most: int) -> Iterator[Chunk]:
    """Chunks of at most `most` keywords (one caption at least), whose captions are whole."""
    captions: list[tuple[int, int]] = []
    start = rows = 0
    for length, same in groupby(length for length in lengths if length):
        left = len(list(same))
        while left:
            fitting = (most - rows) // length
            if not fitting and rows:
                yield Chunk(slice(start, start + rows), captions)
                captions, start, rows = [], start + rows, 0
                continue
            taken = min(left, max(1, fitting))
            captions.append((taken, length))
            rows, left = rows + taken * length, left - taken
    yield Chunk(slice(start, start + rows), captions)


def by_length(x: Tensor, chunk: Chunk) -> Iterator[Tensor]:
    """Views (G, captions, length, R) of x (G, M, R), one for each length."""
    start = 0
    for captions, length in chunk.captions:
        yield x[:, start : start + captions * length].unflatten(1, (captions, length))
        start += captions * length


def normalize(x: Tensor, variant: str) -> tuple[Tensor, Tensor, Tensor]:
    """x as the similarities take it, the factor applied, and whether that is of x's norm (above the floor)."""
    if variant == "damsm":
        one = x.new_ones(()).expand(*x.shape[:-1], 1)
        return x.clone(), one, one.new_zeros(()).bool().expand_as(one)
    square = squared_norm(x)
    scale = square.clamp(min=NORM_FLOOR).rsqrt()
    return x * scale, scale, square >= NORM_FLOOR


def normalize_backward(gradient: Tensor, normalized: Tensor, scale: Tensor, above_floor: Tensor) -> Tensor:
    """The gradient of x, given that of what `normalize` made of it; in place."""
    along = torch.where(above_floor, (gradient * normalized).sum(dim=-1, keepdim=True), 0.0)
    return gradient.addcmul_(normalized, along, value=-1).mul_(scale)


def tiny(x: Tensor) -> float:
    """The smallest normal number of x's dtype."""
    return torch.finfo(x.dtype).tiny
