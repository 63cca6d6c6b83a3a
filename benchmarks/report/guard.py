"""Whether a change made something slow: ratios of a run of the benchmark suite against the bounds that are committed.

    python -m benchmarks.report.guard RESULT.json

A ratio, the time of another over the time of ours in the same run, fails when it is below its bound by more than the
spread between its quartiles. The bounds are far below what was measured: they catch what is broken, on any machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.json_files import read_json
from benchmarks.harness.result import Key, Result, read_result
from fastt2i.cli import run

BOUNDS = Path(__file__).parent / "bounds.json"


@dataclass(frozen=True)
class Bound:
    """The least that the time of `against` over the time of ours may be in a case."""

    operator: str
    case: str
    dtype: str
    direction: str
    against: str
    least: float

    @property
    def key(self) -> Key:
        return Key(self.operator, self.case, self.dtype, self.direction)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.report.guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="what a run of the benchmark suite wrote")
    arguments = parser.parse_args(argv)
    return run(lambda: _main(arguments.result))


def _main(path: Path) -> int:
    result = read_result(path)
    verdicts = [judge(bound, result) for bound in read_bounds()]
    print("\n".join(told for _, told in verdicts))
    return 0 if all(holds for holds, _ in verdicts) else 1


def read_bounds() -> tuple[Bound, ...]:
    """Those that are committed."""
    return read_json(BOUNDS, tuple[Bound, ...], "bounds of the benchmark suite")


def judge(bound: Bound, result: Result) -> tuple[bool, str]:
    """Whether a run has the ratio, no lower than its bound by more than its spread; and a line that says so."""
    case = next((case for case in result.cases if case.key == bound.key), None)
    what = f"{bound.key} against {bound.against}"
    if case is None or bound.against not in case.ratios:
        return False, f"MISSING  {what}"
    low, median, high = case.ratio(bound.against)
    holds = median + (high - low) >= bound.least
    told = f"{median:.2f}x ({low:.2f} to {high:.2f}), at least {bound.least:.2f}x"
    return holds, f"{'holds' if holds else 'TOO SLOW':8} {what}: {told}"


if __name__ == "__main__":
    sys.exit(main())
