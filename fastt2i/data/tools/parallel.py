"""Work on the samples of a dataset in several processes, which no sample can bring down."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from fastt2i.data.loaders.worker_signals import setup_worker_signals
from fastt2i.data.loaders.worker_start import starting_workers, worker_context

T = TypeVar("T")
_AHEAD = 4  # chunks that each process is ahead


def each(
    function: Callable[[int], T], samples: Sequence[int], *, workers: int, lost: T, chunk: int = 16
) -> Iterator[T]:
    """What `function`, which can be pickled, says of each sample, in their order.

    workers: processes; 0 works in this one. lost: what stands for a sample that ended its process, because it took
    all memory or made a decoder crash. chunk: samples that a process takes at a time.
    """
    if not workers:
        yield from map(function, samples)
        return
    chunks = deque(samples[start : start + chunk] for start in range(0, len(samples), chunk))
    while chunks:
        with _Pool(function, workers) as pool:
            ahead: deque[tuple[Sequence[int], Future[list[T]]]] = deque()
            try:
                while chunks or ahead:
                    while chunks and len(ahead) < _AHEAD * workers:
                        ahead.append((chunks[0], pool.submit(chunks[0])))
                        chunks.popleft()
                    results = ahead[0][1].result()
                    ahead.popleft()
                    yield from results
                return
            except BrokenProcessPool:
                chunks.extendleft(taken for taken, _ in reversed(ahead))
        # Some sample of those ahead ended a process: it is in the first chunk, or comes up again later.
        for sample in chunks.popleft():
            with _Pool(function, 1) as pool:
                try:
                    (result,) = pool.submit([sample]).result()
                except BrokenProcessPool:
                    result = lost
            yield result


class _Pool:
    """Processes that have a function."""

    def __init__(self, function: Callable[[int], Any], workers: int) -> None:
        self._executor = ProcessPoolExecutor(workers, worker_context(), initializer=_start, initargs=(function,))

    def submit(self, samples: Sequence[int]) -> Future[list[Any]]:
        with starting_workers():  # it may start a process
            return self._executor.submit(_work, list(samples))

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)


_function: Callable[[int], Any]


def _start(function: Callable[[int], Any]) -> None:
    global _function
    setup_worker_signals()
    _function = function


def _work(samples: Sequence[int]) -> list[Any]:
    return [_function(sample) for sample in samples]
