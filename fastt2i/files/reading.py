"""Reads files that may be anything: pipes in their place, too large ones, names that are not UTF-8."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
import unicodedata
from pathlib import Path

MAX_WHOLE_FILE = 2**31  # bytes of a file that is read whole, such as COCO's captions: millions of lines


def read_file(path: str | Path, limit: int | None = None) -> bytes:
    """The content of a file, or its first `limit` bytes. Raises OSError, also for a whole file of more than 2 GiB."""
    with open(path, "rb", opener=_open_regular_file) as file:
        if limit is None and os.fstat(file.fileno()).st_size > MAX_WHOLE_FILE:
            raise OSError(errno.EFBIG, f"it is larger than {MAX_WHOLE_FILE >> 30} GiB")
        return file.read(limit)


def file_stamp(path: str | int) -> str:
    """Size and time of change of a file, given by its path or open descriptor. Raises OSError."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"


def leaves_folder(name: str) -> bool:
    """Whether a path is absolute or climbs out of the folder that it is relative to."""
    return posixpath.isabs(name) or posixpath.normpath(name).split("/")[0] == ".."


def printable(name: str) -> str:
    """A name that can be written as UTF-8, also where the file's own is not; another one for every file."""
    # A byte that is not UTF-8 becomes `\udcff`: backslashes before such, and before that very text, are doubled.
    told = re.sub("(\\\\+)(?=udc|[\ud800-\udfff])", r"\1\1", name)
    return told.encode("utf-8", "backslashreplace").decode()


def composed(name: str) -> str:
    """A name as Unicode composes it: file systems and archives from macOS have accents apart from their letters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _open_regular_file(path: str, flags: int) -> int:
    """Opens a file without blocking, as a pipe would that has taken its place since it was found."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor
