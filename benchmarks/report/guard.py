"""Whether a change made something slow: ratios of a run of the benchmark suite against the bounds that are committed.

    python -m benchmarks.report.guard RESULT.json [--bounds FILE]

A ratio, the time of another over the time of ours in the same run, fails when it is below its bound by more than the
spread between its quartiles. The bounds are far below what was measured: they catch what is broken, on any machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.json_files import read_json
from benchmarks.harness.result import Key, Quartiles, Result, read_result
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


@dataclass(frozen=True)
class Bounds:
    """The file of the bounds."""

    bounds: tuple[Bound, ...]


@dataclass(frozen=True)
class Verdict:
    """A bound with the ratio that a run has of it; None where it has no such case."""

    bound: Bound
    ratio: Quartiles | None

    @property
    def holds(self) -> bool:
        """Whether the ratio is there, and no lower than the bound by more than its spread."""
        ratio = self.ratio
        return ratio is not None and ratio.median + (ratio.high - ratio.low) >= self.bound.least

    def __str__(self) -> str:
        what = f"{self.bound.key} against {self.bound.against}"
        if self.ratio is None:
            return f"MISSING  {what}"
        low, median, high = self.ratio
        told = f"{median:.2f}x ({low:.2f} to {high:.2f}), at least {self.bound.least:.2f}x"
        return f"{'holds' if self.holds else 'TOO SLOW':8} {what}: {told}"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.report.guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="what a run of the benchmark suite wrote")
    parser.add_argument("--bounds", type=Path, default=BOUNDS, metavar="FILE", help="JSON with the bounds")
    arguments = parser.parse_args(argv)
    return run(lambda: _main(arguments.result, arguments.bounds))


def _main(result: Path, bounds: Path) -> int:
    verdicts = list(judge(read_result(result), read_bounds(bounds)))
    print("\n".join(map(str, verdicts)))
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def read_bounds(path: Path) -> tuple[Bound, ...]:
    """Bounds from a file.

    Raises:
        UserError: it is none, or an entry is wrong.
    """
    return read_json(path, Bounds, "bounds of the benchmark suite").bounds


def judge(result: Result, bounds: Sequence[Bound]) -> Iterator[Verdict]:
    """Each bound with the ratio that the run has of it."""
    cases = {case.key: case for case in result.cases}
    for bound in bounds:
        case = cases.get(bound.key)
        yield Verdict(bound, case.ratio(bound.against) if case and bound.against in case.ratios else None)


if __name__ == "__main__":
    sys.exit(main())
