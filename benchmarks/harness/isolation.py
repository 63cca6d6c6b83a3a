"""What is measured on a CPU has a process of its own, forked from one that has computed nothing.

How long an operation takes depends on what its process did before: on the memory that the C library has kept, and on
what it gave back and gets anew, zeroed page by page. In one process for all, a ratio depended on the cases before it.

And it depends on what else the machine does in that second, which is not the same to all ways of computing: on two
virtual cores, ratios that took two seconds to measure had a standard deviation of 6 % over a minute, in one process as
in several, while the rounds of each lay close together. So a few processes take turns: the rounds of each are spread
over the time of all, and their quartiles show how uneven the machine is.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import pytest
from _pytest.runner import runtestprotocol

T = TypeVar("T")
#: Where processes can fork with all libraries that they have loaded.
AVAILABLE = sys.platform == "linux"

#: In a process that takes turns, the way to the one that gives them.
_giver: Connection | None = None


class Death(RuntimeError):
    """A process ended without a result."""


class Apart(Generic[T]):
    """A function that is called in a process of its own, in one or several turns; its result must be picklable."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        #: From the first turn on, with the way to it.
        self._process: tuple[BaseProcess, Connection] | None = None
        self._result: T | Death
        self.ended = False

    def give_turn(self) -> None:
        """Let it run until it pauses or ends."""
        if self._process is None:
            self._process = self._fork()
        else:
            with suppress(ConnectionError):  # it died, which `recv` tells
                self._process[1].send(None)
        process, connection = self._process
        try:
            self.ended, self._result = connection.recv()
        except (EOFError, ConnectionError):
            process.join()
            code = process.exitcode or 0
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            self.ended, self._result = True, Death(f"its process ended {how}")
        if self.ended:
            process.join()

    def _fork(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_run_for, args=(theirs, ours, self._work))
        process.start()
        theirs.close()
        return process, ours

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process is not None:
            process, _ = self._process
            process.kill()
            process.join()

    def result(self) -> T:
        """What the function returned.

        Raises:
            Death: the process ended without.
        """
        if isinstance(self._result, Death):
            raise self._result
        return self._result


def pause() -> None:
    """Let the other processes have their turns; where there are none, go on."""
    if _giver is not None:
        _giver.send((False, None))
        _giver.recv()


def run_in_turns(processes: Sequence[Apart[Any]]) -> None:
    """Run them to their ends, never two at a time; what interrupts this ends them all."""
    try:
        while running := [process for process in processes if not process.ended]:
            for process in running:
                process.give_turn()
    except BaseException:
        for process in processes:
            process.kill()
        raise


def apart(work: Callable[[], T]) -> T:
    """The result of a function that is called in a process of its own; it must be picklable.

    Raises:
        Death: there is none.
    """
    process = Apart(work)
    run_in_turns([process])
    return process.result()


def _run_for(giver: Connection, theirs: Connection, work: Callable[[], Any]) -> None:
    global _giver
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both, and the first one ends this one
    theirs.close()  # else this one would wait for a turn that nobody gives
    _giver = giver
    giver.send((True, work()))


@dataclass(frozen=True)
class _Outcome:
    """Of a test: the reports of its phases, serializable; pytest-benchmark's rows; and what else was asked."""

    reports: Sequence[dict[str, Any]]
    rows: Sequence[Any]
    other: Any


def run_apart(items: Sequence[pytest.Item], other: Callable[[], T]) -> list[T]:
    """Run tests in processes of their own, which take turns; they are reported, and their rows are kept, as if they had
    run here, one after the other.

    Args:
        items: the tests, with nothing set up.
        other: what is asked, in each process, after its test.

    Returns:
        what `other` said in each; of a process that died, which fails its test, there is nothing.
    """
    processes = [Apart(partial(_run, item, other)) for item in items]
    try:
        run_in_turns(processes)
    finally:  # what is measured before an interrupt is kept
        told = [_report(item, process) for item, process in zip(items, processes, strict=True) if process.ended]
    return [outcome.other for outcome in told if outcome is not None]


def _report(item: pytest.Item, process: Apart[_Outcome]) -> _Outcome | None:
    """Report a test that has run; what its process said, unless that died."""
    config, hook = item.config, item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    outcome = None
    try:
        outcome = process.result()
        reports = [config.hook.pytest_report_from_serializable(config=config, data=told) for told in outcome.reports]
        _rows(config).extend(outcome.rows)
    except Death as death:
        keywords = dict.fromkeys(item.keywords, 1)
        reports = [pytest.TestReport(item.nodeid, item.location, keywords, "failed", str(death), "call")]
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return outcome


def _run(item: pytest.Item, other: Callable[[], Any]) -> _Outcome:
    config, before = item.config, len(_rows(item.config))
    reports = runtestprotocol(item, log=False, nextitem=None)
    rows = _rows(config)[before:]
    for row in rows:
        # All that a row asks of its fixture, which knows the whole session.
        row.fixture = SimpleNamespace(has_error=row.has_error)
    told = [config.hook.pytest_report_to_serializable(config=config, report=report) for report in reports]
    return _Outcome(told, rows, other())


def _rows(config: pytest.Config) -> list[Any]:
    """Of pytest-benchmark's session, where its fixture puts them."""
    rows: list[Any] = config._benchmarksession.benchmarks  # type: ignore[attr-defined]
    return rows
