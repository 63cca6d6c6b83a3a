"""Imports in fresh interpreters: what they load, and that `fastt2i.ops.gate` is the function in any order."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.quick


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imported,absent",
    [
        ("fastt2i", ("torch", "numpy", "triton", "transformers")),
        ("fastt2i.kernels.launch", ("triton", "transformers")),
        ("fastt2i.ops", ("triton", "transformers")),
        ("fastt2i.nn", ("triton", "transformers")),
    ],
)
def test_imports_are_cheap(imported: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {imported}; print([m for m in {absent!r} if m in sys.modules])"
    assert run(program) == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import fastt2i.ops",
        "import fastt2i.ops.gate",
        "import fastt2i.ops.gate.reference",
        "import fastt2i.ops.gate.torch_impl",
        "import fastt2i.ops.gate.functional",
        "import fastt2i.ops.gated_conv.functional",
        "import fastt2i.ops.dispatch.registry",
        "import fastt2i.nn",
        "from fastt2i.ops.gate import torch_impl",
        "from fastt2i.ops import gate",
        "import fastt2i.ops; import fastt2i.ops.gate.implementations",
        "import importlib; importlib.import_module('fastt2i.ops.gate.torch_impl')",
    ],
)
def test_the_function_wins_over_the_package_of_its_name(first: str) -> None:
    program = f"{first}; import fastt2i.ops; from fastt2i.ops import gate; from fastt2i.ops.gate import reference"
    assert run(f"{program}; print(gate is fastt2i.ops.gate, gate.__name__, reference.__name__)") == (
        "True gate fastt2i.ops.gate.reference"
    )


def test_it_does_when_triton_is_loaded_too() -> None:
    pytest.importorskip("triton")
    for program in (
        "import fastt2i.ops.gate.triton_ops; from fastt2i.ops import gate",
        "from fastt2i.ops.gate.triton_ops import gate_backward; from fastt2i.ops import gate",
        "from fastt2i.ops import gate; import fastt2i.ops.gate.triton_ops",
    ):
        assert run(f"{program}; import fastt2i.ops; print(gate is fastt2i.ops.gate, type(gate).__name__)") == (
            "True function"
        )
