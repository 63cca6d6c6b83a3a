"""Signals while workers start and hand over what they made."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from fastt2i.cli import STOP_SIGNALS
from fastt2i.data.loaders.worker_signals import interrupts_afterwards, interrupts_held_back, setup_worker_signals
from fastt2i.engine.signals import StopRequest


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


def test_workers_leave_to_the_parent_what_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    try:
        with StopRequest() as stop:
            taken = {number for number in signal.valid_signals() if signal.getsignal(number) == stop._receive}
        setup_worker_signals()
        ignored = {number for number in taken if signal.getsignal(number) is signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert taken == ignored == set(STOP_SIGNALS) >= {signal.SIGINT, signal.SIGTERM}


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


def test_an_interrupt_comes_after_the_block() -> None:
    handler, reached = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), interrupts_afterwards():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached and signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_does_not_wait() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_afterwards():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second interrupt waits")
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("interrupts", [0, 1, 2])
def test_a_run_that_is_asked_to_stop_counts_them_as_without_the_block(interrupts: int) -> None:
    """The first is remembered, the second ends the run."""
    handler = signal.getsignal(signal.SIGINT)
    with StopRequest() as request:
        try:
            with interrupts_afterwards():
                for _ in range(interrupts):
                    signal.raise_signal(signal.SIGINT)
            ended = False
        except KeyboardInterrupt:
            ended = True
        assert (request.requested(), ended) == (interrupts > 0, interrupts > 1)
    assert signal.getsignal(signal.SIGINT) is handler
