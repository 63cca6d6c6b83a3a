"""The files below a folder, found and read without ever leaving it."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastt2i.data.captions import MAX_CAPTION_FILE, FileCaptions, file_captions
from fastt2i.data.dataset import Problem
from fastt2i.errors import UserError
from fastt2i.files.io_errors import classify_io_errors
from fastt2i.files.reading import file_stamp, printable, read_file

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_UNREAD_IMAGE_EXTENSIONS = (".avif", ".gif", ".heic", ".heif", ".jxl", ".jp2", ".tif", ".tiff")
MAX_IMAGE_FILE = 2**28  # bytes
_RUN = {"config.yaml", "checkpoints", "samples"}  # what every run makes in its folder


@dataclass
class Files:
    """Regular files below a folder, as paths relative to it, `/` between the parts, sorted; and what went wrong."""

    root: Path
    names: dict[str, None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def images(self) -> Iterator[str]:
        return (name for name in self.names if is_image(name) and not posixpath.basename(name).startswith("."))

    def below(self, folder: str) -> Iterator[str]:
        """The names of what is below a folder and not hidden, relative to it."""
        names = (name.removeprefix(f"{folder}/") for name in self.names if name.startswith(f"{folder}/"))
        return (name for name in names if not posixpath.basename(name).startswith("."))

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The content of a file, or of its beginning; empty and a problem where it cannot be read.

        Raises SystemIOError.
        """
        try:
            with classify_io_errors(str(self.root / name)):
                return read_file(self.root / name, limit)
        except OSError as error:
            self.report(name, f"cannot be read: {error.strerror}")
            return b""

    def captions(self, name: str) -> FileCaptions:
        """The captions of a .txt file; a problem where it cannot be read, or is not UTF-8. Raises SystemIOError."""
        found = file_captions(self.read(name, MAX_CAPTION_FILE))
        if found.problem:
            self.report(name, found.problem)
        return found

    def report(self, where: str, what: str) -> None:
        self.problems.append(Problem(printable(where), what))


@dataclass(frozen=True)
class FileReader:
    """Reads image files by number, and says when they have changed."""

    root: str
    images: tuple[str, ...]

    @classmethod
    def of(cls, root: Path, images: Iterable[str]) -> FileReader:
        """images: paths relative to the root."""
        return cls(str(root.absolute()), tuple(images))

    def __call__(self, sample: int) -> bytes:
        path = self._path(sample)
        with classify_io_errors(path):
            content = read_file(path, MAX_IMAGE_FILE + 1)
        if len(content) > MAX_IMAGE_FILE:
            raise OSError(f"the file is larger than {MAX_IMAGE_FILE >> 20} MiB")
        return content

    def stamp(self, sample: int) -> str:
        return file_stamp(self._path(sample))

    def _path(self, sample: int) -> str:
        return os.path.join(self.root, self.images[sample])


def open_folder(path: str | Path) -> Path:
    """The folder at `path`. Raises UserError: there is none, or it cannot be read."""
    if not os.path.isdir(path):
        raise UserError(f"{path} is not a folder" if os.path.lexists(path) else f"there is no folder {path}")
    try:
        os.scandir(path).close()
    except OSError as error:
        raise UserError(f"the folder {path} cannot be read: {error.strerror}") from error
    return Path(path)


def walk(root: Path, folders: Sequence[str] = ("",), matters: Callable[[str], bool] | None = None) -> Files:
    """List what is in some folders below `root`, all of it by default, without leaving `root`.

    Hidden folders are skipped; links to folders are not followed. matters: whether a file that cannot be used is worth
    a problem; images are by default. Links that lead nowhere useful always are. Raises SystemIOError.
    """
    files = Files(root)
    real_root = os.path.realpath(root)
    ahead = list(reversed(folders))
    while ahead:
        folder = ahead.pop()
        try:
            with classify_io_errors(str(root / folder)), os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            files.report(folder, f"cannot be read: {error.strerror}")
            continue
        below = []
        if folder and {entry.name for entry in found} >= _RUN:
            files.report(folder, "the output folder of a run; what a run draws is not read")
            continue
        for entry in found:
            name = posixpath.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith("."):
                    below.append(name)
            elif problem := _unusable(entry, real_root):
                if entry.is_symlink() or (matters or is_image)(name):
                    files.report(name, problem)
            else:
                files.names[name] = None
        ahead += reversed(below)
    return files


def first_folder(root: str | Path, candidates: Iterable[str]) -> str | None:
    """The first of these folders below `root` that is there and no link; links to folders are not followed."""
    for candidate in candidates:
        parts = candidate.split("/")
        steps = [os.path.join(root, *parts[: count + 1]) for count in range(len(parts))]
        if all(os.path.isdir(step) and not os.path.islink(step) for step in steps):
            return candidate
    return None


def is_image(name: str) -> bool:
    """Whether the name ends as an image's does."""
    return posixpath.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def is_unread_image(name: str) -> bool:
    """Whether the name ends as that of an image in a format that is not read."""
    return posixpath.splitext(name)[1].lower() in _UNREAD_IMAGE_EXTENSIONS


def listed(names: Iterable[str]) -> str:
    """Names of columns or fields for a message."""
    return ", ".join(printable(str(name))[:40] for name in names) or "nothing"


def _unusable(entry: os.DirEntry[str], real_root: str) -> str | None:
    """Why something that is no folder may not be read; None where it may."""
    if entry.is_file(follow_symlinks=False):
        return None
    try:
        with classify_io_errors(entry.path):
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
