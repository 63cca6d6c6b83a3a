"""Runs the kernels' tests in Triton's interpreter, which has to be chosen before a kernel is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_*_kernel.py"))
#: By file, its tests as they run, and where they write.
Runs = dict[str, tuple[subprocess.Popen[bytes], Path]]

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the run in the interpreter"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the tests run on the GPU"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """All at once, for the interpreter keeps one core busy."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    folder, started = tmp_path_factory.mktemp("interpreter"), {}
    with ExitStack() as stack:
        for file in FILES:
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
            output = stack.enter_context((folder / file).open("wb"))
            process = stack.enter_context(
                subprocess.Popen(command, cwd=HERE.parents[1], env=environment, stdout=output, stderr=output)
            )
            stack.callback(process.kill)
            started[file] = process, folder / file
        yield started


@pytest.mark.parametrize("file", FILES)
def test_every_kernel_is_right_in_the_interpreter(file: str, runs: Runs) -> None:
    process, output = runs[file]
    status, told = process.wait(), output.read_text()
    assert status == 0, told
    assert re.search(r"\d+ passed", told) and "skipped" not in told, told
