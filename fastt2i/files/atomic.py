"""Files and directories that are either whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, which neither removes nor renames a file that is open
    fcntl = None  # type: ignore[assignment]

# How file systems say that they do not sync directories: SMB, VirtualBox, FUSE and WSL mounts among them.
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EIO, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM}


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 digest."""
    return hashlib.sha256(content).hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        _write(file, content)


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part.

    Of several writers at once each has a temporary file of its own, and the last one's content stays. What killed ones
    have left is removed and never written through: in a folder that came from elsewhere it may be a link to any file.
    """
    temporary, file = _own_temporary(path)
    with file:
        try:
            _write(file, content)
            if fcntl is None:
                file.close()
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_file(path.parent)


def _own_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path` that no other writer has: its lock, which ends with its process, tells that."""
    marks = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    names = (path.with_name(f".{path.name}{mark}.tmp") for mark in marks)
    while True:
        name = next(names)
        _remove_left_over(name)
        try:
            file = name.open("xb")
        except FileExistsError:
            continue
        if _hold(file.fileno(), name):
            _remove_left_over(next(names))
            return name, file
        file.close()


def _remove_left_over(name: Path) -> None:
    """Remove a temporary file that nobody is writing, or a link that has its name; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        try:
            descriptor = os.open(name, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return
        except OSError:  # a link, or a file that may not be read
            name.unlink()
            return
        try:
            if _hold(descriptor, name):
                name.unlink()
        finally:
            os.close(descriptor)


def _hold(descriptor: int, name: Path) -> bool:
    """Lock an open file; whether nobody else had, and it has its name still, which another writer may have taken from
    it until then. Where there are no locks, nobody has."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    try:
        return os.path.samestat(os.fstat(descriptor), name.lstat())
    except FileNotFoundError:
        return False


def write_output(path: Path, content: bytes) -> None:
    """Write what people ask for to the file that they name: whole, or, to a pipe or a device such as `/dev/stdout`, as
    it is."""
    if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
        path.write_bytes(content)
    else:
        replace_file(path, content)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place when the block ends well, and is removed otherwise.

    The files in it have to be written with `write_file`, or synced with `sync_file`. An older directory at `path` stays
    until the new one is whole.
    """
    temporary, old = _beside(path)
    remove_leftovers(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_file(temporary)
        if path.exists():
            move_directory(path, old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_file(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed has left beside `path` of a `new_directory`."""
    for leftover in _beside(path):
        shutil.rmtree(leftover, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where a new directory is made, and where the one that it replaces is put meanwhile."""
    return path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")


def move_directory(path: Path, target: Path) -> None:
    """Rename a directory; copy and remove it where the file system cannot rename it.

    A directory of a lower layer of a container's image is such: renaming it is refused with EXDEV. The target is whole
    or not there in any case.
    """
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f".{target.name}.copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy, symlinks=True, copy_function=_copy_file)
        copy.rename(target)
        shutil.rmtree(path)


def _copy_file(source: str, target: str) -> None:
    shutil.copy2(source, target)
    sync_file(Path(target))


def sync_file(path: Path) -> None:
    """Wait until the disk has a file, or a directory's list of files, that something else wrote.

    Some network and shared file systems sync files and no directories: that the latter fails is no error.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if path.is_dir() and error.errno in _NO_DIRECTORY_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)
