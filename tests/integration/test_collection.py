"""Tests that need a GPU can be collected on a machine that has torch and pytest and little else, in a bare checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What a rented machine need not have.
MISSING = ("tyro", "nvidia", "sklearn", "pyarrow", "pydantic", "fastapi", "uvicorn", "selenium")
#: Python runs this first in every process that finds it, pytest's and those that tests start.
BLOCK = f"""
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.mark.quick
def test_what_needs_a_gpu_is_collected_without_the_extras(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-1000:]}"
    assert "::test_" in done.stdout and "error" not in done.stdout.lower()


def test_processes_that_tests_start_find_the_package_in_a_bare_checkout(tmp_path: Path) -> None:
    """The package is made to look as if it were nowhere but in the checkout."""
    (tmp_path / "sitecustomize.py").write_text(
        """
import importlib.metadata, sys
sys.path[:] = [p for p in sys.path if "fastt2i" not in p and "editable" not in p.lower()]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
def version(name, own=importlib.metadata.version):
    if name == "fastt2i":
        raise importlib.metadata.PackageNotFoundError(name)
    return own(name)
importlib.metadata.version = version
"""
    )
    (tmp_path / "test_child.py").write_text(
        "import subprocess, sys\n"
        "def test_a_child() -> None:\n"
        "    subprocess.run([sys.executable, '-c', 'import fastt2i'], check=True, cwd='/')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", "import fastt2i"], cwd="/", env=environment, capture_output=True)
    assert found.returncode != 0, "the package is still found, and this test shows nothing"
    command = [sys.executable, "-m", "pytest", str(tmp_path / "test_child.py"), "-q", "-p", "no:cacheprovider"]
    for plugin, passes in (["-p", "tests.conftest"], True), ([], False):
        done = subprocess.run(
            [*command, *plugin, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode == 0) == passes, done.stdout
