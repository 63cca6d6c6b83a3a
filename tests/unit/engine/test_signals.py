"""The first signal is remembered, the second acts, and handlers are put back."""

from __future__ import annotations

import os
import signal

import pytest

from fastt2i.engine.distributed.world import World
from fastt2i.engine.signals import StopRequest


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
