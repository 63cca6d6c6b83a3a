"""Directories that one process at a time may write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fastt2i.errors import UserError
from fastt2i.files.atomic import replace_file

LOCK = ".lock"
HOLDER = ".lock.json"
# How file systems say that they know no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class DirectoryInUse(UserError):
    """Another process holds the directory."""


@contextmanager
def claim_directory(path: Path) -> Iterator[None]:
    """Hold an existing directory for the length of the block.

    The system's lock on a file in it is what counts, and it ends with its process, however that ends; `.lock.json`
    beside it says which process that is. On a file system without locks the block runs unprotected, with a warning.

    Raises:
        DirectoryInUse: another process holds it; the sentence names it.
        OSError: the directory cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(path / LOCK, timeout=0))
        except Timeout as error:
            raise DirectoryInUse(f"{path} is in use by {_holder(path)}") from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"the file system of {path} knows no locks: let no other process write there", stacklevel=3)
        me = {"pid": os.getpid(), "host": socket.gethostname()}
        replace_file(path / HOLDER, json.dumps(me).encode())
        yield


def _holder(path: Path) -> str:
    """The process that holds a directory, as far as its note tells."""
    try:
        holder = json.loads((path / HOLDER).read_bytes())
        return f"process {int(holder['pid'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
