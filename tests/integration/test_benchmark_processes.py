"""A case's process of its own: what it does stays there, and what it finds comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import isolation

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
import json
from pathlib import Path
from benchmarks.harness import isolation

names, told, measured = [], [], {}

@pytest.fixture
def record():
    def record(name, **values):
        measured[name] = values
    return record

def pytest_runtest_setup(item):
    names.append(item.name)

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    if item is item.session.items[0]:
        isolation.run_tests_isolated(item.session.items, lambda: (names, measured), collect)
    return True

def collect(item, answer):
    told.append(answer[0])
    measured.update(answer[1])
    Path(__file__).with_name("rows.json").write_text(json.dumps(measured))

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"told: {told}")
"""
TESTS = """
import os, signal
import pytest

ran = []

@pytest.mark.parametrize("number", [1, 2])
def test_measures(record, number):
    ran.append(number)
    record(f"test_measures[{number}]", ran=ran, process=os.getpid())

def test_fails():
    assert ran == ["what it is not"]

def test_dies():
    os.kill(os.getpid(), signal.SIGKILL)

def test_leaves():
    os._exit(3)

def test_skips():
    pytest.skip("for a reason")
"""

TURNS = """
import os, signal
from pathlib import Path
import pytest
from benchmarks.harness.isolation import pause

@pytest.mark.parametrize("letter", "abcd")
def test_writes(letter):
    for turn in range(2 if letter == "b" else 3):
        if turn:
            pause()
        if turn and letter == "c":
            os.kill(os.getpid(), signal.SIGKILL)
        with Path(__file__).with_name("written").open("a") as file:
            file.write(letter)
"""
ORPHANS = """
import os, signal
from pathlib import Path
import pytest
from benchmarks.harness.isolation import pause

@pytest.mark.parametrize("number", range(3))
def test_waits(number):
    with Path(__file__).with_name("processes").open("a") as file:
        file.write(f"{os.getpid()} ")
    pause()
    os.kill(os.getppid(), signal.SIGKILL)
"""
INTERRUPTED = """
import os, time
from pathlib import Path

def test_measures(record):
    record("test_measures")

def test_waits():
    Path(__file__).with_name("process").write_text(str(os.getpid()))
    time.sleep(300)
"""

pytestmark = pytest.mark.skipif(not isolation.AVAILABLE, reason="processes cannot fork here")


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Pytest, in a session of its own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ending(process: subprocess.Popen[str], seconds: float = 300) -> tuple[str, str]:
    """Output and errors of one that a hang does not outlive."""
    try:
        return process.communicate(timeout=seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def suite_of(tests: str, folder: Path) -> list[str | Path]:
    """Arguments of a suite whose tests have processes of their own."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_cases.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return [folder / "test_cases.py", "-c", folder / "pytest.ini", "-rs"]


def test_what_a_test_does_stays_in_its_process_and_what_it_finds_comes_back(tmp_path: Path) -> None:
    output, errors = ending(start(*suite_of(TESTS, tmp_path)))
    assert "3 failed, 2 passed, 1 skipped" in output, output + errors
    assert "assert [] == ['what it is not']" in output
    assert "its process ended by signal 9" in output and "its process ended with status 3" in output
    assert "for a reason" in output
    assert "told: [['test_measures[1]'], ['test_measures[2]'], ['test_fails'], ['test_skips']]" in output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert set(rows) == {"test_measures[1]", "test_measures[2]"}
    one, two = rows.values()
    assert (one["ran"], two["ran"]) == ([1], [2]) and one["process"] != two["process"]


def test_processes_take_turns_and_one_that_dies_does_not_end_the_others(tmp_path: Path) -> None:
    output, errors = ending(start(*suite_of(TURNS, tmp_path), "-v"))
    assert (tmp_path / "written").read_text() == "abcd" + "abd" + "ad"
    assert "1 failed, 3 passed" in output, output + errors
    assert [line.split("[")[1][0] for line in output.splitlines() if "::test_writes[" in line and "%" in line] == [
        *"abcd"
    ]


def test_processes_that_wait_for_their_turn_end_with_the_one_that_gives_it(tmp_path: Path) -> None:
    process = start(*suite_of(ORPHANS, tmp_path))
    ending(process, 60)  # they have its output, too
    assert process.returncode == -signal.SIGKILL
    processes = [int(number) for number in (tmp_path / "processes").read_text().split()]
    assert len(processes) == 3
    until = time.monotonic() + 60
    while any(map(is_running, processes)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_where_one_cannot_be_forked_those_that_wait_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, other = isolation.IsolatedCall(isolation.pause), isolation.IsolatedCall(isolation.pause)
    monkeypatch.setattr(other, "_fork", lambda: os.stat("/no/such/memory"))
    with pytest.raises(FileNotFoundError):
        isolation.run_in_turns([waiting, other])
    assert not waiting.ended and waiting._process is not None and not waiting._process[0].is_alive()


def is_running(process: int) -> bool:
    with suppress(FileNotFoundError):
        # A zombie has ended; whoever inherits it may be slow to ask.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_an_interrupt_ends_both_and_keeps_what_there_is(tmp_path: Path) -> None:
    marker = tmp_path / "process"
    process = start(*suite_of(INTERRUPTED, tmp_path))
    until = time.monotonic() + 60
    while not (marker.exists() and marker.read_text()):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = ending(process, 60)
    assert "KeyboardInterrupt" in output and "1 passed" in output, output + errors
    assert "Traceback" not in errors
    assert list(json.loads((tmp_path / "rows.json").read_text())) == ["test_measures"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def measured(folder: Path, **environment: str) -> dict[str, Any]:
    """What a case of the benchmark suite writes, with a compiler that has kept nothing."""
    rows = folder / "rows.json"
    case = "benchmarks/cases/bench_gated_conv.py::test_gated_conv2d_by_resolution[0]"
    options = ["--device=cpu", "--benchmark-only", f"--benchmark-json={rows}"]
    output, errors = ending(start(case, *options, TORCHINDUCTOR_CACHE_DIR=str(folder / "compiled"), **environment))
    assert "1 passed" in output, output + errors
    content: dict[str, Any] = json.loads(rows.read_text())
    return content


def test_without_a_compiler_a_case_says_so_and_is_measured(tmp_path: Path) -> None:
    told = measured(tmp_path, CXX="false")["cases"][0]
    assert "ours" in told["candidates"] and "torch.compile" not in told["candidates"]
    assert "InvalidCxxCompiler" in told["unavailable"]["torch.compile"]


def test_a_compiler_that_has_nothing_kept_compiles_in_a_forked_process(tmp_path: Path) -> None:
    """Threads that it started before a fork would be waited for, forever, behind it."""
    content = measured(tmp_path)
    assert "torch.compile" in content["cases"][0]["candidates"]
    assert content["device"]["copy_bytes_per_second"] > 0
