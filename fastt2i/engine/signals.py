"""SIGINT and SIGTERM request a run to stop after the current step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from fastt2i.engine.distributed.world import World

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While the context is open, the first SIGINT or SIGTERM is remembered; a second one acts at once.

    Args:
        world: the processes that stop together; one by default.

    Attributes:
        signal: the signal received, or None.
    """

    def __init__(self, world: World | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._world = world or World()

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
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
