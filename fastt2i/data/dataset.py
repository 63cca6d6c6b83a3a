"""The map-style dataset that every source gives: encoded images and their captions by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Split = Literal["train", "heldout", "all"]

#: The beginnings of problems of images that have no caption.
NO_CAPTION = "an image without a caption"
NO_CAPTION_IN_FILE = "there is no caption in it"
#: Images that a fraction is taken of, even if there are fewer: a single bad one never ends a run.
FEWEST_IMAGES = 20


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
class Dataset:
    """N samples, each an encoded image with at least one caption."""

    name: str
    """`shapes`, or the folder's path."""
    keys: Sequence[str]
    """Unique names of the samples, e.g. the path relative to the folder."""
    captions: Sequence[tuple[str, ...]]
    read: Callable[[int], bytes]
    """The content of a sample's image file. Picklable, so that worker processes can have it; may raise OSError where
    that is the file's fault, and `io_errors.SystemIOError` where it is not."""
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

    def select(self, places: NDArray[np.int64]) -> Dataset:
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

    def split(self, split: Split) -> Dataset:
        """The samples that are trained on, those held out, or all."""
        if split == "all":
            return self
        heldout = np.zeros(len(self), dtype=np.bool_) if self.heldout is None else self.heldout
        return self.select((heldout if split == "heldout" else ~heldout).nonzero()[0])

    def head(self, count: int) -> Dataset:
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
