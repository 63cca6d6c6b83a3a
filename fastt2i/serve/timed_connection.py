"""Connections that end where a client does not: uvicorn has a time limit for idle ones alone."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedConnection(H11Protocol):
    """Closes a connection `seconds` after a request could have begun on it whose header lines have not ended.

    The same holds for the rest of a body after its answer, as a refusal may be. What is read of a body before that is
    the application's to wait for.
    """

    seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """Start the timer where nobody else waits for what is missing, and stop it elsewhere."""
        answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if not answered and self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def timed_connection(seconds: float) -> type[TimedConnection]:
    """The class of connections, as uvicorn makes them, of a time limit in seconds."""
    return type("TimedConnection", (TimedConnection,), {"seconds": seconds})
