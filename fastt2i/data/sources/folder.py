"""A folder of images, with captions in a .txt beside each or in metadata files.

- `cat.jpg` has the captions of `cat.txt` (or `cat.caption`, `cat.jpg.txt`), one a line; where a `cat.json` beside it
  has the whole as one caption, as img2dataset writes it, it is one.
- `metadata.jsonl` (a JSON object a line) and `metadata.csv` (a header line) name an image in `file_name`, relative to
  the metadata file, and its caption in `text`, `caption`, `captions` or `prompt`, or in the column that the setting
  names; in jsonl that may be a list. Several lines may name one image.
- An image with both has all their captions. Folders may be nested; hidden ones (.git) and hidden images are skipped.
- Where there is a folder `train` and beside it `test` or `validation`, that is the split.
- Captions are UTF-8 or UTF-16; what is neither is told, read as Windows-1252 where that is sure, and else not used.
  White space is collapsed;
  what goes beyond 2,000 characters, and in a .txt beyond 256 KiB, is cut off. Empty captions do not count.
- Links that leave the folder, and links to folders, are not followed.
Whatever cannot be used becomes a `Problem` of the dataset, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastt2i.data.captions import (
    MAX_CAPTION_FILE,
    TEXT_COLUMNS,
    clean,
    decode_text,
    encoding_problem,
    field_captions,
    parse_json,
    text_columns,
)
from fastt2i.data.dataset import NO_CAPTION, Dataset, Problem, Split
from fastt2i.data.sources.helpers.folder_files import (
    IMAGE_EXTENSIONS,
    FileReader,
    Files,
    is_image,
    is_unread_image,
    listed,
    open_folder,
    walk,
)
from fastt2i.data.split import heldout_by_share, heldout_by_word
from fastt2i.data.verify_report import is_report
from fastt2i.errors import UserError
from fastt2i.files.reading import composed, leaves_folder, printable

CAPTION_EXTENSIONS = (".txt", ".caption")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
LAYOUT = "a .txt with a caption a line beside each image, or a metadata.jsonl or metadata.csv with file_name and text"


def detect(path: str) -> bool:
    """Whether `path` is a folder with captions right in it; others may have theirs further below."""
    if not os.path.isdir(path) or not os.access(path, os.R_OK):
        return False
    names = os.listdir(path)
    stems = {os.path.splitext(name)[0] for name in names if name.lower().endswith(".txt")}
    return any(
        name.lower() in METADATA_NAMES or (is_image(name) and os.path.splitext(name)[0] in stems) for name in names
    )


def folder_dataset(path: str | Path, split: Split = "train", heldout: float = 0.05, text_column: str = "") -> Dataset:
    """Find the captioned images of a folder, in the order of their names.

    heldout: the share of samples that `split="heldout"` gives and `train` does not, where no folders `train` and `test`
    tell; which ones they are depends on their names alone, so that a sample stays on its side when others join. `train`
    is never left empty. text_column: where metadata has the captions.
    Raises UserError: no folder there, it cannot be read, it has no images, or none with a caption.
    """
    root = open_folder(path)
    files = walk(root, matters=_matters)
    captions = _captions(files, text_columns(text_column))
    images = sorted(set(files.images()) | set(captions))
    usable = [image for image in images if captions.get(image)]
    files.problems += [Problem(printable(image), NO_CAPTION) for image in images if not captions.get(image)]
    if not usable:
        raise UserError(_nothing_usable(path, len(images), files.problems))
    keys = [printable(image) for image in usable]
    by_word = heldout_by_word(image.split("/")[0] if "/" in image else "" for image in usable)
    reader = FileReader.of(root, usable)
    return Dataset(
        name=str(path),
        keys=keys,
        captions=[tuple(captions[image]) for image in usable],
        read=reader,
        stamp=reader.stamp,
        problems=files.problems,
        heldout=heldout_by_share(keys, heldout) if by_word is None else by_word,
    ).split(split)


def _captions(files: Files, columns: tuple[str, ...]) -> dict[str, list[str]]:
    """The captions of each image that has any; no caption twice."""
    captions: dict[str, dict[str, None]] = {}
    images: dict[str, list[str]] = {}
    for image in files.images():
        for stem in (posixpath.splitext(image)[0], image):  # the latter for `a.jpg.txt`
            images.setdefault(stem, []).append(image)
    alike = {composed(stem): own for stem, own in images.items()}
    names = {composed(name): name for name in files.names}
    for name in files.names:
        folder, base = posixpath.split(name)
        stem, extension = posixpath.splitext(name)
        if base.startswith("."):
            continue
        if base.lower() in METADATA_NAMES:
            rows = _jsonl if extension.lower() == ".jsonl" else _csv
            for line, image, texts in rows(files, name, columns):
                target = _target(image, folder, files, names)
                if problem := _unusable_name(image, target, files):
                    files.report(f"{name}:{line}", problem)
                    continue
                if problem := encoding_problem(texts):
                    files.report(f"{name}:{line}", problem)
                captions.setdefault(target, {}).update(dict.fromkeys(clean(texts)))
        elif extension.lower() in CAPTION_EXTENSIONS:
            beside = images.get(stem) or alike.get(composed(stem))
            if not beside:
                files.report(name, "a caption file without an image beside it")
                continue
            own = _text_captions(files, name, stem)
            for image in beside:
                captions.setdefault(image, {}).update(dict.fromkeys(own))
        elif _is_near_miss(base) and not is_report(files.read(name, 16)):  # `verify` may have put one here
            files.report(name, f"not read: captions in a table are read from {' or '.join(METADATA_NAMES)}")
        elif is_unread_image(name):
            files.report(name, f"not read: images are {', '.join(IMAGE_EXTENSIONS)}")
    return {image: list(texts) for image, texts in captions.items()}


def _text_captions(files: Files, name: str, stem: str) -> list[str]:
    """The captions of a .txt file: its lines, or all of it where a .json beside it has that as one caption."""
    found = files.captions(name)
    if len(found.lines) > 1 and f"{stem}.json" in files.names:
        with contextlib.suppress(ValueError):
            row = parse_json(files.read(f"{stem}.json", MAX_CAPTION_FILE))
            if isinstance(row, dict):
                return found.beside(list(clean(field_captions(row, TEXT_COLUMNS) or ())))
    return found.lines


def _is_near_miss(base: str) -> bool:
    """Whether a file's name is nearly that of a metadata file: `metadata.json`, `captions.jsonl`."""
    stem, extension = posixpath.splitext(base.lower())
    return extension in (".jsonl", ".csv") or (stem == "metadata" and extension.startswith((".json", ".csv", ".tsv")))


