"""Manners of the processes that read and decode: they leave signals to their parent, and end when it does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


def obey_the_parent_alone() -> None:
    """In a worker: leave the signals that reach the whole process group to the parent; and end when it does.

    They are Ctrl-C and the SIGTERM that torchrun ends a run with, after which the parent still takes a step or two.
    torch looks whether the parent's id has changed, which it never does under a fork server: the server lives on as
    long as its workers do. DALI does not look.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _hush_broken_connections
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _hush_broken_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A parent that is interrupted while it takes a batch hangs up, and a thread of the worker would report that."""
    if not issubclass(kind, (OSError, EOFError)):
        sys.__excepthook__(kind, error, trace)


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Workers started in this block have SIGINT blocked from the first, before `obey_the_parent_alone` runs.

    One that reaches this process meanwhile comes after the block: a worker that is half started when its parent leaves
    would report that.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held: list[int] = []
    # The mask is this thread's, and of what it starts; another thread may take the signal, and Python hand it to this.
    handler = signal.getsignal(signal.SIGINT)
    handles = callable(handler) and threading.current_thread() is threading.main_thread()
    if handles:
        signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if handles:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)
