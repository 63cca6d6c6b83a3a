"""Requests of many clients, drawn together by one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from fastt2i.devices.allocator import give_back_freed_memory
from fastt2i.pipeline import Drawing, TextToImagePipeline
from fastt2i.request import Request

#: Seconds of drawing after which memory that is free goes back to the system.
GIVE_BACK_EVERY = 5.0


class QueueFull(Exception):
    """More requests wait than the server lets wait."""


class Stopping(Exception):
    """The server is about to end."""


@dataclass
class _Waiting:
    request: Request
    answer: Future[Drawing] = field(default_factory=Future)


class Batcher:
    """Draws what is asked for, whatever waits in one pass.

    No request waits for others to come: while one pass is being drawn, those of the next gather.

    Args:
        pipeline: what draws.
        max_images: images drawn in one pass.
        max_waiting: requests that may wait.
    """

    def __init__(self, pipeline: TextToImagePipeline, *, max_images: int, max_waiting: int) -> None:
        self._pipeline, self._max_images, self._max_waiting = pipeline, max_images, max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def submit(self, request: Request) -> Future[Drawing]:
        """Ask for a drawing.

        Raises:
            QueueFull: too many wait already.
            Stopping: no more is taken.
        """
        with self._changed:
            if self._deadline is not None:
                raise Stopping
            if len(self._waiting) >= self._max_waiting:
                raise QueueFull
            waiting = _Waiting(request)
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.answer

    def stop(self, seconds: float) -> None:
        """Take no more, draw for so long what waits, and refuse the rest; returns at once."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + seconds
            self._changed.notify()

    def join(self) -> None:
        """Wait until everything that was asked for is answered, after `stop`."""
        self._thread.join()

    def _work(self) -> None:
        given_back = time.monotonic()
        while batch := self._next():
            late = self._deadline is not None and time.monotonic() > self._deadline
            try:
                if late:
                    raise Stopping
                _answer(batch, self._pipeline.draw([each.request for each in batch], scores=True))
            except Exception as error:  # it is for those who asked; the server goes on
                _answer(batch, [error] * len(batch))
            if time.monotonic() > given_back + GIVE_BACK_EVERY:
                give_back_freed_memory()
                given_back = time.monotonic()

    def _next(self) -> list[_Waiting]:
        """What fits into a pass, one request at least; nothing once all is done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._deadline is not None)
                batch = self._take()
                if batch or (not self._waiting and self._deadline is not None):
                    return batch

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        images = 0
        while self._waiting and (not batch or images + self._waiting[0].request.candidates <= self._max_images):
            waiting = self._waiting.popleft()
            if waiting.answer.set_running_or_notify_cancel():  # else its client has gone
                batch.append(waiting)
                images += waiting.request.candidates
        return batch


def _answer(batch: list[_Waiting], results: Sequence[Drawing | Exception]) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if isinstance(result, Exception):
            waiting.answer.set_exception(result)
        else:
            waiting.answer.set_result(result)
