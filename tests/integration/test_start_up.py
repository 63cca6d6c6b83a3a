"""Starting is quick: what is heavy is imported when it is needed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "triton", "transformers", "numpy", "PIL", "nvidia", "matplotlib"}


def best_of(runs: int, *arguments: str) -> float:
    """Seconds of the quickest run: what the program itself needs, whatever else the machine is doing."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys; old = set(sys.modules); import fastt2i; print(*{m.split('.')[0] for m in set(sys.modules) - old})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not HEAVY & set(loaded.split())
    assert best_of(5, "-c", "import fastt2i") - best_of(5, "-c", "pass") < 0.15


@pytest.mark.parametrize(
    "program", ["fastt2i.train", "fastt2i.generate", "fastt2i.evaluate", "fastt2i.data", "fastt2i.doctor"]
)
def test_help_comes_quickly(program: str) -> None:
    assert best_of(3, "-m", program, "--help") < 1.5
