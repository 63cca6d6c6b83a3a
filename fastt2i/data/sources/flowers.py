"""Oxford-102, the flowers, as DF-GAN and StackGAN keep them.

- `oxford-102-flowers/images/<image>.jpg` (DF-GAN) or `jpg/<image>.jpg` (as the set comes)
- `text/<image>.txt`, or `text_c10/class_00001/<image>.txt`, with ten captions, one a line
- `train/filenames.pickle` and `test/filenames.pickle`, and `class_info.pickle` beside each
An image goes by the last part of its name, `image_00001`, wherever it is named. Its class is that of
`class_info.pickle`, or the folder of its captions.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from fastt2i.data.dataset import Dataset, Split
from fastt2i.data.sources.helpers.folder_files import IMAGE_EXTENSIONS, first_folder, open_folder, walk
from fastt2i.data.sources.helpers.paired import SIDES, by_name, paired_dataset, read_lists
from fastt2i.errors import UserError

LAYOUT = "jpg/<image>.jpg or oxford-102-flowers/images/<image>.jpg, and text/<image>.txt"
_IMAGES = ("oxford-102-flowers/images", "oxford-102-flowers/jpg", "102flowers/jpg", "jpg")
_TEXTS = ("text", "text_c10")


def detect(path: str) -> bool:
    """Whether there are a folder of the flowers' images and one of captions."""
    return os.path.isdir(path) and bool(first_folder(path, _IMAGES) and first_folder(path, _TEXTS))


def flowers_dataset(path: str | Path, split: Split = "train", heldout: float = 0.05) -> Dataset:
    """Find the flowers, in the order of their names.

    heldout: the share that is held out where there are no official lists.
    Raises UserError: the layout is another, a pickle is refused, or no image has captions.
    """
    root = open_folder(path)
    images, texts = first_folder(root, _IMAGES), first_folder(root, _TEXTS)
    if not images or not texts:
        kind, places = ("images", _IMAGES) if not images else ("captions", _TEXTS)
        raise UserError(f"{path} has no folder of {kind} ({', '.join(places)}); the layout `flowers` is {LAYOUT}")
    files = walk(root, [images, texts, *(side for side in SIDES if first_folder(root, [side]))])
    image_of = by_name(files, images, IMAGE_EXTENSIONS, _last_part)
    text_of = by_name(files, texts, (".txt",), _last_part)
    known = {name: image_of[name] for name in image_of.keys() & text_of.keys()}
    folders = {name: posixpath.dirname(text) for name, text in text_of.items() if posixpath.dirname(text) != texts}
    return paired_dataset(
        files, image_of, text_of, read_lists(files, "", _last_part, known), class_folders=folders, share=heldout
    ).split(split)


def _last_part(name: str) -> str:
    stem, extension = posixpath.splitext(posixpath.basename(name))
    return stem if extension.lower() in (*IMAGE_EXTENSIONS, ".txt") else stem + extension