def _target(image: str, folder: str, files: Files, composed_names: dict[str, str]) -> str:
    """The file that a metadata file in `folder` names: relative to it, or where only so there is one, to the whole
    folder, with backslashes as Windows has them, as an absolute path, or with accents composed differently.

    composed_names: the names of the files by `composed`.
    """
    target = posixpath.normpath(posixpath.join(folder, image))
    root = os.path.abspath(files.root)
    for name in (image, image.replace("\\", "/")):
        below = name[len(root) + 1 :] if name.startswith(f"{root}/") else name
        for candidate in (posixpath.join(folder, below), below):
            if (candidate := posixpath.normpath(candidate)) in files.names:
                return candidate
            if (other := composed_names.get(composed(candidate))) is not None:
                return other
    return target


def _jsonl(files: Files, name: str, columns: tuple[str, ...]) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, file name and texts of each good line; the others become problems."""
    for number, line in enumerate(decode_text(files.read(name)).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            files.report(where, str(error))
            continue
        if not isinstance(row, dict):
            files.report(where, f"not a JSON object but {type(row).__name__}")
            continue
        image, texts = row.get("file_name"), field_captions(row, columns)
        if not isinstance(image, str):
            files.report(where, f"no `file_name` with a string; it has {listed(row)}")
        elif texts is None:
            files.report(where, f"no {_any(columns)} with a string or a list of strings; it has {listed(row)}")
        else:
            yield number, image, texts


def _csv(files: Files, name: str, columns: tuple[str, ...]) -> Iterator[tuple[int, str, list[str]]]:
    """As `_jsonl`."""
    # Strict, or a quote that is not closed would make one caption of all rows up to the next quote.
    rows = csv.reader(io.StringIO(decode_text(files.read(name)), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            files.report(f"{name}:{rows.line_num}", f"not CSV: {error}")
            continue
        if not row:
            continue
        if header is None:
            header = [column.strip() for column in row]
            if "file_name" not in header or not set(columns) & set(header):
                wanted = f"file_name and {_any(columns)}"
                files.report(name, f"its first line must name the columns {wanted}; it has {listed(header)}")
                return
            continue
        if len(row) != len(header):
            files.report(f"{name}:{rows.line_num}", f"{len(row)} fields where the header has {len(header)}")
            continue
        fields = dict(zip(reversed(header), reversed(row), strict=True))  # of two columns of one name the first counts
        yield rows.line_num, fields["file_name"], field_captions(fields, columns) or []


def _unusable_name(image: str, target: str, files: Files) -> str | None:
    """Why a metadata file may not name this image; None where it may. `files` holds no link that leaves the folder."""
    if target in files.names:
        return None if is_image(target) else f"{printable(image)} is none of {', '.join(IMAGE_EXTENSIONS)}"
    if leaves_folder(target):
        return f"{printable(image)} leaves the folder"
    return f"there is no file {printable(image)}"


def _nothing_usable(path: str | Path, images: int, problems: list[Problem]) -> str:
    if not images:
        looked = f"looked for {', '.join(IMAGE_EXTENSIONS)} in it and the folders below"
        if links := [problem for problem in problems if problem.what.startswith("a link")]:
            looked += (
                f"; it has {len(links)} links ({links[0].where}: {links[0].what}), which are not followed out of it: "
                f"`cp -rL {path} COPY` makes a copy that has the files themselves"
            )
        elif problems:
            looked += f" ({problems[0].where}: {problems[0].what})"
        return f"the folder {path} holds no images: {looked}"
    first = next((p for p in problems if p.what != NO_CAPTION), problems[0])
    return f"none of the {images} images in {path} has a caption ({first.where}: {first.what}); wanted is {LAYOUT}"


def _any(columns: Sequence[str]) -> str:
    """`text`, or one of several."""
    return f"`{columns[0]}`" + (f" (or {', '.join(columns[1:])})" if columns[1:] else "")


def _matters(name: str) -> bool:
    return is_image(name) or name.lower().endswith((*CAPTION_EXTENSIONS, *METADATA_NAMES))
