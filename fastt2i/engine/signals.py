"""Signals that ask to stop request a run to do so after the current step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TextIO

from fastt2i.cli import HANGUP, STOP_SIGNALS, discard
from fastt2i.engine.distributed.world import World


class StopRequest:
    """While the context is open, the first of these signals is remembered; a second one acts at once.

    But a terminal that is closed may send several SIGHUP; and where it is ignored, as under nohup, it stays so.

    Args:
        world: the processes that stop together; one by default.

    Attributes:
        signal: the signal received, or None.
    """

    def __init__(self, world: World | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._world = world or World()

    def __enter__(self) -> StopRequest:
        numbers = [n for n in STOP_SIGNALS if n != HANGUP or signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if number != HANGUP:
            for each, handler in self._previous.items():
                signal.signal(each, handler)

    def requested(self) -> bool:
        """Whether to stop now: the same answer on all ranks, which call this once before each step."""
        number = self._world.any_signal(self.signal or 0)
        if number:
            self.signal = signal.Signals(number)
        return bool(number)

    @property
    def exit_status(self) -> int:
        """128 plus the signal's number, as shells have it; 0 if there was none."""
        return 128 + self.signal if self.signal else 0


def hang_up(stream: TextIO) -> None:
    """Whoever read what a run prints has gone: what follows is dropped, and it counts as a terminal that is closed."""
    discard(stream)
    if HANGUP is not None:
        signal.raise_signal(HANGUP)
