"""Compile every kernel for the GPUs that people have, without one: registers, stack, shared memory, instructions.

    python -m benchmarks.ahead_of_time [--json FILE]

Triton compiles for a target that is not there; `cuobjdump`, which comes with it, tells what the program takes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fastt2i.kernels import gate, gated_conv
from fastt2i.kernels.tiles import CONFIGS, Config
from fastt2i.ops.reference import ACTIVATIONS

#: Bytes of shared memory that one program may take, by compute capability.
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
ELEMENT_SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Case:
    """A kernel with everything that it is specialised on.

    Attributes:
        kernel: the function.
        name: tells it from the other cases.
        dtype: of the tensors, `bf16`, `fp16` or `fp32`.
        architecture: compute capability times ten.
        constants: values of the constexpr parameters, and of others that a launch would specialise.
        options: of the compiler.
        wide: pointers (by parameter) to float32 whatever the dtype.
        aligned: whether sizes and strides are multiples of 16, which Triton tells the compiler.
    """

    kernel: JITFunction
    name: str
    dtype: str
    architecture: int
    constants: dict[str, Any]
    options: dict[str, Any]
    wide: frozenset[str] = field(default=frozenset())
    aligned: bool = True

    def __str__(self) -> str:
        aligned = "" if self.aligned else ", unaligned"
        return f"{self.name}, {self.dtype}, sm_{self.architecture}{aligned}"


@dataclass(frozen=True)
class Compiled:
    """What a case takes, and its PTX.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread in local memory; more than 0 is a spill.
        shared: bytes of a program.
        ptx: the text.
    """

    registers: int
    stack: int
    shared: int
    ptx: str

    @property
    def tensor_cores(self) -> str:
        """The instructions that multiply matrices; empty where there are none."""
        found = set(re.findall(r"\b(wgmma|tcgen05|mma)\.(?:mma_async|mma|sync)", self.ptx))
        return " ".join(sorted(found))


def cases() -> Iterator[Case]:
    """Every kernel and every configuration of it."""
    yield from gate_cases()
    yield from gated_conv_cases()


def gate_cases() -> Iterator[Case]:
    """All kernels and activations for sm_90, each other dtype, architecture and alignment with one activation."""
    kernels = (gate.forward_kernel, gate.backward_kernel, gate.backward_backward_kernel)
    for kernel in kernels:
        for activation in ACTIVATIONS:
            yield _gate_case(kernel, activation, "bf16", 90)
        for dtype in ("fp16", "fp32"):
            yield _gate_case(kernel, "leaky_relu", dtype, 90)
        for architecture in (80, 100):
            yield _gate_case(kernel, "silu", "bf16", architecture)
        yield _gate_case(kernel, "silu", "bf16", 90, aligned=False)


def _gate_case(kernel: JITFunction, activation: str, dtype: str, architecture: int, aligned: bool = True) -> Case:
    constants = {
        "ACTIVATION": activation,
        "NEGATIVE_SLOPE": 0.2,
        "BLOCK_P": gate.TILE // gate.MOST_CHANNELS,
        "BLOCK_C": gate.MOST_CHANNELS,
    }
    name = f"gate {kernel.fn.__name__} {activation}"
    return Case(kernel, name, dtype, architecture, constants, gate.OPTIONS, frozenset({"p_partial"}), aligned)


def gated_conv_cases() -> Iterator[Case]:
    """Every tile that fits, for every architecture; 3x3 with pre kept, upsampling, and 1x1 for inference."""
    for config in CONFIGS:
        for architecture, limit in SHARED_MEMORY.items():
            for dtype in ("bf16", "fp32"):
                if config.shared_memory(ELEMENT_SIZE[dtype]) <= limit:
                    yield _gated_conv_case(config, "3x3", dtype, architecture)
            yield _gated_conv_case(config, "upsampling", "bf16", architecture)
        yield _gated_conv_case(config, "1x1 inference", "fp16", 90)
        if config.any_channels:
            yield _gated_conv_case(config, "3x3", "bf16", 90, aligned=False)


def _gated_conv_case(config: Config, kind: str, dtype: str, architecture: int, aligned: bool = True) -> Case:
    taps, pad, phases = {"3x3": (3, 1, 1), "upsampling": (2, 1, 2), "1x1 inference": (1, 0, 1)}[kind]
    constants = {
        **dict.fromkeys(("STRIDE_H", "STRIDE_W", "DILATION_H", "DILATION_W"), 1),
        **dict.fromkeys(("PAD_H", "PAD_W"), pad),
        **dict.fromkeys(("KERNEL_H", "KERNEL_W"), taps),
        "PHASES": phases,
        "BIASED": True,
        "KEEP_PRE": kind != "1x1 inference",
        "ACTIVATION": "leaky_relu",
        "NEGATIVE_SLOPE": 0.2,
        "PRECISION": "tf32",
        "WIDEN": False,
        "BLOCK_P": config.positions,
        "BLOCK_C": config.channels,
        "BLOCK_K": config.depth,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    name = f"gated_conv {kind} {config.name}"
    return Case(gated_conv.forward_kernel, name, dtype, architecture, constants, options, aligned=aligned)


def compile_case(case: Case) -> Compiled:
    """Compile a case for its architecture."""
    signature, constants, attributes = {}, dict(case.constants), {}
    for place, parameter in enumerate(case.kernel.arg_names):
        if parameter in constants:
            signature[parameter] = "constexpr"
        elif parameter.startswith("p_"):
            signature[parameter] = "*fp32" if parameter in case.wide else f"*{case.dtype}"
            attributes[(place,)] = [["tt.divisibility", 16]]  # torch aligns its memory
        elif parameter.endswith("_c"):  # channels-last: what Triton makes of a stride of 1
            signature[parameter], constants[parameter] = "constexpr", 1
        else:
            signature[parameter] = "i32"
            if case.aligned:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.architecture, 32), options=case.options)
    used = _resources(compiled.asm["cubin"])
    return Compiled(used["REG"], used["STACK"] + used["LOCAL"], compiled.metadata.shared, compiled.asm["ptx"])


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = told.stdout + told.stderr
    return {name: int(found.group(1)) for name in ("REG", "STACK", "LOCAL") if (found := _usage(name, usage))}


def _usage(name: str, text: str) -> re.Match[str] | None:
    return re.search(rf"\b{name}:(\d+)", text)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ahead_of_time", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    print(f"Triton {triton.__version__}\n{'registers':>9} {'stack':>6} {'shared':>7}  tensor cores  case")
    rows = []
    for case in cases():
        found = compile_case(case)
        print(f"{found.registers:9} {found.stack:6} {found.shared:7}  {found.tensor_cores:12}  {case}", flush=True)
        row = asdict(found) | {"case": str(case), "tensor_cores": found.tensor_cores}
        rows.append({name: value for name, value in row.items() if name != "ptx"})
    if arguments.json:
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
