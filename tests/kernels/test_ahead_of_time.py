"""Kernels compile for the GPUs that people have, without spilling registers; no GPU is needed for that."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fastt2i.ops.reference import ACTIVATIONS

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

ARCHITECTURES = (80, 90, 100)
KERNELS = ("forward_kernel", "backward_kernel", "backward_backward_kernel")
CASES = [
    *((name, activation, "bf16", 90, True) for name in KERNELS for activation in ACTIVATIONS),
    *((name, "leaky_relu", dtype, 90, True) for name in KERNELS for dtype in ("fp16", "fp32")),
    *((name, "silu", "bf16", architecture, True) for name in KERNELS for architecture in (80, 100)),
    *((name, "silu", "bf16", 90, False) for name in KERNELS),
]


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack of a compiled kernel, as `cuobjdump` of the Triton wheel reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = told.stdout + told.stderr
    return {name: int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK", "LOCAL")}


def compile_kernel(name: str, activation: str, dtype: str, architecture: int, aligned: bool) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastt2i.kernels import gate

    kernel = getattr(gate, name)
    constants = {"ACTIVATION": activation, "NEGATIVE_SLOPE": 0.2, "BLOCK_P": gate.TILE // 64, "BLOCK_C": 64}
    signature, attributes = {}, {}
    for place, parameter in enumerate(inspect.signature(kernel.fn).parameters):
        if parameter in constants:
            signature[parameter] = "constexpr"
        elif parameter.startswith("p_"):
            signature[parameter] = "*fp32" if parameter == "p_partial" else f"*{dtype}"
            attributes[(place,)] = [["tt.divisibility", 16]]  # torch aligns its memory
        elif parameter.endswith("_c"):  # channels-last: what Triton makes of a stride of 1
            signature[parameter], constants[parameter] = "constexpr", 1
        else:
            signature[parameter] = "i32"
            if aligned:  # what Triton is told of sizes and strides that 16 divides
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=gate.OPTIONS)


@pytest.mark.parametrize(("name", "activation", "dtype", "architecture", "aligned"), CASES)
def test_the_gate_compiles_without_a_spill(
    name: str, activation: str, dtype: str, architecture: int, aligned: bool
) -> None:
    compiled = compile_kernel(name, activation, dtype, architecture, aligned)
    used = resources(compiled.asm["cubin"])
    assert used["STACK"] == 0 and used["LOCAL"] == 0, used
    # 128 registers leave room for 4 programs of 4 warps on a multiprocessor, 80 for 6.
    assert used["REG"] <= (80 if aligned else 128), used
    assert compiled.metadata.shared <= 48 * 1024
    if aligned:  # memory is what bounds a gate: every access has 16 bytes
        accesses = set(re.findall(r"(?:ld|st)\.global[\w.:]*", compiled.asm["ptx"]))
        partial = {"st.global.b32"} if name == "backward_kernel" else set()
        assert accesses == {"ld.global.v4.b32", "st.global.v4.b32"} | partial, accesses
