"""Tables of compiled kernels: written and read, and known to be out of date when they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.kernels.table import CompiledKernel, KernelTable, by_kernel, committed_tables, source_digest
from fastt2i.errors import UserError

ROWS = (
    CompiledKernel("gated_conv 3x3 128x64x64w8s3, bf16, sm_100", 152, 0, 98_320, "tcgen05"),
    CompiledKernel("gate forward_kernel silu, bf16, sm_90, unaligned", 31, 8, 0, ""),
    CompiledKernel("gated_conv 3x3 128x64x64w8s3, bf16, sm_90", 128, 0, 98_304, "wgmma"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a committed table."""
    (tmp_path / "ahead-of-time").mkdir()
    return tmp_path / "ahead-of-time" / "triton-3.9.0.json"


def test_a_table_is_read_as_it_was_written(path: Path, tmp_path: Path) -> None:
    table = KernelTable("3.9.0", ROWS, "digest")
    table.write(path)
    assert committed_tables(tmp_path) == [table]
    assert len(path.read_text().splitlines()) == len(ROWS) + 4


def test_rows_by_kernel_and_gpu() -> None:
    assert list(by_kernel(ROWS)) == [
        ("gated_conv 3x3", "sm_90"),
        ("gated_conv 3x3", "sm_100"),
        ("gate forward_kernel", "sm_90"),
    ]


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "gate.py").write_text("1")
    (tmp_path / "tiles.py").write_text("23")
    digests = [source_digest(tmp_path)]
    (tmp_path / "notes.txt").write_text("not compiled")
    assert source_digest(tmp_path) == digests[0]
    (tmp_path / "tiles.py").write_text("24")
    digests.append(source_digest(tmp_path))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "more.py").write_text("5")
    digests.append(source_digest(tmp_path))
    (tmp_path / "tiles.py").rename(tmp_path / "units.py")
    digests.append(source_digest(tmp_path))
    (tmp_path / "units.py").unlink()
    digests.append(source_digest(tmp_path))
    assert len(set(digests)) == 5


def test_a_table_of_other_kernels_is_known() -> None:
    assert KernelTable("3.9.0", ROWS, source_digest()).is_current
    assert not KernelTable("3.9.0", ROWS).is_current


def test_the_newest_triton_comes_first(path: Path, tmp_path: Path) -> None:
    for version in ("3.6.0", "3.10.0", "3.9.0"):
        KernelTable(version, ROWS).write(path.with_name(f"triton-{version}.json"))
    assert [table.triton for table in committed_tables(tmp_path)] == ["3.10.0", "3.9.0", "3.6.0"]


def test_what_is_committed_names_its_triton() -> None:
    tables = committed_tables()
    assert tables[-1].triton == "3.6.0" and len(tables) > 1
    for table in tables:
        assert {name for row in table.kernels for name in row.tensor_cores.split()} == {"mma", "wgmma", "tcgen05"}
        assert {row.architecture for row in table.kernels} == {"sm_80", "sm_90", "sm_100"}


def test_what_is_wrong_is_told(path: Path, tmp_path: Path) -> None:
    path.write_text(json.dumps({"triton": "3.9.0", "kernels": [{"case": "gate", "registers": "many"}]}))
    with pytest.raises(
        UserError, match=r"triton-3\.9\.0\.json: kernels\[0\]\.registers: Input should be a valid integer"
    ):
        committed_tables(tmp_path)
