"""How many cores a process may use, under the quotas of containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastt2i.devices.cores import cpu_quota, usable_cores


@pytest.fixture
def groups(control_groups: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On a machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return control_groups


@pytest.mark.parametrize(
    ("own", "around", "quota", "usable"),
    [
        ("max 100000", "max 100000", None, 64),
        ("max 100000", "200000 100000", 2, 2),
        ("150000 100000", "max 100000", 1.5, 2),
        ("50000 100000", "800000 100000", 0.5, 1),
        ("9000000 100000", "max 100000", 90, 64),
        ("nonsense", "300000 100000", 3, 3),
    ],
)
def test_the_smallest_quota_counts(groups: Path, own: str, around: str, quota: float | None, usable: int) -> None:
    (groups / "box" / "inner" / "cpu.max").write_text(f"{own}\n")
    (groups / "box" / "cpu.max").write_text(f"{around}\n")
    assert (cpu_quota(), usable_cores()) == (quota, usable)


def test_a_container_sees_its_own_group_as_the_root(groups: Path) -> None:
    (groups / "own").write_text("0::/../../docker/1234\n")
    (groups / "cpu.max").write_text("400000 100000\n")
    assert usable_cores() == 4


@pytest.mark.parametrize(("quota", "usable"), [("250000", 3), ("-1", 64)])
def test_the_first_version_of_control_groups(groups: Path, quota: str, usable: int) -> None:
    (groups / "own").write_text("4:memory:/box\n3:cpu,cpuacct:/box\n")
    (groups / "cpu" / "box").mkdir(parents=True)
    (groups / "cpu" / "box" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (groups / "cpu" / "box" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == usable


def test_without_control_groups_all_cores_count(groups: Path) -> None:
    (groups / "own").unlink()
    assert (cpu_quota(), usable_cores()) == (None, 64)
