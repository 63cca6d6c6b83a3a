"""What the birds and the flowers have in common: images, a .txt of captions for each, and official lists of names.

The lists are those of AttnGAN and DF-GAN: `train/filenames.pickle` and `test/filenames.pickle` with the names of the
images, and `class_info.pickle` beside each with the classes in the same order. Where one of the two sides has a list,
what is not in it is on the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastt2i.data.dataset import NO_CAPTION, NO_CAPTION_IN_FILE, Dataset
from fastt2i.data.sources.helpers.folder_files import FileReader, Files
from fastt2i.data.sources.helpers.pickles import MAX_PICKLE, read_integers, read_strings
from fastt2i.data.split import heldout_by_share
from fastt2i.errors import UserError
from fastt2i.files.reading import printable

SIDES = ("train", "test")


@dataclass
class Lists:
    """The official lists: which names are held out, and which class each has. Either may be empty."""

    heldout: dict[str, bool] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)


def by_name(files: Files, folder: str, extensions: tuple[str, ...], name_of: Callable[[str], str]) -> dict[str, str]:
    """The files below a folder that end so, by name; of several the first, and a problem for each of the others."""
    found: dict[str, str] = {}
    for path in files.below(folder):
        if path.lower().endswith(extensions):
            taken = found.setdefault(name_of(path), f"{folder}/{path}")
            if taken != f"{folder}/{path}":
                files.report(f"{folder}/{path}", f"it goes by the same name as {taken}, which is taken")
    return found


def read_lists(files: Files, folder: str, name_of: Callable[[str], str], known: Mapping[str, str]) -> Lists:
    """The lists in `folder`, of names as `name_of` makes them, for the known ones.

    Raises UserError: a list is no list of names or numbers, or asks for more than that.
    """
    lists = Lists()
    read = []
    for side in SIDES:
        where = f"{folder}{side}/filenames.pickle"
        if where not in files.names:
            continue
        read.append(side)
        names = [name_of(name) for name in read_strings(files.read(where, MAX_PICKLE + 1), str(files.root / where))]
        for name in names:
            if name not in known:
                files.report(f"{where}: {name}", "there is no image, or no captions, of this name")
            elif lists.heldout.setdefault(name, side == "test") != (side == "test"):
                files.report(f"{where}: {name}", "it is in both lists; it is trained on")
        _read_classes(files, f"{folder}{side}/class_info.pickle", names, lists)
    if len(read) == 1:
        for name in known:
            lists.heldout.setdefault(name, read[0] == "train")
    return lists


def _read_classes(files: Files, where: str, names: list[str], lists: Lists) -> None:
    if where not in files.names:
        return
    classes = read_integers(files.read(where, MAX_PICKLE + 1), str(files.root / where))
    if len(classes) == len(names):
        lists.classes.update(zip(names, classes, strict=True))
    else:
        files.report(where, f"it has {len(classes)} classes for the {len(names)} names beside it, and is not used")


def paired_dataset(
    files: Files,
    images: Mapping[str, str],
    texts: Mapping[str, str],
    lists: Lists,
    *,
    class_folders: Mapping[str, str] | None = None,
    boxes: Mapping[str, tuple[int, int, int, int]] | None = None,
    share: float,
    home: str = "",
) -> Dataset:
    """The samples with an image and captions, sorted by name.

    images, texts: files by name. class_folders: the folder that names a sample's class, for sets whose lists do not
    tell all classes. boxes: left, top, right and bottom; an image without one is used whole. share: what is held out
    where there are no lists. home: the folder in which the set lies, `birds/`, which decides no side.
    Raises UserError: there is no image with a caption.
    """
    captions = {}
    for name in sorted(images):
        if lists.heldout and name not in lists.heldout and name in texts:
            files.report(images[name], "it is in neither of the official lists")
        elif name not in texts:
            files.report(images[name], f"{NO_CAPTION} file")
        elif own := files.captions(texts[name]).lines:
            captions[name] = tuple(own)
        else:
            files.report(texts[name], NO_CAPTION_IN_FILE)
    for name in sorted(texts.keys() - images.keys()):
        files.report(texts[name], "a caption file without an image")
    names = list(captions)
    if not names:
        first = f": {files.problems[0].where}: {files.problems[0].what}" if files.problems else ""
        raise UserError(f"none of the {len(images)} images in {files.root} has a caption{first}")
    keys = [printable(images[name]) for name in names]
    heldout = (
        np.array([lists.heldout[name] for name in names])
        if lists.heldout
        else heldout_by_share([key.removeprefix(home) for key in keys], share)
    )
    if heldout.all():
        raise UserError(f"every image in {files.root} is in the test list; there is nothing to train on")
    reader = FileReader.of(files.root, [images[name] for name in names])
    return Dataset(
        name=str(files.root),
        keys=keys,
        captions=[captions[name] for name in names],
        read=reader,
        stamp=reader.stamp,
        problems=files.problems,
        classes=_classes(names, lists.classes, class_folders),
        crops=_crops(names, boxes) if boxes else None,
        heldout=heldout,
    )


def _classes(
    names: list[str], listed: Mapping[str, int], folders: Mapping[str, str] | None
) -> NDArray[np.int64] | None:
    if all(name in listed for name in names):
        return np.array([listed[name] for name in names], dtype=np.int64)
    if folders and all(name in folders for name in names):
        return np.unique([folders[name] for name in names], return_inverse=True)[1].astype(np.int64)
    return None


def _crops(names: list[str], boxes: Mapping[str, tuple[int, int, int, int]]) -> NDArray[np.int64]:
    whole = (0, 0, 2**31, 2**31)
    return np.array([boxes.get(name, whole) for name in names], dtype=np.int64)
