"""Runs the kernels' tests in Triton's interpreter, which has to be chosen before a kernel is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the run in the interpreter")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests run on the GPU")
@pytest.mark.parametrize("file", sorted(p.name for p in HERE.glob("test_*_kernel.py")))
def test_every_kernel_is_right_in_the_interpreter(file: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
    result = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert re.search(r"\d+ passed", result.stdout) and "skipped" not in result.stdout, result.stdout
