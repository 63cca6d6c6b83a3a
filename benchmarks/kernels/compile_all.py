"""Compile every kernel for the GPUs that people have, without one: registers, stack, shared memory, instructions.

    python -m benchmarks.kernels.compile_all [--json FILE]

Launches are recorded from calls of the launchers, so that what is compiled is what a call compiles. Triton compiles for
a target that is not there; `cuobjdump`, which comes with it, tells what the program takes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton

from benchmarks.kernels.calls import Call, calls
from benchmarks.kernels.table import CompiledKernel, KernelTable, source_digest
from benchmarks.stand_in.launches import Launch, watched
from fastt2i.kernels import region_keyword

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Case(NamedTuple):
    """A launch and what it is compiled for: dtype of the call's tensors and compute capability times ten."""

    launch: Launch
    label: str
    dtype: str
    architecture: int

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype}, sm_{self.architecture}"

    @property
    def name(self) -> str:
        """File and function of the kernel, and what tells the call."""
        kernel = self.launch.name.removesuffix("_kernel").replace(".", " ")
        return f"{kernel} {self.label}".strip()


def cases() -> Iterator[Case]:
    """Everything that the calls launch, each program once."""
    seen: set[Any] = set()
    for call in calls():
        for dtype, architecture in product(call.dtypes, call.architectures):
            numbers: Counter[str] = Counter()
            for launch in launches(call, dtype, architecture):
                if (launch.key, architecture) not in seen:
                    seen.add((launch.key, architecture))
                    numbers[launch.name] += 1
                    again = f" #{numbers[launch.name]}" if numbers[launch.name] > 1 else ""
                    yield Case(launch, f"{call.label}{again}".strip(), dtype, architecture)


def launches(call: Call, dtype: str, architecture: int) -> list[Launch]:
    """Of a call with tensors of this dtype on a GPU of this architecture."""
    found: list[Launch] = []
    blocks = region_keyword.blocks

    def blocks_there(width: int, dtype: torch.dtype, caption: int, _: int) -> Any:
        return blocks(width, dtype, caption, architecture // 10)

    with watched(found.append, "meta"), patch.object(region_keyword, "blocks", blocks_there):
        call.run(DTYPES[dtype])
    return found


def compiled_kernel(case: str, program: Any) -> CompiledKernel:
    """What a program takes that Triton has compiled."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        told = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True)
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told.stdout + told.stderr)}
    products = set(re.findall(r"\b(wgmma|tcgen05|mma)\.(?:mma_async|mma|sync)", program.asm["ptx"]))
    stack = used["STACK"] + used["LOCAL"]
    return CompiledKernel(case, used["REG"], stack, program.metadata.shared, " ".join(sorted(products)))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.compile_all", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    print(f"Triton {triton.__version__}\n{'registers':>9} {'stack':>6} {'shared':>7}  tensor cores  case")
    sources, rows = source_digest(), []  # before compilation: nothing that changes meanwhile goes unnoticed
    for case in cases():
        found = compiled_kernel(str(case), case.launch.compiled(case.architecture))
        print(f"{found.registers:9} {found.stack:6} {found.shared:7}  {found.tensor_cores:12}  {case}", flush=True)
        rows.append(found)
    if arguments.json:
        KernelTable(triton.__version__, tuple(rows), sources).write(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
