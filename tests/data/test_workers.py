"""Signals while workers start."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from fastt2i.data.loaders.workers import interrupts_held_back


@pytest.fixture
def other() -> Iterator[int]:
    """A thread that does nothing and blocks no signal."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    assert thread.ident
    yield thread.ident
    ended.set()
    thread.join()


@pytest.mark.parametrize("taken_by_another", [False, True])
def test_an_interrupt_comes_after_the_workers_have_started(other: int, taken_by_another: bool) -> None:
    """The system may give one to any thread that has it not blocked."""
    handler, reached = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), interrupts_held_back():
        signal.pthread_kill(other if taken_by_another else threading.get_ident(), signal.SIGINT)
        time.sleep(0.1)
        reached = True
    assert reached and signal.getsignal(signal.SIGINT) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_without_an_interrupt_nothing_happens() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with interrupts_held_back():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_another_thread_may_start_workers_too() -> None:
    seen: list[bool] = []

    def start() -> None:
        with interrupts_held_back():
            seen.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert seen == [True]
