"""A pytest plugin that writes each finished test into the case log: `-p benchmarks.gpu.record_tests`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.gpu.case_log import FAILED, PASSED, CaseLog

#: Environment variables that name the file and the stage.
LOG, STAGE = "FASTT2I_CASE_LOG", "FASTT2I_CASE_STAGE"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that collects reports; one for each phase, of which the call and failures count."""
    worker = "PYTEST_XDIST_WORKER" in os.environ
    if worker or LOG not in os.environ or (report.when != "call" and report.outcome == "passed"):
        return
    state = {"passed": PASSED, "failed": FAILED}.get(report.outcome, report.outcome)
    message = {} if state == PASSED else {"error": report.longreprtext[-1500:]}
    log = CaseLog(Path(os.environ[LOG]))
    log.append(os.environ.get(STAGE, "tests"), report.nodeid, state, seconds=round(report.duration, 2), **message)
