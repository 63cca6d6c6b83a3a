"""What does not fit into memory is told before any of it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastt2i.config import Config, TrainConfig
from fastt2i.devices import free_memory as memory
from fastt2i.engine.run_memory import check_run_memory
from fastt2i.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_gigabytes(tmp_path: Path, control_groups: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of which half is free, in control groups without a limit."""
    file = tmp_path / "meminfo"
    file.write_text(
        "MemTotal:        2097152 kB\nMemFree:          10 kB\nMemAvailable:    1048576 kB\nHugePages_Total:       0\n"
    )
    monkeypatch.setattr(memory, "_MEMORY", file)
    return file


def test_what_fits_is_let_pass_and_what_does_not_is_told() -> None:
    memory.check_memory(2**30, "a thing", "take less")
    with pytest.raises(UserError, match=r"^a thing would take 1.5 GiB of memory, and 1.0 GiB are free; take less$"):
        memory.check_memory(3 * 2**29, "a thing", "take less")


@pytest.mark.parametrize("content", ["", "MemAvailable: much\n", "nonsense"])
def test_a_system_that_does_not_tell_has_what_is_installed(two_gigabytes: Path, content: str) -> None:
    two_gigabytes.write_text(content)
    assert memory.free_memory() == memory.installed_memory()


def test_a_container_may_have_less_than_the_machine(control_groups: Path) -> None:
    def group(folder: Path, limit: str, used: int) -> None:
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 7\ninactive_file 1000\n")

    group(control_groups / "box" / "inner", "max", 2**40)
    group(control_groups / "box", str(2**29), 2**28)
    assert memory.free_memory() == 2**28 + 1000
    group(control_groups / "box" / "inner", str(2**28), 2**28 - 2000)
    assert memory.free_memory() == 3000
    group(control_groups / "box", str(2**28), 2**29)
    assert memory.free_memory() == 0
    group(control_groups / "box", str(2**40), 2**20)
    group(control_groups / "box" / "inner", "max", 2**40)
    assert memory.free_memory() == 2**30


def test_the_first_version_of_control_groups(control_groups: Path) -> None:
    (control_groups / "own").write_text("4:memory:/box\n3:cpu,cpuacct:/box\n")
    folder = control_groups / "memory" / "box"
    folder.mkdir(parents=True)
    (folder / "memory.usage_in_bytes").write_text("3000\n")
    (folder / "memory.stat").write_text("total_inactive_file 1000\n")
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory.free_memory() == 2**30
    (folder / "memory.limit_in_bytes").write_text("5000\n")
    assert memory.free_memory() == 3000


def test_a_run_that_can_never_fit() -> None:
    check_run_memory(Config(), CPU, 1)
    large = Config(train=TrainConfig(batch_size=100_000))
    with pytest.raises(UserError, match=r"train.batch_size is 100000, which would take .* GiB .* train.accumulate"):
        check_run_memory(large, CPU, 1)
    check_run_memory(large, CPU, 1000)
    check_run_memory(large, torch.device("meta"), 1)
