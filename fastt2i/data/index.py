"""The one view of any source of captioned images: random access to encoded bytes and captions by number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastt2i.config import DataFormat
from fastt2i.errors import UserError

T = TypeVar("T")
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
    """The content of a sample's image file. Picklable, so that worker processes can have it; may raise OSError where
    that is the file's fault, and `faults.MachineFault` where it is not."""
    problems: Sequence[Problem] = ()
    """What was left out on the way here."""
    classes: NDArray[np.int64] | None = None
    """int64 (N,): samples of equal number show the same kind of thing, and are no negatives of each other."""
    crops: NDArray[np.int64] | None = None
    """int64 (N, 4): left, top, right and bottom of the part of the image to use, in pixels of the stored image, before
    its orientation is applied; it may reach beyond the image."""
    heldout: NDArray[np.bool_] | None = None
    """bool (N,): samples that training never sees, where this is a whole set; None stands for no such samples."""
    stamp: Callable[[int], str] | None = None
    """Another text when a sample's image file has changed, by its size, time and place; may raise OSError. None where
    images never change, because they are drawn."""
    shards: Sequence[str] = ()
    """The files that hold many samples each, where there are such."""

    def __len__(self) -> int:
        return len(self.keys)

    def caption_table(self) -> CaptionTable:
        """Number the distinct captions."""
        numbers: dict[str, int] = {}
        ids = np.fromiter((numbers.setdefault(c, len(numbers)) for own in self.captions for c in own), dtype=np.int64)
        offsets = np.zeros(len(self) + 1, dtype=np.int64)
        np.cumsum([len(own) for own in self.captions], out=offsets[1:])
        return CaptionTable(list(numbers), offsets, ids)

    def select(self, places: NDArray[np.int64]) -> Index:
        """The samples at these places alone, in their order."""
        chosen = places.tolist()
        return replace(
            self,
            keys=[self.keys[place] for place in chosen],
            captions=[self.captions[place] for place in chosen],
            read=_Selected(self.read, places),
            classes=None if self.classes is None else self.classes[places],
            crops=None if self.crops is None else self.crops[places],
            heldout=None if self.heldout is None else self.heldout[places],
            stamp=None if self.stamp is None else _Selected(self.stamp, places),
        )

    def side(self, split: Split) -> Index:
        """The samples that are trained on, those held out, or all."""
        if split == "all":
            return self
        heldout = np.zeros(len(self), dtype=np.bool_) if self.heldout is None else self.heldout
        return self.select((heldout if split == "heldout" else ~heldout).nonzero()[0])

    def first(self, count: int) -> Index:
        """The first `count` samples alone; all of them where there are fewer."""
        return self.select(np.arange(min(count, len(self))))

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Key and captions of each sample."""
        return iter(zip(self.keys, self.captions, strict=True))


@dataclass(frozen=True)
class _Selected(Generic[T]):
    """What `of` says of the samples at some places."""

    of: Callable[[int], T]
    places: NDArray[np.int64]

    def __call__(self, sample: int) -> T:
        return self.of(int(self.places[sample]))


def open_index(
    path: str,
    format: DataFormat = "auto",
    *,
    image_size: int,
    split: Split = "train",
    heldout: float = 0.05,
    text_column: str = "",
    leave_out: str = "",
) -> Index:
    """Find the samples that `path` names.

    format: `auto` takes the one layout that `path` looks like (see `fastt2i.data.sources.table`), and a folder that
    looks like none for a folder of images and captions. The word `shapes` is the embedded set; a folder of that very
    name is `./shapes`, or `shapes` with the format `folder`. image_size: pixels, for sets that are drawn. split:
    `heldout` is what training never sees; it may be empty. heldout: its share, 0 to 1, of the samples of a set that has
    no split of its own. text_column: the column or field that holds the captions; empty looks for usual names.
    leave_out: a report of `verify`, whose bad images are left out; empty for none.
    Raises UserError where there is nothing to train on, or the report is none.
    """
    from fastt2i.data.sources.table import SOURCES, Options, choose

    name = choose(path) if format == "auto" else format
    source = SOURCES[name]
    if text_column and not source.has_columns:
        raise UserError(f"{path} is read as `{name}`, where captions are in no column: leave data.text_column empty")
    try:
        index = source.index(path, Options(image_size, heldout, text_column))
    except UserError as error:
        if format == "auto" and os.path.isdir(path) and not source.detect(path):
            *others, last = (f"`{other}`" for other in SOURCES if other not in ("shapes", name))
            raise UserError(f"{error}; nor is it laid out as {', '.join(others)} or {last}") from error
        raise
    if leave_out:
        from fastt2i.data.report import without_bad

        index = without_bad(index, leave_out)
    return index.side(split)
