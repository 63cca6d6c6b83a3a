"""A step on a GPU as far as it can be known without one; the tests themselves are in gpu_stand_in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.stand_in.device import preloaded_environment, unavailable_reason

HERE = Path(__file__).parent
reason = unavailable_reason()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def run_there(marked: str) -> None:
    command = [sys.executable, "-m", "pytest", str(HERE / "gpu_stand_in"), "-q", "-p", "no:cacheprovider", "-m", marked]
    done = subprocess.run(command, env=preloaded_environment(), cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


@pytest.mark.quick
def test_some_presets() -> None:
    run_there("quick")


def test_all_presets() -> None:
    run_there("not quick and not slow")


@pytest.mark.slow
def test_all_precisions_of_all_presets() -> None:
    run_there("slow")
