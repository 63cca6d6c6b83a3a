"""The formats of datasets: name, detection and reader of each. A new format is an entry here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fastt2i.config import DataFormat
from fastt2i.data.dataset import Dataset
from fastt2i.data.sources import coco, cub, flowers, folder, parquet, shapes, webdataset
from fastt2i.errors import UserError


class Options(NamedTuple):
    """What a source may need to know besides the path; see `open_dataset`."""

    image_size: int
    heldout: float
    text_column: str


@dataclass(frozen=True)
class Format:
    """How datasets of one format are detected and opened."""

    looks_like: str
    """What `detect` looks for, in words, for messages."""
    detect: Callable[[str], bool]
    """Whether a path looks like this layout. It looks at names alone and never raises."""
    open: Callable[[str, Options], Dataset]
    """The whole set, with what is held out of it. Raises UserError where there is nothing to train on."""
    has_columns: bool = False
    """Whether captions are in columns or fields, of which the setting `data.text_column` names one."""


def _shapes(path: str, options: Options) -> Dataset:
    if not shapes.detect(path):
        raise UserError(f"the data format is `shapes` but the path is {path!r}: leave the format out to read a folder")
    return shapes.shapes_dataset(options.image_size, "all")


FORMATS: Mapping[DataFormat, Format] = {
    "shapes": Format("the word `shapes`", shapes.detect, _shapes),
    "folder": Format(
        folder.LAYOUT, folder.detect, lambda path, o: folder.folder_dataset(path, "all", o.heldout, o.text_column), True
    ),
    "cub": Format(cub.LAYOUT, cub.detect, lambda path, o: cub.cub_dataset(path, "all", o.heldout)),
    "coco": Format(coco.LAYOUT, coco.detect, lambda path, o: coco.coco_dataset(path, "all", o.heldout)),
    "flowers": Format(flowers.LAYOUT, flowers.detect, lambda path, o: flowers.flowers_dataset(path, "all", o.heldout)),
    "parquet": Format(
        parquet.LAYOUT,
        parquet.detect,
        lambda path, o: parquet.parquet_dataset(path, "all", o.heldout, o.text_column),
        True,
    ),
    "webdataset": Format(
        webdataset.LAYOUT,
        webdataset.detect,
        lambda path, o: webdataset.tar_dataset(path, "all", o.heldout, o.text_column),
        True,
    ),
}


def detect_format(path: str) -> DataFormat:
    """The format of what `path` names. Raises UserError: it looks like several."""
    if shapes.detect(path):
        return "shapes"
    found = [name for name, source in FORMATS.items() if source.detect(path)]
    if len(found) > 1:
        seen = "; ".join(f"`{name}`: {FORMATS[name].looks_like}" for name in found)
        raise UserError(f"{path} looks like several layouts ({seen}): say which it is with --data.format")
    if found:
        return found[0]
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError(f"{path} is a file that no source reads: give a folder, .tar or .parquet shards, or `shapes`")
    return "folder"
