"""COCO captions, of 2014 or 2017.

- `annotations/captions_train2014.json` and `captions_val2014.json`, or of 2017, each with an array `images` (`id`,
  `file_name`) and an array `annotations` (`image_id`, `caption`)
- images in `train2014/` and `val2014/`, or those in `images/`
The official validation images are held out; without them, a share of the training images is.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastt2i.data.captions import clean, parse_json
from fastt2i.data.dataset import NO_CAPTION, Dataset, Split
from fastt2i.data.sources.helpers.folder_files import FileReader, Files, first_folder, is_image, open_folder, walk
from fastt2i.data.split import heldout_by_share
from fastt2i.errors import UserError
from fastt2i.files.reading import leaves_folder, printable, read_file

LAYOUT = "annotations/captions_train2014.json (or 2017) and train2014/<image>.jpg or images/train2014/<image>.jpg"
_CAPTIONS = re.compile(r"captions_(train|val)(20\d\d)\.json")


def detect(path: str) -> bool:
    """Whether there is a folder `annotations` with captions."""
    return bool(_annotations(path))


def coco_dataset(path: str | Path, split: Split = "train", heldout: float = 0.05) -> Dataset:
    """Find the captioned images, in the order of their names.

    heldout: the share that is held out where the validation captions, or their images, are not there.
    Raises UserError: the layout is another, there are several years, or a file of captions is none.
    """
    root = open_folder(path)
    parts = _one_year(root, _annotations(str(path)))
    if "train" not in parts:
        raise UserError(f"{path} has no annotations/captions_train2014.json or 2017; the layout `coco` is {LAYOUT}")
    folders = {side: first_folder(root, _image_folders(name)) for side, name in parts.items()}
    files = walk(root, ["annotations", *filter(None, folders.values())])
    captions: dict[str, list[str]] = {}
    sides: dict[str, bool] = {}
    for side, name in parts.items():
        folder, where = folders[side], f"annotations/{name}"
        if folder is None:
            files.report(where, f"it is left out: there is no folder {' or '.join(_image_folders(name))}")
            continue
        found = _captions(files, where, folder)
        captions.update(found)
        sides.update(dict.fromkeys(found, side == "val"))
    for image in (image for image in files.images() if image not in captions):
        files.report(image, NO_CAPTION)
    names = sorted(captions)
    if not names or all(sides.values()):
        first = f": {files.problems[0].where}: {files.problems[0].what}" if files.problems else ""
        raise UserError(f"there is no image with a caption to train on in {path}{first}; the layout `coco` is {LAYOUT}")
    keys = [printable(name) for name in names]
    official = np.array([sides[name] for name in names])
    reader = FileReader.of(root, names)
    return Dataset(
        name=str(path),
        keys=keys,
        captions=[tuple(captions[name]) for name in names],
        read=reader,
        stamp=reader.stamp,
        problems=files.problems,
        heldout=official if official.any() else heldout_by_share(keys, heldout),
    ).split(split)


def _annotations(path: str) -> list[str]:
    """The names of the files of captions."""
    folder = os.path.join(path, "annotations")
    if not os.path.isdir(folder) or not os.access(folder, os.R_OK):
        return []
    return sorted(name for name in os.listdir(folder) if _CAPTIONS.fullmatch(name))


def _one_year(root: Path, names: list[str]) -> dict[str, str]:
    """The files of captions of one year, by `train` and `val`: of several years the one that has its images.

    Raises UserError: that is not one. The years share most of their images, so together they are no split.
    """
    years = sorted({name[-9:-5] for name in names})
    if len(years) > 1:
        years = [year for year in years if first_folder(root, _image_folders(f"captions_train{year}.json"))]
        if len(years) != 1:
            raise UserError(f"{root}/annotations has captions of several years: keep those of one ({', '.join(names)})")
    return {match[1]: match[0] for name in names if (match := _CAPTIONS.fullmatch(name)) and match[2] in years}


def _image_folders(name: str) -> list[str]:
    part = name.removeprefix("captions_").removesuffix(".json")
    return [part, f"images/{part}"]


def _captions(files: Files, where: str, folder: str) -> dict[str, list[str]]:
    """The captions of each image of a folder, by its path. Raises UserError: the file is none of captions."""
    tables = _tables(files, where)
    paths: dict[int, str] = {}
    for number, row in enumerate(tables["images"]):
        place = f"{where}: images[{number}]"
        image, name = (row.get("id"), row.get("file_name")) if isinstance(row, dict) else (None, None)
        if not isinstance(image, int) or not isinstance(name, str):
            files.report(place, "no `id` with a number, or no `file_name` with a string")
        elif leaves_folder(name):
            files.report(place, f"{printable(name)} leaves the folder")
        elif (path := posixpath.normpath(f"{folder}/{name}")) not in files.names or not is_image(path):
            files.report(place, f"there is no image {printable(path)}")
        elif paths.setdefault(image, path) != path:
            files.report(place, f"the id {image} is that of {printable(paths[image])} already")
    captions: dict[str, dict[str, None]] = {}
    known = {row.get("id") for row in tables["images"] if isinstance(row, dict) and isinstance(row.get("id"), int)}
    for number, row in enumerate(tables["annotations"]):
        place = f"{where}: annotations[{number}]"
        image, caption = (row.get("image_id"), row.get("caption")) if isinstance(row, dict) else (None, None)
        if not isinstance(image, int) or not isinstance(caption, str):
            files.report(place, "no `image_id` with a number, or no `caption` with a string")
        elif image not in known:
            files.report(place, f"there is no image of the id {image}")
        elif image in paths:  # the others have their problem from above
            captions.setdefault(paths[image], {}).update(dict.fromkeys(clean([caption])))
    return {path: list(own) for path, own in captions.items() if own}


def _tables(files: Files, where: str) -> Mapping[str, list[Any]]:
    source = files.root / where
    if where not in files.names:
        raise UserError(f"{source} is not a regular file of this folder")
    try:
        content = parse_json(read_file(source))
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{source} is {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(n), list) for n in ("images", "annotations")):
        raise UserError(f"{source} holds no captions: wanted are the arrays `images` and `annotations`")
    return content
