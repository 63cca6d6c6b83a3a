"""Classifies I/O errors: those of one file, and those of the machine, which say nothing of the file."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastt2i.errors import UserError

# What may be wrong with one file while all others can be read. Anything else, like a disk that fails, a network that is
# gone or too many open files, says nothing of the file.
_OF_THE_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EFBIG,
    errno.EOVERFLOW,
    errno.ENXIO,
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError where the block cannot write what people ask for, the file or folder `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


class SystemIOError(UserError):
    """A file cannot be used, and it is not the file's fault: nothing that holds tomorrow may be concluded from it."""


@contextmanager
def classify_io_errors(where: str) -> Iterator[None]:
    """Raises SystemIOError where the block fails for reasons of the machine's; what is the file's fault passes.

    where: the file. An OSError without a number is this project's own, or a decoder's, and of the file.
    """
    try:
        yield
    except MemoryError as error:
        raise SystemIOError(
            f"there is not enough memory for {where}; nothing is wrong with that file itself"
        ) from error
    except OSError as error:
        if error.errno is None or error.errno in _OF_THE_FILE:
            raise
        raise SystemIOError(
            f"{error.filename or where} cannot be read now: {error.strerror or error}; that is an error of the machine "
            "and not of the file, which is therefore not left out"
        ) from error
