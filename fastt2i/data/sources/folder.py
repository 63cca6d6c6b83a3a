"""A folder of images, with captions in a .txt beside each or in metadata files.

- `cat.jpg` has the captions of `cat.txt`, one a line.
- `metadata.jsonl` (a JSON object a line) and `metadata.csv` (a header line) name an image in `file_name`, relative to
  the metadata file, and its caption in `text`; in jsonl that may be a list. Several lines may name one image.
- An image with both has all their captions. Folders may be nested; hidden ones (.git) and hidden images are skipped.
- Captions are UTF-8 (a byte that is not becomes U+FFFD) or UTF-16 with a byte order mark; white space is collapsed;
  what goes beyond 2,000 characters, and in a .txt beyond 256 KiB, is cut off. Empty captions do not count.
- Links that leave the folder, and links to folders, are not followed.
Whatever cannot be used becomes a `Problem` of the index, and the rest goes on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastt2i.data.index import Index, Problem, Split
from fastt2i.errors import UserError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
MAX_CAPTION = 2000  # characters
MAX_CAPTION_FILE = 2**18  # bytes
MAX_IMAGE_FILE = 2**28  # bytes


def folder_index(path: str | Path, split: Split = "train", heldout: float = 0.05) -> Index:
    """Find the captioned images of a folder, in the order of their names.

    heldout: the share of samples that `split="heldout"` gives and `train` does not; which ones they are depends on
    their names alone, so that a sample stays on its side when others join. `train` is never left empty.
    Raises UserError: no folder there, it cannot be read, it has no images, or none with a caption.
    """
    root = Path(path)
    if not os.path.isdir(root):
        raise UserError(f"{path} is not a folder" if os.path.lexists(root) else f"there is no folder {path}")
    try:
        os.scandir(root).close()
    except OSError as error:
        raise UserError(f"the folder {path} cannot be read: {error.strerror}") from error
    files = _walk(root)
    captions = _captions(files)
    images = sorted(set(files.images()) | set(captions))
    usable = [image for image in images if captions.get(image)]
    missing = [Problem(_printable(image), "an image without a caption") for image in images if not captions.get(image)]
    files.problems += missing
    if not usable:
        raise UserError(_nothing_usable(path, len(images), files.problems))
    chosen = _side(usable, split, heldout)
    return Index(
        name=str(path),
        keys=[_printable(image) for image in chosen],
        captions=[tuple(captions[image]) for image in chosen],
        read=_Reader(str(root.absolute()), tuple(chosen)),
        problems=files.problems,
    )


@dataclass(frozen=True)
class _Reader:
    root: str
    images: tuple[str, ...]

    def __call__(self, sample: int) -> bytes:
        with open(os.path.join(self.root, self.images[sample]), "rb") as file:
            content = file.read(MAX_IMAGE_FILE + 1)
        if len(content) > MAX_IMAGE_FILE:
            raise OSError(f"the file is larger than {MAX_IMAGE_FILE >> 20} MiB")
        return content


@dataclass
class _Files:
    """The regular files below a folder, as paths relative to it, `/` between the parts, sorted."""

    root: Path
    names: dict[str, None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def images(self) -> Iterator[str]:
        return (name for name in self.names if _is_image(name) and not posixpath.basename(name).startswith("."))

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The content of a file, or of its beginning; empty and a problem where it cannot be read."""
        try:
            with open(self.root / name, "rb") as file:
                return file.read(limit)
        except OSError as error:
            self.report(name, f"cannot be read: {error.strerror}")
            return b""

    def report(self, where: str, what: str) -> None:
        self.problems.append(Problem(_printable(where), what))


def _walk(root: Path) -> _Files:
    """List what is below a folder, without leaving it."""
    files = _Files(root)
    real_root = os.path.realpath(root)
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            files.report(folder, f"cannot be read: {error.strerror}")
            continue
        below = []
        for entry in found:
            name = posixpath.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith("."):
                    below.append(name)
            elif problem := _unusable(entry, real_root):
                if entry.is_symlink() or _matters(name):
                    files.report(name, problem)
            else:
                files.names[name] = None
        folders += reversed(below)
    return files


def _unusable(entry: os.DirEntry[str], real_root: str) -> str | None:
    """Why something that is no folder may not be read; None where it may."""
    if entry.is_file(follow_symlinks=False):
        return None
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return (
            f"a link that leads nowhere: {error.strerror}"
            if entry.is_symlink()
            else f"cannot be read: {error.strerror}"
        )
    if entry.is_symlink():
        if stat.S_ISDIR(mode):
            return "a link to a folder; such are not followed"
        if not os.path.realpath(entry.path).startswith(os.path.join(real_root, "")):
            return "a link that leaves the folder"
    return None if stat.S_ISREG(mode) else "not a regular file"


