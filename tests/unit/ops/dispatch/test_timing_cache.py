"""Cached times belong to the sources they were taken with: every file of operators and kernels counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastt2i.ops.dispatch.timing_cache import PACKAGE, source_digest

SOURCES = sorted(
    path.relative_to(PACKAGE) for folder in ("kernels", "ops") for path in (PACKAGE / folder).rglob("*.py")
)


def copied(folder: Path) -> Path:
    """The package's operators and kernels in a folder of the test's own, the kernels behind a link as in a checkout."""
    shutil.copytree(PACKAGE / "ops", folder / "fastt2i/ops", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE / "kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "fastt2i/kernels").symlink_to("../kernels")
    return folder / "fastt2i"


def test_the_digest_is_of_the_files_and_not_of_where_they_are(tmp_path: Path) -> None:
    assert source_digest(copied(tmp_path)) == source_digest(PACKAGE)


@pytest.mark.parametrize("name", SOURCES, ids=str)
def test_a_change_of_any_file_gives_another_digest(name: Path, tmp_path: Path) -> None:
    package = copied(tmp_path)
    path = package / name
    path.write_bytes(path.read_bytes() + b"#")
    assert source_digest(package) != source_digest(PACKAGE)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: (p / "ops/gate/torch_impl.py").rename(p / "ops/gate/torch_implementation.py"),
        lambda p: (p / "ops/gate/torch_impl.py").rename(p / "ops/torch_impl.py"),
        lambda p: (p / "ops/gate").rename(p / "ops/gates"),
        lambda p: (p / "kernels/gate.py").rename(p / "ops/kernel.py"),
        lambda p: (p / "ops/gate/torch_impl.py").unlink(),
        lambda p: (
            (p / "ops/gate/further/deeper").mkdir(parents=True) or (p / "ops/gate/further/deeper/new.py").write_text("")
        ),
    ],
)
def test_moving_renaming_adding_and_removing_do_too(change: Callable[[Path], object], tmp_path: Path) -> None:
    package = copied(tmp_path)
    change(package)
    assert source_digest(package) != source_digest(PACKAGE)


def test_sub_folders_are_covered() -> None:
    """The test above is of all the files there are."""
    assert {"ops/gate/torch_impl.py", "ops/dispatch/registry.py", "kernels/gate.py"} <= set(map(Path.as_posix, SOURCES))
