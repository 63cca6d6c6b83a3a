"""A report's part on the compiled kernels: registers, shared memory, spills and tensor-core instructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.kernels.table import KernelTable, by_kernel
from benchmarks.report.document import SAME, Block, Bullets, Cell, Details, Heading, Paragraph, Row, Table


def compiled_kernels(tables: Sequence[KernelTable]) -> Iterator[Block]:
    """For each version of Triton what the kernels take at most, and each program."""
    yield Heading("What the compiled kernels take")
    if not tables:
        yield Paragraph("There is no table of python -m benchmarks.kernels.compile_all --json FILE yet.", "warning")
    for table in tables:
        yield Heading(f"Triton {table.triton}", 3)
        if not table.is_of_these_kernels:
            yield Paragraph(
                f"The kernels have changed since this table was made with Triton {table.triton}; "
                "python -m benchmarks.kernels.compile_all --json FILE makes it anew.",
                "warning",
            )
        yield from _spills(table)
        head = ["kernel", "GPU", "PTX", "programs", "registers", "shared memory", "stack"]
        yield Table(head, _largest(table), words={"kernel", "GPU", "PTX"})
        rows = [[row.case, row.tensor_cores, *_taken(row.registers, row.shared, row.stack)] for row in table.rows]
        every = Table(["program", "PTX", "registers", "shared memory", "stack"], rows, words={"program", "PTX"})
        yield Details(f"Each of the {len(table.rows)} programs", [every])


def _spills(table: KernelTable) -> Iterator[Block]:
    spilled = [row for row in table.rows if row.stack]
    if spilled:
        yield Paragraph(f"{len(spilled)} of {len(table.rows)} programs spill registers to the stack:", "warning")
        yield Bullets([f"{row.case}: {row.stack} B of a thread" for row in spilled])
    else:
        yield Paragraph(f"None of the {len(table.rows)} programs spills a register. The most that a kernel takes:")


def _largest(table: KernelTable) -> list[Row]:
    """Of each kernel on each GPU, over its configurations and dtypes."""
    rows: list[Row] = []
    last = ""
    for (kernel, architecture), found in by_kernel(table.rows).items():
        instructions = " ".join(sorted({name for row in found for name in row.tensor_cores.split()}))
        most = _taken(max(r.registers for r in found), max(r.shared for r in found), max(r.stack for r in found))
        rows.append([SAME if kernel == last else kernel, architecture, instructions, str(len(found)), *most])
        last = kernel
    return rows


def _taken(registers: int, shared: int, stack: int) -> Row:
    return [str(registers), f"{shared / 1024:.4g} KiB", Cell(f"{stack} B", "worse" if stack else "")]
