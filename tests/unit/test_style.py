"""What can be counted of how the code is to be: short functions, small files, and names of files that tell."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FUNCTION_LINES, FILE_LINES = 60, 400
#: Names that several files may have, for they mean the same in each.
SHARED_NAMES = {
    *("__init__", "__main__", "conftest"),
    *("functional", "reference", "torch_impl", "triton_ops", "implementations"),  # the parts of every operator
    *("gate", "gated_conv", "region_keyword"),  # an operator's kernel, its operations, its modules
    "checks",  # of an operator's arguments
    "registry",  # what is found under a name: implementations of operators, formats of data
    "shapes",  # the data set that is drawn: its pictures, and the source that reads it
}


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_relative_to(ROOT / "fastt2i" / "kernels"):  # a link, if any walk follows it
                yield path


def lines_of_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{path.relative_to(ROOT)}: {node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_long() -> None:
    """A kernel may be: what it does at once is not to be torn apart."""
    files = list(python_files("fastt2i", "benchmarks", "tests", "examples"))
    assert len(files) > 200
    lines = dict(found for path in files for found in lines_of_functions(path))
    assert {name: n for name, n in lines.items() if n > FUNCTION_LINES} == {}


def test_no_file_is_long() -> None:
    files = python_files("fastt2i", "benchmarks", "tests", "examples")
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: n for name, n in lines.items() if n > FILE_LINES} == {}


def test_files_of_one_name_mean_the_same() -> None:
    found = defaultdict(list)
    for path in python_files("fastt2i", "kernels", "benchmarks"):
        found[path.stem].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SHARED_NAMES} == {}
