"""Starts worker processes whatever the program that asks for them is like, and wherever its temporary files go."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from fastt2i.data.loaders.worker_signals import interrupts_held_back

#: Bytes of a temporary directory's name that leave room for a socket's below it: an address has 104 bytes at most.
_LONGEST_TEMPORARY = 60


def worker_context(preload: Sequence[str] = ()) -> multiprocessing.context.BaseContext:
    """How workers start: forked from a server that has imported the modules `preload` but never run them.

    A plain fork copies the locks of torch's own threads in whatever state they are, and hangs sooner or later.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def starting_workers() -> Iterator[None]:
    """Workers have to be started in this block: with SIGINT held back, as in `interrupts_held_back`.

    They do not run the caller's script once more, which would train again where it has no guard against that; and their
    sockets have addresses that are short enough, however long the name of the temporary directory is.
    """
    _use_short_addresses()
    with interrupts_held_back(), _without_main_module():
        yield


@contextmanager
def _without_main_module() -> Iterator[None]:
    """What a new process is told of the main module is read from these two; nothing of it is needed here."""
    main = sys.modules["__main__"]
    kept: dict[str, object] = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    main.__file__ = None
    try:
        yield
    finally:
        for name in ("__file__", "__spec__"):
            delattr(main, name)
        vars(main).update(kept)


def _use_short_addresses() -> None:
    """Have multiprocessing choose its directory of sockets in /tmp where the usual one has too long a name."""
    if len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_TEMPORARY:
        return
    usual = tempfile.tempdir
    tempfile.tempdir = "/tmp"
    try:
        with suppress(OSError):  # there is no such place here: the usual one is then tried
            multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = usual
