"""CUB-200-2011, the birds, as AttnGAN and DF-GAN keep them.

- `CUB_200_2011/images/<class>/<image>.jpg`, with `images.txt` (number, name) and `bounding_boxes.txt` (number, left,
  top, width, height) in `CUB_200_2011`
- `text/<class>/<image>.txt` with ten captions, one a line; `text_c10` is taken too
- `train/filenames.pickle` and `test/filenames.pickle`, the split by classes that these papers use, and
  `class_info.pickle` beside each; without them `CUB_200_2011/train_test_split.txt` (number, 1 for training)
The folder given is the one that holds these (`birds`), or the one above it. Images are cut to a square around the box,
one and a half times its longer side, as far as they reach. The class of an image is that of `class_info.pickle`, or its
folder.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastt2i.data.captions import decode_text
from fastt2i.data.dataset import Dataset, Split
from fastt2i.data.sources.helpers.folder_files import IMAGE_EXTENSIONS, Files, first_folder, open_folder, walk
from fastt2i.data.sources.helpers.paired import SIDES, by_name, paired_dataset, read_lists
from fastt2i.errors import UserError

LAYOUT = "CUB_200_2011/images/<class>/<image>.jpg and text/<class>/<image>.txt"
_HOMES = ("", "birds/")
_TEXTS = ("text", "text_c10", "CUB_200_2011/text", "CUB_200_2011/text_c10")


def detect(path: str) -> bool:
    """Whether there is a folder of the birds' images."""
    return os.path.isdir(path) and first_folder(path, [f"{home}CUB_200_2011/images" for home in _HOMES]) is not None


def cub_dataset(path: str | Path, split: Split = "train", heldout: float = 0.05) -> Dataset:
    """Find the birds, in the order of their names.

    heldout: the share that is held out where there is no official split.
    Raises UserError: the layout is another, a pickle is refused, or no image has captions.
    """
    root = open_folder(path)
    images = first_folder(root, [f"{home}CUB_200_2011/images" for home in _HOMES])
    texts = first_folder(root, [f"{home}{folder}" for home in _HOMES for folder in _TEXTS])
    if not images or not texts:
        missing = "folder CUB_200_2011/images" if not images else f"folder of captions ({', '.join(_TEXTS)})"
        raise UserError(f"{path} has no {missing}, in it or in birds/; the layout `cub` is {LAYOUT}")
    home = images.removesuffix("CUB_200_2011/images")
    sides = [f"{place}{side}" for place in _HOMES for side in SIDES]
    sides = [side for side in sides if os.path.isfile(root / side / "filenames.pickle")]
    files = walk(root, [images, texts, *filter(None, (first_folder(root, [side]) for side in sides))])
    _add_tables(files, posixpath.dirname(images))
    image_of = by_name(files, images, IMAGE_EXTENSIONS, _stem)
    text_of = by_name(files, texts, (".txt",), _stem)
    known = {name: image_of[name] for name in image_of.keys() & text_of.keys()}
    official = read_lists(files, posixpath.join(posixpath.dirname(sides[0]), "") if sides else "", _stem, known)
    numbers = {row[0]: _stem(row[1]) for row in _table(files, f"{home}CUB_200_2011/images.txt", 2)}
    if not official.heldout:
        side_of = {row[0]: row[1] for row in _table(files, f"{home}CUB_200_2011/train_test_split.txt", 2)}
        official.heldout = {numbers[n]: side == "0" for n, side in side_of.items() if n in numbers}
    return paired_dataset(
        files,
        image_of,
        text_of,
        official,
        class_folders={name: posixpath.dirname(name) for name in known},
        boxes=_boxes(files, f"{home}CUB_200_2011/bounding_boxes.txt", numbers, known),
        share=heldout,
        home=home,
    ).split(split)


def _stem(name: str) -> str:
    """`<class>/<image>`. Names in lists may come without an extension, and classes have a dot: `001.Albatross`."""
    stem, extension = posixpath.splitext(name)
    return stem if extension.lower() in (*IMAGE_EXTENSIONS, ".txt") else name


def _add_tables(files: Files, folder: str) -> None:
    """Enter the regular files right in a folder, among them the tables."""
    with os.scandir(files.root / folder) as entries:
        files.names.update({f"{folder}/{e.name}": None for e in entries if e.is_file(follow_symlinks=False)})


def _table(files: Files, name: str, columns: int) -> Iterator[list[str]]:
    """The rows of a table of words; a problem for each that has another number of them. None where it is not there."""
    if name not in files.names:
        return
    for number, line in enumerate(decode_text(files.read(name)).split("\n"), 1):
        row = line.split()
        if len(row) == columns:
            yield row
        elif row:
            files.report(f"{name}:{number}", f"{len(row)} words where there should be {columns}")


def _boxes(
    files: Files, where: str, numbers: Mapping[str, str], known: Mapping[str, str]
) -> dict[str, tuple[int, int, int, int]]:
    """The part to use of each image, by name; a problem for each known image that has none."""
    if where not in files.names:
        files.report(where, "it is not there, so no image is cut to its box")
        return {}
    boxes = {}
    for number, *box in _table(files, where, 5):
        try:
            boxes[numbers[number]] = _square(*map(float, box))
        except (KeyError, ValueError):
            files.report(where, f"not the box of an image in images.txt: {number} {' '.join(box)}")
    for name in sorted(known.keys() - boxes.keys()):
        files.report(known[name], "it has no box in bounding_boxes.txt, and is used whole")
    return boxes


def _square(left: float, top: float, width: float, height: float) -> tuple[int, int, int, int]:
    """The part of the image that AttnGAN uses: 3/4 of the box's longer side in each direction from its centre."""
    if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
        raise ValueError("not a box")
    left, top, width, height = int(left), int(top), int(width), int(height)
    reach = int(max(width, height) * 0.75)
    x, y = int((2 * left + width) / 2), int((2 * top + height) / 2)
    return x - reach, y - reach, x + reach, y + reach
