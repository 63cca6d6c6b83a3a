"""Statistics of a dataset: formats, sizes and duplicates of its images, lengths of its captions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import BadImage, opened, orientation_of
from fastt2i.data.tools.parallel import each
from fastt2i.files.io_errors import classify_io_errors

Line = tuple[str, str]
_SIDES = (32, 64, 128, 256)  # pixels of the sizes that models have
_MOST_COMMON = 4


class ImageInfo(NamedTuple):
    """An image file by its header."""

    format: str
    """Empty where it is no image that is read."""
    width: int
    height: int
    """Pixels, turned upright."""
    size: int
    """Bytes of the file."""
    digest: bytes
    """SHA-256 of the file."""


@dataclass(frozen=True)
class _ReadImageInfo:
    read: Callable[[int], bytes]

    def __call__(self, sample: int) -> ImageInfo:
        try:
            with classify_io_errors(f"image {sample}"):
                content = self.read(sample)
        except OSError:
            return _NOTHING
        digest = hashlib.sha256(content).digest()
        try:
            with opened(content) as image:
                width, height = image.size if orientation_of(image) < 5 else image.size[::-1]
                return ImageInfo(image.format or "", width, height, len(content), digest)
        except BadImage:
            return ImageInfo("", 0, 0, len(content), digest)


_NOTHING = ImageInfo("", 0, 0, 0, b"")


def read_image_info(dataset: Dataset, *, workers: int, progress: bool = True) -> list[ImageInfo]:
    """The header of every image, and a digest of its file. Raises SystemIOError."""
    infos = each(_ReadImageInfo(dataset.read), range(len(dataset)), workers=workers, lost=_NOTHING)
    return list(tqdm(infos, total=len(dataset), desc="reading headers", unit="img", disable=not progress))


def image_lines(infos: Sequence[ImageInfo]) -> list[Line]:
    """What there is to say of images."""
    good = [info for info in infos if info.format]
    formats = Counter(info.format or "no image" for info in infos)
    lines = [("formats", _counts(formats.most_common(), len(infos)))]
    if good:
        sizes = Counter(f"{info.width} x {info.height}" for info in good)
        shorter = np.array([min(info.width, info.height) for info in good])
        aspect = np.array([info.width / info.height for info in good])
        below = [f"{(shorter < side).mean():.1%} below {side}" for side in _SIDES if (shorter < side).any()]
        lines += [
            ("width x height", _counts(sizes.most_common(_MOST_COMMON), len(good), len(sizes))),
            ("shorter side", f"{spread(shorter, 'px')}; {', '.join(below) or f'none below {_SIDES[-1]}'}"),
            ("width / height", spread(aspect, "", ".2f")),
            ("file size", spread(np.array([info.size for info in good]) / 1024, "KiB", ",.1f")),
        ]
    copies = Counter(info.digest for info in infos if info.digest)
    groups = [count for count in copies.values() if count > 1]
    twice = f"{sum(groups) - len(groups):,} images are copies of others, byte for byte" if groups else "none"
    return [*lines, ("duplicates", twice)]


def caption_lines(dataset: Dataset) -> list[Line]:
    """What there is to say of captions."""
    table = dataset.caption_table()
    of_each = np.diff(table.offsets)
    words = np.array([len(caption.split()) for caption in table.captions])
    shared = int((np.bincount(table.ids) > 1).sum())
    return [
        (
            "captions",
            f"{len(table.ids):,}, of which {len(table.captions):,} are different; {shared:,} of several images",
        ),
        ("captions per image", spread(of_each)),
        ("words per caption", spread(words)),
        ("characters", spread(np.array([len(caption) for caption in table.captions]))),
    ]


def spread(values: np.ndarray, unit: str = "", format: str = ",.0f") -> str:
    """The middle of some numbers, what nine tenths of them are within, and the smallest and largest."""
    if values.min() == values.max():
        return f"{values[0]:{format}}{unit and f' {unit}'}, all of them"
    low, first, middle, last, high = (f"{v:{format}}" for v in np.quantile(values, [0, 0.05, 0.5, 0.95, 1]))
    return f"median {middle}{unit and f' {unit}'}, 90% within {first} to {last}, all within {low} to {high}"


def _counts(counts: Iterable[tuple[str, int]], total: int, kinds: int = 0) -> str:
    told = list(counts)
    text = ", ".join(f"{name}: {count:,} ({count / total:.1%})" for name, count in told)
    return f"{text}, and {kinds - len(told):,} others" if kinds > len(told) else text
