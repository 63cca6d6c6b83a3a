"""Signals and exit of worker processes: they leave signals to their parent, and end when it does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from fastt2i.cli import STOP_SIGNALS


def setup_worker_signals() -> None:
    """In a worker: leave the signals that reach the whole process group to the parent, which still takes a step or two
    after them; and end when it does.

    torch looks whether the parent's id has changed, which it never does under a fork server: the server lives on as
    long as its workers do. DALI does not look.
    """
    for number in STOP_SIGNALS:
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
def interrupts_afterwards() -> Iterator[None]:
    """A SIGINT that reaches this process meanwhile comes after the block; a second one does not wait.

    Python's locks between processes are not made to be left at any point: one that is not given back keeps the next
    who wants it waiting for ever, and that may be the thread that ends the workers.
    """
    held: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread alone
        return

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        if len(held) > 1:
            let_come()

    def let_come() -> None:
        if signal.getsignal(signal.SIGINT) is hold:
            signal.signal(signal.SIGINT, handler)
        numbers = tuple(held)
        held.clear()
        for number in numbers:
            signal.raise_signal(number)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        let_come()


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Workers started in this block have SIGINT blocked from the first, before `setup_worker_signals` runs.

    One that reaches this process meanwhile comes after the block: a worker that is half started when its parent leaves
    would report that.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The mask is this thread's, and of what it starts; another thread may take the signal, and Python hand it to this.
    with interrupts_afterwards():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
