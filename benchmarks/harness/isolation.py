"""On a CPU every case has a process of its own, forked from one that has computed nothing; a few take turns.

How long an operation takes depends on what its process did before: on the memory that the C library has kept, and on
what it returned and gets anew, zeroed page by page. In one process for all, a ratio depended on the cases before it.

It also depends on what else the machine does in that second, which affects ways of computing differently: on two
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
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

#: Whether processes can fork with all libraries that they have loaded.
AVAILABLE = sys.platform == "linux"

#: In an isolated process, the connection to its parent.
_parent: Connection | None = None


class IsolatedCall:
    """A function that is called in a process of its own, in one or several turns; its result must be picklable.

    Attributes:
        ended: whether it has come to its end.
        result: what it returned.
        failure: how its process ended without a result, if it did.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        #: From the first turn on, with the connection to it.
        self._process: tuple[BaseProcess, Connection] | None = None
        self.ended, self.failure = False, ""
        self.result: Any = None

    def run_turn(self) -> None:
        """Let it run until it pauses or ends."""
        if self._process is None:
            self._process = self._fork()
        else:
            with suppress(ConnectionError):  # it ended, which `recv` tells
                self._process[1].send(None)
        process, connection = self._process
        try:
            self.ended, self.result = connection.recv()
        except (EOFError, ConnectionError):
            process.join()
            code = process.exitcode or 0
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            self.ended, self.failure = True, f"its process ended {how}"
        if self.ended:
            process.join()

    def _fork(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_run_child, args=(theirs, ours, self._function))
        process.start()
        theirs.close()
        return process, ours

    def kill(self) -> None:
        if self._process is not None:
            process, _ = self._process
            process.kill()
            process.join()


def pause() -> None:
    """Let the other processes have their turns; where there are none, go on."""
    if _parent is not None:
        _parent.send((False, None))
        _parent.recv()


def run_in_turns(calls: Sequence[IsolatedCall], on_end: Callable[[IsolatedCall], object] = lambda call: None) -> None:
    """Run them to their ends, never two at a time, and tell of each end; what interrupts this kills them all."""
    try:
        while running := [call for call in calls if not call.ended]:
            for call in running:
                call.run_turn()
                if call.ended:
                    on_end(call)
    except BaseException:
        for call in calls:
            call.kill()
        raise


def _run_child(parent: Connection, unused: Connection, function: Callable[[], Any]) -> None:
    global _parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both, and the parent ends this one
    unused.close()  # else this one would wait for a turn that nobody gives
    _parent = parent
    parent.send((True, function()))


def run_tests_isolated(
    items: Sequence[pytest.Item], ask: Callable[[], Any], collect: Callable[[pytest.Item, Any], None]
) -> None:
    """Run tests in processes of their own, which take turns; they are reported as if they had run here in order.

    Args:
        items: the tests, with nothing set up.
        ask: called in each process after its test.
        collect: called with what `ask` returned as soon as a process ends; not of one that died, which fails its test.
    """
    calls = {IsolatedCall(partial(_run, item, ask)): item for item in items}

    def on_end(call: IsolatedCall) -> None:
        if not call.failure:
            collect(calls[call], call.result[1])

    try:
        run_in_turns(list(calls), on_end)
    finally:  # what has run before an interrupt is reported
        for call, item in calls.items():
            if call.ended:
                _report(item, call)


def _run(item: pytest.Item, ask: Callable[[], Any]) -> tuple[list[dict[str, Any] | None], Any]:
    """The serialized reports of a test's phases, and the answer to what else was asked of its process."""
    config, reports = item.config, runtestprotocol(item, log=False, nextitem=None)
    return [config.hook.pytest_report_to_serializable(config=config, report=r) for r in reports], ask()


def _report(item: pytest.Item, call: IsolatedCall) -> None:
    config, hook = item.config, item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    if call.failure:
        keywords = dict.fromkeys(item.keywords, 1)
        reports = [pytest.TestReport(item.nodeid, item.location, keywords, "failed", call.failure, "call")]
    else:
        reports = [config.hook.pytest_report_from_serializable(config=config, data=data) for data in call.result[0]]
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
