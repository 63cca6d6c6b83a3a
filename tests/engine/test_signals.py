"""The first signal is remembered, the second acts, and handlers are put back."""

from __future__ import annotations

import os
import signal

import pytest

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
