"""What is measured on a CPU has a process of its own, forked from one that has computed nothing.

How long an operation takes depends on what its process did before: on the memory that the C library has kept, and on
what it gave back and gets anew, zeroed page by page. In one process for all, a ratio depended on the cases before it.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from _pytest.runner import runtestprotocol

T = TypeVar("T")
#: Where processes can fork with all libraries that they have loaded.
AVAILABLE = sys.platform == "linux"


class Death(RuntimeError):
    """A process ended without a result."""


def apart(work: Callable[[], T]) -> T:
    """The result of a function that is called in a process of its own; it must be picklable.

    Raises:
        Death: there is none.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, sender))
    process.start()
    sender.close()
    try:
        result: T = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        raise Death(f"its process ended {f'by signal {-code}' if code < 0 else f'with status {code}'}") from None
    except BaseException:  # an interrupt, too, ends both
        process.kill()
        process.join()
        raise
    process.join()
    return result


def _send(work: Callable[[], Any], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both, and the first one ends this one
    sender.send(work())


@dataclass(frozen=True)
class _Outcome:
    """Of a test: the reports of its phases, serializable; pytest-benchmark's rows; and what else was asked."""

    reports: Sequence[dict[str, Any]]
    rows: Sequence[Any]
    other: Any = None


def run_apart(item: pytest.Item, other: Callable[[], T]) -> T | None:
    """Run a test in a process of its own; it is reported, and its rows are kept, as if it had run here.

    Args:
        item: the test, with nothing set up.
        other: what is asked, in that process, after the test.

    Returns:
        what `other` said there, or None if the process died, which fails the test.
    """
    config, hook = item.config, item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    try:
        outcome = apart(lambda: _run(item, other))
    except Death as death:
        keywords = dict.fromkeys(item.keywords, 1)
        report = pytest.TestReport(item.nodeid, item.location, keywords, "failed", str(death), "call")
        outcome = _Outcome([config.hook.pytest_report_to_serializable(config=config, report=report)], [])
    for told in outcome.reports:
        report = config.hook.pytest_report_from_serializable(config=config, data=told)
        hook.pytest_runtest_logreport(report=report)
    _rows(config).extend(outcome.rows)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    found: T | None = outcome.other
    return found


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
