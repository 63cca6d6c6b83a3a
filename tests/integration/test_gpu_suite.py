"""The suite that gathers evidence on a GPU, without one: what fails, hangs and is killed loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu.case_log import CaseLog
from benchmarks.gpu.evidence import Evidence
from benchmarks.gpu.supervise import GRACE, Stage, run_stages

ROOT = Path(__file__).parents[2]
#: A program of cases as the suite's own are; each writes its name elsewhere once its line must be in the log.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from benchmarks.gpu import case_log
from benchmarks.gpu.case_log import Case, CaseLog, run_cases
log, told, stage, *names = sys.argv[1:]
class Told(CaseLog):
    def append(self, stage, case, state, **more):
        super().append(stage, case, state, **more)
        if state != "begun":
            with open(told, "a") as file: file.write(case + "\\n")
def fails(): raise ValueError("it is broken")
def dies(): os.kill(os.getpid(), signal.SIGKILL)
def hangs():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(300)
RUNS = {"fails": fails, "dies": dies, "hangs": hangs}
def case(name):
    limit = 1 if name == "hangs" else 60
    return Case(name, lambda: RUNS.get(name.rstrip("0123456789"), lambda: time.sleep(0.03))() or {"of": name}, limit)
sys.exit(run_cases(stage, [case(name) for name in names], Told(Path(log))))
"""
#: A suite of one such stage after the other.
SUITE = """
import sys
from pathlib import Path
from benchmarks.gpu.evidence import Evidence
from benchmarks.gpu.supervise import Stage, run_stages
out, program = map(Path, sys.argv[1:])
evidence = Evidence(out, out.parent / "work")
def command(stage, *names):
    return [sys.executable, str(program), str(evidence.cases.path), str(out.parent / "told"), stage, *names]
names = [f"case{n}" for n in range(400)]
run_stages([Stage(s, 60, [command(s, *names)]) for s in ("first", "second")], evidence, 100)
"""


def command(evidence: Evidence, stage: str, *names: str) -> list[str]:
    program = evidence.work.parent / "program.py"
    program.write_text(PROGRAM)
    return [sys.executable, str(program), str(evidence.cases.path), str(evidence.work.parent / "told"), stage, *names]


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evidence:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Evidence(tmp_path / "out", tmp_path / "work")


@pytest.mark.quick
def test_a_stage_goes_on_after_cases_that_fail_hang_and_die(evidence: Evidence) -> None:
    names = ["good1", "fails", "hangs", "good2", "dies", "good3"]
    began = time.monotonic()
    [outcome] = run_stages([Stage("mixed", 100, [command(evidence, "mixed", *names)])], evidence, 100)
    assert time.monotonic() - began < 60
    assert outcome.result == "failed" and outcome.cases == len(names)
    states = {case: record["state"] for (_, case), record in evidence.cases.finished().items()}
    assert states == {
        "good1": "passed", "fails": "failed", "hangs": "stopped",
        "good2": "passed", "dies": "stopped", "good3": "passed",
    }  # fmt: skip
    errors = {case: record.get("error", "") for (_, case), record in evidence.cases.finished().items()}
    assert errors["fails"] == "ValueError: it is broken" and "more than 1" in errors["hangs"]
    assert "exit status -9" in errors["dies"]
    with tarfile.open(evidence.out / "evidence.tar.gz") as archive:
        assert archive.extractfile("mixed.log").read().count(b"passed") >= 3  # type: ignore[union-attr]


@pytest.mark.quick
def test_a_stage_ends_with_its_time_and_those_after_it_still_run(evidence: Evidence) -> None:
    sleeping = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(300)"]
    stages = [
        Stage("ahead", 100, [sleeping], background=True),
        Stage("long", 3, [sleeping, sleeping]),
        Stage("missing", 9, [sleeping], left_out="there is none"),
        Stage("broken", 9, [[sys.executable, "-c", "raise SystemExit('broken')"], [sys.executable, "-c", "print(3)"]]),
        Stage("good", 9, [[sys.executable, "-c", "print(4)"]]),
        Stage("rest", 300, [sleeping]),
        Stage("late", 9, [sleeping]),
    ]
    began = time.monotonic()
    outcomes = run_stages(stages, evidence, 15 + GRACE)
    assert time.monotonic() - began < 25 + 2 * GRACE
    results = {outcome.stage: outcome.result for outcome in outcomes}
    assert results == {
        "long": "stopped", "missing": "left out: there is none", "broken": "failed", "good": "passed",
        "rest": "stopped", "late": "left out: the time is over",
    }  # fmt: skip
    assert json.loads((evidence.out / "summary.json").read_text())[-1]["stage"] == "late"
    assert (evidence.work / "long.log").read_text().count("begun") == 1  # its second command never began
    assert (evidence.work / "ahead.log").read_text().startswith("begun\n")
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "print('begun', flush=True); time.sleep(300)" not in listed


def test_a_suite_that_is_killed_leaves_every_finished_case(evidence: Evidence) -> None:
    """At 20 random moments: what a case's process has finished is a line that can be read, and so is the archive."""
    folder, chance = evidence.work.parent, random.Random(0)
    command(evidence, "")
    (folder / "suite.py").write_text(SUITE)
    counts = []
    for number in range(20):
        out = folder / str(number) / "out"
        out.mkdir(parents=True)
        process = subprocess.Popen(
            [sys.executable, str(folder / "suite.py"), str(out), str(folder / "program.py")],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.5, 4.0))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.3)  # what it had started ends with it
        told = out.parent / "told"
        finished = {case for _, case in CaseLog(out / "cases.jsonl").finished()}
        assert set(told.read_text().splitlines() if told.exists() else ()) <= finished
        before = len(finished)
        time.sleep(0.2)
        assert len(CaseLog(out / "cases.jsonl").finished()) == before, "a case went on after the suite was killed"
        if (out / "evidence.tar.gz").exists():
            with tarfile.open(out / "evidence.tar.gz") as archive:
                archive.getmembers()
        counts.append(before)
    assert sum(count > 0 for count in counts) >= 10, counts


def test_both_parts_on_a_cpu(tmp_path: Path) -> None:
    told = {}
    for part in ("1", "2"):
        options = ["--out", str(tmp_path / part), "--work", str(tmp_path / "work"), "--device", "cpu", "--tiny"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu_suite", *options, "--part", part, "--minutes", "12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        cases = CaseLog(tmp_path / part / "cases.jsonl")
        bad = [record for record in cases.records() if record["state"] not in ("begun", "passed")]
        assert done.returncode == 0 and not bad, f"{done.stdout}\n{done.stderr}\n{bad}"
        told |= {o["stage"]: o["result"] for o in json.loads((tmp_path / part / "summary.json").read_text())}
        records = cases.finished()
        if part == "2":
            assert records["training", "demo"]["images_per_second"] > 0 and records["training", "demo"]["steps"] == 4
        if part == "1":
            assert records["steps", "demo, batch 2, peers' form, fp32"]["images_per_second"] > 0
            assert records["operators", "gate 24"]["ms"]["reference"][1] > 0
            assert records["limits", "copy bandwidth and matrix rates"]["copy_bytes_per_second"] > 0
            assert any(
                case.startswith("tests/kernels/test_launch.py::") for stage, case in records if stage == "core-tests"
            )
    assert {stage for stage, result in told.items() if result == "passed"} == {
        "smoke", "core-tests", "limits", "steps", "operators", "compiled", "training", "autotune"
    }  # fmt: skip
    with tarfile.open(tmp_path / "2" / "evidence.tar.gz") as archive:
        assert {"training/curves.png", "steps.log"} <= set(archive.getnames())
