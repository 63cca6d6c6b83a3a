"""Kernels compile for the GPUs that people have, without spilling registers; no GPU is needed for that."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

from benchmarks.kernels.calls import SHARED_MEMORY  # noqa: E402
from benchmarks.kernels.compile_all import Case, cases, compiled_kernel  # noqa: E402

ROOT = Path(__file__).parents[2]
#: The instructions that multiply matrices, by architecture.
TENSOR_CORES = {80: {"mma"}, 90: {"wgmma"}, 100: {"tcgen05", "mma"}}
#: Kernels that multiply matrices.
PRODUCTS = (
    "gated_conv",
    *(f"region_keyword {name}" for name in ("forward", "weights", "regions", "keywords")),
)
#: Accesses of the signs of values: stored by a forward pass, loaded by its derivatives.
SIGNS = ({"st.global.b8"}, {"ld.global.b8"})
#: Kernels that know their channels and strides, and are bound by memory.
KNOWN = ("modulated_gate", "leaky_shortcut")


def quick_and_full() -> list[ParameterSet]:
    """Every case: a kernel's first one in bfloat16 for an H100, or else its first, is compiled by default."""
    listed, quick = list(cases()), {}
    for case in sorted(listed, key=lambda case: (case.dtype, case.architecture) != ("bf16", 90)):
        quick.setdefault(case.launch.name, str(case))

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        if str(case) in quick.values():
            return []
        # Of kernels that are compiled for some widths, CI compiles that of training's largest layers.
        rare = " C=" in case.name and " C=24" not in case.name
        return [pytest.mark.slow if rare else pytest.mark.full]

    return [pytest.param(case, id=str(case), marks=marks(case)) for case in listed]


@pytest.mark.parametrize("case", quick_and_full())
def test_a_kernel_compiles_without_a_spill(case: Case) -> None:
    program = case.launch.compiled(case.architecture)
    found, ptx = compiled_kernel(str(case), program), program.asm["ptx"]
    assert found.stack == 0, found
    assert found.shared <= SHARED_MEMORY[case.architecture]
    # What is added up in any order gives other bits in every run.
    assert not re.search(r"\b(?:atom|red)\.", ptx)
    given = case.launch.arguments
    if case.name.startswith(PRODUCTS):
        # Scores in float32 are multiplied as they are, not as TF32; and so are convolutions, where torch's are.
        exact = case.dtype == "fp32" and given.get("PRECISION", "ieee") == "ieee"
        expected = set() if exact else TENSOR_CORES[case.architecture]
        assert found.tensor_cores == "" if exact else set(found.tensor_cores.split()) & expected, found.tensor_cores
    if case.name.startswith("gated_conv") and given["ROWS"] and given["CHANNELS"] % 8 == given["IN_CHANNELS"] % 8 == 0:
        assert not re.search(r"(?:ld|st)\.global[\w.:]*\.[bu]16\b", ptx)
    if case.name.startswith("gate "):
        # 128 registers leave room for 4 programs of 4 warps on a multiprocessor, 80 for 6.
        wide = given["ROW"] and given["CHANNELS"] % 8 == 0
        assert found.registers <= (80 if wide else 128)
        if wide:  # memory is what bounds a gate: every access has 16 bytes
            accesses = set(re.findall(r"(?:ld|st)\.global[\w.:]*", ptx))
            partial = {"st.global.b32"} if " backward " in case.name else set()
            assert accesses == {"ld.global.v4.b32", "st.global.v4.b32"} | partial, accesses
    if case.name.startswith(KNOWN) and not case.name.endswith(("C=6", "C=6 #2")):
        assert found.registers <= 128
        accesses = set(re.findall(r"(?:ld|st)\.global[\w.:]*", ptx))
        partial = {"st.global.b32"} if " backward " in case.name else set()
        if given.get("OUTPUT_SLOPE") != 1:  # the signs of what an access of 16 bytes holds are one byte
            partial |= SIGNS[given.get("SIGNS", " backward " in case.name)]
        assert accesses == {"ld.global.v4.b32", "st.global.v4.b32"} | partial, accesses


@pytest.mark.slow
def test_the_oldest_triton_compiles_them_too(tmp_path: Path) -> None:
    """Triton 3.6.0, which the first torch that is supported comes with."""
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), "triton==3.6.0"]
    subprocess.run([sys.executable, *install], check=True)
    table = tmp_path / "table.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels.compile_all", "--json", str(table)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        check=True,
    )
    found = json.loads(table.read_text())
    assert found["triton"] == "3.6.0"
    assert [row["case"] for row in found["kernels"]] == [str(case) for case in cases()]
    assert [row for row in found["kernels"] if row["stack"]] == []
