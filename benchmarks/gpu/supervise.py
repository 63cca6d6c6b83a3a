"""Runs a stage's commands within limits: of the stage, and of each case that they report to have begun.

A process that hangs or dies in a case is ended, the case is written down as stopped, and the command begins anew, which
goes on with the next case.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu.case_log import STOPPED
from benchmarks.gpu.evidence import Evidence
from benchmarks.kernels.table import ROOT

#: Seconds between two looks, and that a process gets to end by itself.
POLL, GRACE = 0.25, 5.0


@dataclass(frozen=True)
class Stage:
    """A part of the suite.

    Attributes:
        seconds: that it may take, all commands together.
        commands: run one after the other, whatever becomes of each.
        background: whether the next stage begins at once; it is ended with the suite.
        left_out: why it is; empty where it is not.
    """

    name: str
    seconds: float
    commands: Sequence[Sequence[str]]
    background: bool = False
    left_out: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: `passed`, `failed`, `stopped` when its time was over, or why it was left out."""

    stage: str
    result: str
    seconds: float = 0.0
    cases: int = 0


def run_stages(stages: Sequence[Stage], evidence: Evidence, seconds: float) -> list[Outcome]:
    """All stages within so many seconds; evidence is packed after each case and each stage."""
    end, outcomes, background = time.monotonic() + seconds, [], []
    for stage in stages:
        left = end - time.monotonic() - GRACE
        if stage.left_out:
            outcomes.append(Outcome(stage.name, f"left out: {stage.left_out}"))
        elif left <= 0:
            outcomes.append(Outcome(stage.name, "left out: the time is over"))
        elif stage.background:
            background += [_start(command, stage, evidence) for command in stage.commands]
            continue
        else:
            outcomes.append(_run_stage(stage, evidence, min(stage.seconds, left)))
        told = outcomes[-1]
        print(f"{told.stage:12} {told.result:10} {told.seconds:6.1f} s, {told.cases} cases ended", flush=True)
        evidence.summarise([asdict(outcome) for outcome in outcomes])
        evidence.pack()
    for process in background:
        _end(process)
    evidence.pack()
    return outcomes


def _run_stage(stage: Stage, evidence: Evidence, seconds: float) -> Outcome:
    began, result = time.monotonic(), "passed"
    before = _ended(evidence, stage)
    for command in stage.commands:
        status = _finish(command, stage, evidence, began + seconds)
        result = "stopped" if status is None else result if status == 0 else "failed"
        if status is None:
            break
    return Outcome(stage.name, result, round(time.monotonic() - began, 1), _ended(evidence, stage) - before)


def _finish(command: Sequence[str], stage: Stage, evidence: Evidence, end: float) -> int | None:
    """The command's exit status, begun anew after each case that it did not survive; None if its time was over."""
    ok = True
    while True:
        process = _start(command, stage, evidence)
        over = _wait(process, stage, evidence, end)
        case = evidence.cases.running(stage.name)
        if case:
            why = "its process ended with the stage's time" if over == "stage" else f"exit status {process.returncode}"
            why = f"it took more than {case['limit']} s" if over == "case" else why
            evidence.cases.append(stage.name, case["case"], STOPPED, error=why, seconds=time.time() - case["at"])
            evidence.pack()
        if over == "stage":
            return None
        if not case:
            return process.returncode if ok else 1
        ok = False


def _wait(process: subprocess.Popen[bytes], stage: Stage, evidence: Evidence, end: float) -> str:
    """Until it ends, or has to be ended; whose time was over, if any: `stage` or `case`."""
    size = 0
    while process.poll() is None:
        time.sleep(POLL)
        now = evidence.cases.path.stat().st_size if evidence.cases.path.exists() else 0
        if now != size:
            size = now
            evidence.pack()
        case = evidence.cases.running(stage.name)
        too_long = case is not None and time.time() - case["at"] > case["limit"]
        if too_long or time.monotonic() > end:
            _end(process)
            return "stage" if time.monotonic() > end else "case"
    return ""


def _start(command: Sequence[str], stage: Stage, evidence: Evidence) -> subprocess.Popen[bytes]:
    with (evidence.work / f"{stage.name}.log").open("ab") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=evidence.environment(stage.name),
            preexec_fn=_die_with_the_suite,
        )


def _die_with_the_suite() -> None:
    """A group of its own, to be ended with what it starts; and Linux ends it where the suite is killed."""
    os.setpgrp()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _end(process: subprocess.Popen[Any]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):  # by the first pytest ends and says what it has
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            return


def _ended(evidence: Evidence, stage: Stage) -> int:
    return sum(of == stage.name for of, _ in evidence.cases.finished())
