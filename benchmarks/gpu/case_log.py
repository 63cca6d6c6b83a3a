"""What became of each case of a run, a JSON line each, readable whatever becomes of the processes that write it.

As a plugin of pytest, `-p benchmarks.gpu.case_log`, it writes each finished test down.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

#: Environment variables that name the file and the stage to the plugin.
LOG, STAGE = "FASTT2I_CASE_LOG", "FASTT2I_CASE_STAGE"
BEGUN, PASSED, FAILED, STOPPED = "begun", "passed", "failed", "stopped"


@dataclass(frozen=True)
class Case:
    """What is measured or checked.

    Attributes:
        run: returns what is to be kept of it, as JSON can hold it; whatever it raises is its failure.
        limit: seconds that it may take.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    limit: float = 60.0


class CaseLog:
    """A file to which several processes append, each line by one call of the system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, stage: str, case: str, state: str, **more: Any) -> None:
        """Write a line; it is in the file when this returns."""
        line = json.dumps({"stage": stage, "case": case, "state": state, **more}, default=str) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """Of all whole lines."""
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        return [json.loads(line) for line in lines]

    def finished(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The last record of each case that came to an end, by stage and name."""
        return {(r["stage"], r["case"]): r for r in self.records() if r["state"] != BEGUN}

    def running(self, stage: str) -> dict[str, Any] | None:
        """The case of a stage that has begun and not ended."""
        last = next((r for r in reversed(self.records()) if r["stage"] == stage), None)
        return last if last and last["state"] == BEGUN else None


def run_cases(stage: str, cases: Sequence[Case], log: CaseLog, **facts: str) -> int:
    """Run the cases of a stage that have not ended yet, in their order; the exit status, 1 where any failed.

    facts: that each line has too.
    """
    done = log.finished()
    for case in cases:
        if (stage, case.name) in done:
            continue
        log.append(stage, case.name, BEGUN, limit=case.limit, at=time.time())
        began = time.monotonic()
        try:
            state, kept = PASSED, case.run()
        except Exception as error:
            state, kept = FAILED, {"error": f"{type(error).__name__}: {error}"[:2000]}
        seconds = round(time.monotonic() - began, 2)
        log.append(stage, case.name, state, seconds=seconds, **facts, **kept)
        print(f"{stage} {case.name}: {state} {seconds} s {json.dumps(kept, default=str)[:300]}", flush=True)
    return int(any(r["state"] == FAILED for (of, _), r in log.finished().items() if of == stage))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that collects reports; one for each phase, of which the call and failures count."""
    worker = "PYTEST_XDIST_WORKER" in os.environ
    if worker or LOG not in os.environ or (report.when != "call" and report.outcome == "passed"):
        return
    message = {} if report.outcome == PASSED else {"error": report.longreprtext[-1500:]}
    log = CaseLog(Path(os.environ[LOG]))
    log.append(os.environ[STAGE], report.nodeid, report.outcome, seconds=round(report.duration, 2), **message)
