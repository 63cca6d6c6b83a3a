"""The report of a run of the benchmark suite, the comparison of two runs, and the committed results.

    python -m benchmarks.report RESULT.json --out DIR
    python -m benchmarks.report --compare A.json B.json [--out DIR]
    python -m benchmarks.report RESULT.json --keep

RESULT.json is what `python -m pytest benchmarks --benchmark-only --benchmark-json=RESULT.json` writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.result import read_result
from benchmarks.kernels.table import RESULTS, ROOT, committed_tables
from benchmarks.report.compare import comparison
from benchmarks.report.content import report
from benchmarks.report.readme import keep, rewrite_readme
from fastt2i.cli import run

README = ROOT / "README.md"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", type=Path, nargs="?", help="what a run of the benchmark suite wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page, the Markdown and the pictures")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="tell what changed from A to B")
    parser.add_argument("--keep", action="store_true", help="copy what is to be committed, and rewrite README's part")
    arguments = parser.parse_args(argv)
    if bool(arguments.result) == bool(arguments.compare):
        parser.error("name a result, or --compare A B")
    if arguments.result and not (arguments.out or arguments.keep):
        parser.error("a result needs --out DIR or --keep")
    return run(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        document = comparison(*map(read_result, arguments.compare))
        print(document.markdown(), end="")
        if arguments.out:
            document.write(arguments.out, "compare", "compare")
        return 0
    if arguments.out:
        report(read_result(arguments.result), committed_tables(RESULTS)).write(arguments.out, "report", "index")
    if arguments.keep:
        print(f"kept as {keep(arguments.result, RESULTS)}")
        rewrite_readme(README, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
