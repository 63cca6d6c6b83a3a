"""The committed tables of `python -m benchmarks.kernels.compile_all --json`: what each compiled kernel takes.

A table carries a digest of the kernels' sources, so that whoever reads it can tell whether it is still theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from benchmarks.harness.json_files import read_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class CompiledKernel:
    """One compiled kernel.

    Attributes:
        case: kernel, configuration, dtype and architecture.
        registers: per thread.
        stack: bytes per thread in local memory; more than 0 is a spill.
        shared: bytes per program.
        tensor_cores: the PTX instructions that multiply matrices, `wgmma`, `mma` or `tcgen05`; empty where none does.
    """

    case: str
    registers: int
    stack: int
    shared: int
    tensor_cores: str

    @property
    def kernel(self) -> str:
        """Without the configuration: `gated_conv 3x3`, `region_keyword forward`."""
        return " ".join(self.case.split(",")[0].split()[:2])

    @property
    def architecture(self) -> str:
        """`sm_80`, `sm_90` ..."""
        return next((word for word in self.case.split(", ") if word.startswith("sm_")), "")


@dataclass(frozen=True)
class KernelTable:
    """What one version of Triton made of the kernels; sources: digest of their files."""

    triton: str
    kernels: tuple[CompiledKernel, ...]
    sources: str = ""

    @property
    def is_current(self) -> bool:
        """Whether the kernels of this checkout are those that were compiled."""
        return self.sources == source_digest()

    def write(self, path: Path) -> None:
        """As JSON, a kernel on each line."""
        rows = ",\n".join(json.dumps(vars(row), separators=(",", ":")) for row in self.kernels)
        head = f'"triton":{json.dumps(self.triton)},\n"sources":{json.dumps(self.sources)}'
        path.write_text(f'{{{head},\n"kernels":[\n{rows}\n]}}\n')


def source_digest(folder: Path = ROOT / "kernels") -> str:
    """SHA-256 of the paths and contents of the Python files in a folder and those inside."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def committed_tables(results: Path = RESULTS) -> list[KernelTable]:
    """The newest Triton's first.

    Raises:
        UserError: a file is none.
    """
    paths = (results / "ahead-of-time").glob("triton-*.json")
    tables = [read_json(path, KernelTable, "a table of compiled kernels") for path in paths]
    return sorted(tables, key=lambda table: Version(table.triton), reverse=True)


def by_kernel(rows: Iterable[CompiledKernel]) -> dict[tuple[str, str], list[CompiledKernel]]:
    """Rows of each kernel and architecture, kernels in the order of the table and older architectures first."""
    found: dict[tuple[str, str], list[CompiledKernel]] = {}
    for row in rows:
        found.setdefault((row.kernel, row.architecture), []).append(row)
    kernels = list(dict.fromkeys(kernel for kernel, _ in found))
    order = sorted(found, key=lambda place: (kernels.index(place[0]), len(place[1]), place[1]))
    return {place: found[place] for place in order}
