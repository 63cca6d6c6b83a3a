"""Work in several processes: in order, and past samples that end theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastt2i.data.tools.parallel import each

ROOT = Path(__file__).parents[2]


def square(sample: int) -> int:
    return sample * sample


def crash(sample: int) -> int:
    if sample in (0, 21, 40):
        os.kill(os.getpid(), signal.SIGKILL)
    return sample * sample


def fail(sample: int) -> int:
    raise ZeroDivisionError(sample)


@dataclass(frozen=True)
class Note:
    folder: Path

    def __call__(self, sample: int) -> int:
        (self.folder / str(sample)).touch()
        return os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_results_come_in_order(workers: int, count: int) -> None:
    assert list(each(square, range(count), workers=workers, lost=-1, chunk=7)) == [n * n for n in range(count)]


def test_a_sample_that_ends_its_process_costs_no_other() -> None:
    results = list(each(crash, range(41), workers=2, lost=-1, chunk=3))
    assert results == [-1 if n in (0, 21, 40) else n * n for n in range(41)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_defect_is_raised(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(each(fail, range(9), workers=workers, lost=-1))


def test_it_does_not_run_far_ahead_and_ends_when_it_is_dropped(tmp_path: Path) -> None:
    results = each(Note(tmp_path), range(10_000), workers=2, lost=-1, chunk=5)
    assert next(results) != os.getpid()
    results.close()  # type: ignore[attr-defined]
    assert len(list(tmp_path.iterdir())) <= 2 * 4 * 5 + 5


@pytest.mark.quick
def test_a_script_without_a_guard_and_far_away_temporary_files(tmp_path: Path) -> None:
    """As scripts are written, and on clusters whose TMPDIR has a name longer than a socket's address may be."""
    script = tmp_path / "script.py"
    script.write_text(
        "from fastt2i.data.tools.parallel import each\nprint(list(each(abs, [-1, -2], workers=1, lost=0)))\n"
    )
    far = tmp_path / ("x" * 90)
    far.mkdir()
    environment = {**os.environ, "TMPDIR": str(far)}
    for command, given in (([str(script)], ""), (["-"], script.read_text())):
        result = subprocess.run(
            [sys.executable, *command], input=given, env=environment, cwd=ROOT, capture_output=True, text=True
        )
        assert result.stdout == "[1, 2]\n", result.stderr
