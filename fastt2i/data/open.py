"""From a path to the data set that it names."""

from __future__ import annotations

import os

from fastt2i.config import DataFormat
from fastt2i.data.dataset import FEWEST_IMAGES, NO_CAPTION, NO_CAPTION_IN_FILE, Dataset, Split
from fastt2i.data.sources.registry import FORMATS, Options, detect_format
from fastt2i.data.verify_report import without_bad_images
from fastt2i.errors import UserError


def open_dataset(
    path: str,
    format: DataFormat = "auto",
    *,
    image_size: int,
    split: Split = "train",
    heldout: float = 0.05,
    text_column: str = "",
    leave_out: str = "",
    max_bad_fraction: float = 1.0,
) -> Dataset:
    """Find the samples that `path` names.

    format: `auto` takes the one layout that `path` looks like (see `fastt2i.data.sources.registry`), and a folder that
    looks like none for a folder of images and captions. The word `shapes` is the embedded set; a folder of that very
    name is `./shapes`, or `shapes` with the format `folder`. image_size: pixels, for sets that are drawn. split:
    `heldout` is what training never sees; it may be empty. heldout: its share, 0 to 1, of the samples of a set that has
    no split of its own. text_column: the column or field that holds the captions; empty looks for usual names.
    leave_out: a report of `verify`, whose bad images are left out; empty for none.
    max_bad_fraction: how many of all images (of 20, where there are fewer) may have no caption.
    Raises UserError where there is nothing to train on, more images have no caption, or the report is none.
    """
    name = detect_format(path) if format == "auto" else format
    source = FORMATS[name]
    if text_column and not source.has_columns:
        raise UserError(f"{path} is read as `{name}`, where captions are in no column: leave data.text_column empty")
    try:
        dataset = source.open(path, Options(image_size, heldout, text_column))
    except UserError as error:
        if format == "auto" and os.path.isdir(path) and not source.detect(path):
            *others, last = (f"`{other}`" for other in FORMATS if other not in ("shapes", name))
            raise UserError(f"{error}; nor is it laid out as {', '.join(others)} or {last}") from error
        raise
    _refuse_missing_captions(dataset, max_bad_fraction)
    if leave_out:
        dataset = without_bad_images(dataset, leave_out)
    return dataset.split(split)


def _refuse_missing_captions(dataset: Dataset, max_fraction: float) -> None:
    """Raise UserError where too many images have no caption."""
    missing = [problem for problem in dataset.problems if problem.what.startswith((NO_CAPTION, NO_CAPTION_IN_FILE))]
    total = len(dataset) + len(missing)
    if len(missing) > max_fraction * max(total, FEWEST_IMAGES):
        raise UserError(
            f"{len(missing)} of {total} images of {dataset.name} have no caption, more than the fraction "
            f"{max_fraction:g} that data.max_bad_fraction allows; the first is {missing[0].where}"
        )