def _captions(files: _Files) -> dict[str, list[str]]:
    """The captions of each image that has any; no caption twice."""
    captions: dict[str, dict[str, None]] = {}
    images: dict[str, list[str]] = {}
    for image in files.images():
        images.setdefault(posixpath.splitext(image)[0], []).append(image)
    for name in files.names:
        folder, base = posixpath.split(name)
        stem, extension = posixpath.splitext(name)
        if base.startswith("."):
            continue
        if base.lower() in METADATA_NAMES:
            lines = _jsonl(files, name) if extension.lower() == ".jsonl" else _csv(files, name)
            for line, image, texts in lines:
                target = posixpath.normpath(posixpath.join(folder, image))
                if problem := _unusable_name(image, target, files):
                    files.report(f"{name}:{line}", problem)
                else:
                    captions.setdefault(target, {}).update(dict.fromkeys(_clean(texts)))
        elif extension.lower() == ".txt":
            if stem not in images:
                files.report(name, "a caption file without an image beside it")
                continue
            texts = _decode(files.read(name, MAX_CAPTION_FILE)).split("\n")
            for image in images[stem]:
                captions.setdefault(image, {}).update(dict.fromkeys(_clean(texts)))
    return {image: list(texts) for image, texts in captions.items()}


def _jsonl(files: _Files, name: str) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, file name and texts of each good line; the others become problems."""
    for number, line in enumerate(_decode(files.read(name)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            files.report(f"{name}:{number}", f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            files.report(f"{name}:{number}", f"not a JSON object but {type(row).__name__}")
            continue
        image, texts = row.get("file_name"), row.get("text")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(image, str):
            files.report(f"{name}:{number}", f"no `file_name` with a string; it has {_listed(row)}")
        elif not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            files.report(f"{name}:{number}", f"no `text` with a string or a list of strings; it has {_listed(row)}")
        else:
            yield number, image, texts


def _csv(files: _Files, name: str) -> Iterator[tuple[int, str, list[str]]]:
    """As `_jsonl`."""
    content = files.read(name)
    rows = csv.reader(io.StringIO(_decode(content), newline=""))
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
            header = [name.strip() for name in row]
            if not {"file_name", "text"} <= set(header):
                files.report(name, f"its first line must name the columns file_name and text; it has {_listed(header)}")
                return
            continue
        if len(row) != len(header):
            files.report(f"{name}:{rows.line_num}", f"{len(row)} fields where the header has {len(header)}")
            continue
        yield rows.line_num, row[header.index("file_name")], [row[header.index("text")]]


def _unusable_name(image: str, target: str, files: _Files) -> str | None:
    """Why a metadata file may not name this image; None where it may. `files` holds no link that leaves the folder."""
    if target in files.names:
        return None if _is_image(target) else f"{_printable(image)} is none of {', '.join(IMAGE_EXTENSIONS)}"
    if posixpath.isabs(image) or target.startswith("../"):
        return f"{_printable(image)} leaves the folder"
    return f"there is no file {_printable(image)}"


def _decode(content: bytes) -> str:
    """Text of a file with or without a byte order mark, its line ends made `\\n`."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", "replace")
    else:
        text = content.decode("utf-8-sig", "surrogateescape")  # as the names of files, which a line may hold
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _clean(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        # Lone surrogates stand for bytes that are not UTF-8, or come from JSON escapes; no tokenizer takes them.
        text = re.sub("[\ud800-\udfff]", "\ufffd", text[: 2 * MAX_CAPTION]).replace("\0", " ")
        text = " ".join(text.split())[:MAX_CAPTION].rstrip()
        if text:
            yield text


def _side(images: list[str], split: Split, heldout: float) -> list[str]:
    if split == "all":
        return images
    # The first 8 bytes of the digest are a uniform number; below the share, the image is held out.
    draws = [int.from_bytes(hashlib.sha256(os.fsencode(image)).digest()[:8], "big") / 2**64 for image in images]
    if all(draw < heldout for draw in draws):
        return images if split == "train" else []
    return [image for image, draw in zip(images, draws, strict=True) if (draw < heldout) == (split == "heldout")]


def _nothing_usable(path: str | Path, images: int, problems: list[Problem]) -> str:
    layout = (
        "a .txt with a caption a line beside each image, or a metadata.jsonl or metadata.csv with file_name and text"
    )
    if not images:
        return (
            f"the folder {path} holds no images: looked for {', '.join(IMAGE_EXTENSIONS)} in it and the folders below"
        )
    first = next((p for p in problems if p.what != "an image without a caption"), problems[0])
    return f"none of the {images} images in {path} has a caption ({first.where}: {first.what}); wanted is {layout}"


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _matters(name: str) -> bool:
    return _is_image(name) or name.lower().endswith((".txt", *METADATA_NAMES))


def _printable(name: str) -> str:
    """A name that can be printed and written as UTF-8, also where the file's own is not."""
    return name.encode("utf-8", "backslashreplace").decode()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_printable(str(name))[:40] for name in names) or "nothing"
