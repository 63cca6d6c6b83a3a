"""The one view of any source of captioned images: random access to encoded bytes and captions by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastt2i.errors import UserError

Split = Literal["train", "heldout", "all"]


@dataclass(frozen=True)
class Problem:
    """A file, or a line of one, that was left out, and why."""

    where: str
    what: str


@dataclass(frozen=True)
class CaptionTable:
    """Every distinct caption once, and which of them each sample has.

    captions: distinct, in order of first appearance; a caption's id is its place here.
    offsets: int64 (N + 1,), ids: int64: sample i has the captions `ids[offsets[i]:offsets[i + 1]]`, at least one.
    """

    captions: list[str]
    offsets: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, sample: int) -> NDArray[np.int64]:
        """The caption ids of one sample."""
        return self.ids[self.offsets[sample] : self.offsets[sample + 1]]


@dataclass(frozen=True, kw_only=True)
class Index:
    """N samples, each an encoded image with at least one caption."""

    name: str
    """`shapes`, or the folder's path."""
    keys: Sequence[str]
    """Unique names of the samples, e.g. the path relative to the folder."""
    captions: Sequence[tuple[str, ...]]
    read: Callable[[int], bytes]
    """The content of a sample's image file. Picklable, so that worker processes can have it; may raise OSError."""
    problems: Sequence[Problem] = ()
    """What was left out on the way here."""

    def __len__(self) -> int:
        return len(self.keys)

    def caption_table(self) -> CaptionTable:
        """Number the distinct captions."""
        numbers: dict[str, int] = {}
        ids = np.fromiter((numbers.setdefault(c, len(numbers)) for own in self.captions for c in own), dtype=np.int64)
        offsets = np.zeros(len(self) + 1, dtype=np.int64)
        np.cumsum([len(own) for own in self.captions], out=offsets[1:])
        return CaptionTable(list(numbers), offsets, ids)

    def first(self, count: int) -> Index:
        """The first `count` samples alone; all of them where there are fewer."""
        return replace(self, keys=self.keys[:count], captions=self.captions[:count])

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Key and captions of each sample."""
        return iter(zip(self.keys, self.captions, strict=True))


def open_index(
    path: str,
    format: Literal["auto", "shapes", "folder"] = "auto",
    *,
    image_size: int,
    split: Split = "train",
    heldout: float = 0.05,
) -> Index:
    """Find the samples that `path` names.

    format: `auto` takes the word `shapes` for the embedded set and anything else for a folder; a folder of that very
    name is `./shapes`, or `shapes` with the format `folder`. image_size: pixels, for sets that are drawn. split:
    `heldout` is what training never sees; it may be empty. heldout: its share of a folder's samples, 0 to 1; the
    embedded set has a split of its own.
    Raises UserError where there is nothing to train on.
    """
    if format == "shapes" and path != "shapes":
        raise UserError(f"the data format is `shapes` but the path is {path!r}: leave the format out to read a folder")
    if path == "shapes" and format != "folder":
        from fastt2i.data.sources.shapes import shapes_index

        return shapes_index(image_size, split)
    from fastt2i.data.sources.folder import folder_index

    return folder_index(path, split, heldout)
