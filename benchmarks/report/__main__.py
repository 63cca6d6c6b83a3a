"""The report of a run of the perf suite: a page, Markdown and pictures; what a change did; and the committed results.

    python -m benchmarks.report RESULT.json --out DIR [--kernels FILE ...]
    python -m benchmarks.report --compare A.json B.json [--out DIR]
    python -m benchmarks.report RESULT.json --keep
    python -m benchmarks.report --readme README.md

RESULT.json is what `python -m pytest benchmarks --benchmark-only --benchmark-json=RESULT.json` writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.harness.result import read_result
from benchmarks.kernels.table import RESULTS, ROOT, committed_tables, read_table
from benchmarks.report.compare import comparison
from benchmarks.report.document import Block, markdown, pictures
from benchmarks.report.page import page
from benchmarks.report.readme import keep, rewrite_readme
from benchmarks.report.tables import content
from fastt2i.cli import run
from fastt2i.errors import UserError


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
    parser.add_argument("result", type=Path, nargs="?", help="what a run of the perf suite wrote")
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
        a, b = arguments.compare
        _compare(a, b, arguments.out)
    elif arguments.result and arguments.out:
        _report(arguments.result, arguments.out, arguments.kernels, arguments.results)
    if arguments.result and arguments.keep:
        print(f"kept as {keep(arguments.result, arguments.results)}")
    if arguments.readme or arguments.keep:
        rewrite_readme(arguments.readme or ROOT / "README.md", arguments.results)
    return 0


def _report(path: Path, out: Path, kernels: Sequence[Path] | None, results: Path) -> None:
    result = read_result(path)
    tables = [read_table(file) for file in kernels] if kernels else committed_tables(results)
    _write(out, "index.html", "report.md", f"fastt2i on {result.device.name}", list(content(result, tables)))


def _compare(a: Path, b: Path, out: Path | None) -> None:
    blocks = list(comparison(read_result(a), read_result(b)))
    print(markdown(blocks), end="")
    if out:
        _write(out, "compare.html", "compare.md", "What a change did", blocks)


def _write(out: Path, html: str, text: str, title: str, blocks: Iterable[Block]) -> None:
    blocks = list(blocks)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / html).write_text(page(title, blocks), encoding="utf-8")
        (out / text).write_text(markdown(blocks), encoding="utf-8")
        for picture in pictures(blocks):
            (out / f"{picture.name}.png").write_bytes(picture.png)
    except OSError as error:
        raise UserError(f"the report cannot be written to {out}: {error.strerror}") from error
    print(f"wrote {out / html} and {out / text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
