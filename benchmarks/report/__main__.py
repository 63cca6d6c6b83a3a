"""The report of a run of the benchmark suite, the comparison of two runs, and the committed results.

    python -m benchmarks.report RESULT.json --out DIR [--kernels FILE ...]
    python -m benchmarks.report --compare A.json B.json [--out DIR]
    python -m benchmarks.report RESULT.json --keep
    python -m benchmarks.report --readme README.md

RESULT.json is what `python -m pytest benchmarks --benchmark-only --benchmark-json=RESULT.json` writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.result import read_result
from benchmarks.kernels.table import RESULTS, ROOT, committed_tables, read_table
from benchmarks.report.compare import comparison
from benchmarks.report.content import report
from benchmarks.report.readme import keep, rewrite_readme
from fastt2i.cli import run


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    arguments = _parse(argv)
    return run(lambda: _main(arguments))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", type=Path, nargs="?", help="what a run of the benchmark suite wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page, the Markdown and the pictures")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="tell what changed from A to B")
    parser.add_argument(
        "--keep", action="store_true", help="copy what is to be committed, and rewrite the README's part"
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="rewrite this README's part from committed results")
    parser.add_argument(
        "--kernels", type=Path, nargs="+", metavar="FILE", help="tables of benchmarks.kernels.compile_all"
    )
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS, help="folder of the committed results")
    arguments = parser.parse_args(argv)
    if not (arguments.result or arguments.compare or arguments.readme):
        parser.error("name a result, or --compare A B, or --readme FILE")
    if arguments.result and not (arguments.out or arguments.keep):
        parser.error("a result needs --out DIR or --keep")
    if arguments.result and arguments.compare:
        parser.error("--compare takes its two results itself")
    return arguments


def _main(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        document = comparison(*map(read_result, arguments.compare))
        print(document.markdown(), end="")
        if arguments.out:
            document.write(arguments.out, "compare", "compare")
    elif arguments.result and arguments.out:
        tables = [read_table(file) for file in arguments.kernels or ()] or committed_tables(arguments.results)
        report(read_result(arguments.result), tables).write(arguments.out, "report", "index")
    if arguments.result and arguments.keep:
        print(f"kept as {keep(arguments.result, arguments.results)}")
    if arguments.readme or arguments.keep:
        rewrite_readme(arguments.readme or ROOT / "README.md", arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
