"""Where kernels run: on a GPU, or on a CPU in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or the interpreter; test_in_interpreter.py runs it there")
    return torch.device("cpu")


@pytest.fixture(scope="session")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], dict[str, int]]:
    """Registers and stack of a compiled kernel, as `cuobjdump` of the Triton wheel reads them."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = tmp_path_factory.mktemp("cubin") / "kernel.cubin"

    def read(cubin: bytes) -> dict[str, int]:
        file.write_bytes(cubin)
        told = subprocess.run([str(tool), "-res-usage", str(file)], capture_output=True, text=True, check=True)
        usage = told.stdout + told.stderr
        return {name: int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK", "LOCAL")}

    return read
