"""The first signal is remembered, the second acts, and handlers are put back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from fastt2i.engine.distributed.world import World
from fastt2i.engine.logging.run_logger import RunLogger
from fastt2i.engine.signals import StopRequest


@pytest.fixture(autouse=True)
def in_a_terminal() -> Iterator[None]:
    """As where these signals are not ignored, which nohup would have started the tests with."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_remembered(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.exit_status == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number and stop.exit_status == status
    assert signal.getsignal(number) is before


def test_a_second_interrupt_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_terminal_that_is_closed_sends_several_and_nohup_none() -> None:
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested() and stop.signal == signal.SIGHUP
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested()


def test_a_run_whose_reader_has_gone_stops_and_prints_nothing_more() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with StopRequest() as stop, os.fdopen(writer, "w") as output, contextlib.redirect_stdout(output):
        logger = RunLogger.__new__(RunLogger)  # no more of it prints a line
        logger.print("step 1/2")
        assert stop.requested() and stop.signal == signal.SIGHUP
        logger.print("stopped by SIGHUP")


def test_all_ranks_stop_for_the_signal_of_one() -> None:
    """Each is told what the others have received, one call later, whatever it has received itself meanwhile."""

    class Ring(World):
        asked = 0

        def any_signal(self, number: int) -> int:
            before, self.asked = self.asked, max(number, self.asked)
            return before

    world = Ring()
    with StopRequest(world) as first, StopRequest(world) as second:
        assert not first.requested() and not second.requested()
        second.signal = signal.SIGTERM
        assert not second.requested()
        assert first.requested() and second.requested()
        assert first.signal == second.signal == signal.SIGTERM and first.exit_status == 143
