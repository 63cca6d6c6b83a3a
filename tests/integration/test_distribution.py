"""The sdist, the wheel, an editable install and a bare checkout all have the same package, kernels included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ["fastt2i", "kernels", "tests", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
SHIPPED += ["CONTRIBUTING.md", "Makefile", "constraints.txt"]
USE = """
import fastt2i, fastt2i.kernels.launch, fastt2i.ops, fastt2i.text.keywords as keywords
assert fastt2i.ops.gate and keywords.load_stop_words("english")
import importlib.util
spec = importlib.util.find_spec("kernels")
assert spec is None or spec.origin is None, spec  # no module of ours goes by that name
print(fastt2i.__file__)
"""


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing behind in this checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout, cwd=checkout)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def sources(folder: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.py")}


def test_the_wheel_holds_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    assert {n for n in names if n.endswith(".py")} == sources("fastt2i") | {f"fastt2i/{n}" for n in sources("kernels")}
    assert {"fastt2i/py.typed", "fastt2i/text/stop_words.txt"} <= names
    assert {n.split("/")[0].split("-")[0] for n in names} == {"fastt2i"}


def test_the_sdist_holds_everything(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = sources("fastt2i") | sources("kernels") | sources("tests") | set(SHIPPED)
    assert expected - names == set()


def test_the_wheel_built_from_the_checkout_is_the_same(
    checkout: Path, distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, checkout, cwd=checkout)
    ours, theirs = zipfile.ZipFile(next(tmp_path.glob("*.whl"))), zipfile.ZipFile(distributions[1])
    assert {i.filename: i.CRC for i in ours.infolist()} == {i.filename: i.CRC for i in theirs.infolist()}


def environment(folder: Path, *what: object) -> Path:
    """Install a package in a virtual environment that also sees what is installed for this one; returns its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (packages / "outer.pth").write_text("\n".join(ours))
    options = ["--no-deps", "--no-build-isolation", "--force-reinstall"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, *what, cwd=folder)
    return python


def used(python: Path | str, cwd: Path) -> Path:
    """Use the package, and return the file that it comes from."""
    return Path(run(python, "-c", USE, cwd=cwd).strip().splitlines()[-1])


def test_the_installed_wheel_works(checkout: Path, distributions: tuple[Path, Path], tmp_path: Path) -> None:
    python = environment(tmp_path, distributions[1])
    assert used(python, cwd=tmp_path).is_relative_to(tmp_path / "venv")
    assert used(python, cwd=checkout).is_relative_to(checkout)
    assert "usage: fastt2i COMMAND" in run(python.parent / "fastt2i", "--help", cwd=tmp_path)


def test_an_editable_install_works(checkout: Path, tmp_path: Path) -> None:
    python = environment(tmp_path, "--editable", checkout)
    assert used(python, cwd=tmp_path).is_relative_to(checkout)
    assert used(python, cwd=checkout).is_relative_to(checkout)


def test_a_bare_checkout_works(checkout: Path) -> None:
    assert used(sys.executable, cwd=checkout).is_relative_to(checkout)


def test_transformers_does_not_take_our_kernels_for_the_library_of_that_name() -> None:
    run(sys.executable, "-c", "import transformers; transformers.BertModel", cwd=ROOT)
