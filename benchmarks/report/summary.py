"""What a report says first: where it was measured, how fast ours is beside the strongest alternative, its losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean
from typing import NamedTuple

from benchmarks.harness.result import Case, Key, Quartiles, Result
from benchmarks.report.document import SAME, Block, Bullets, Cell, Heading, Paragraph, Row, Table
from benchmarks.report.units import milliseconds, rate, significant, times

#: Ratios below this are named openly.
BELOW = 0.97


class Match(NamedTuple):
    """A case against its strongest alternative.

    Attributes:
        ratio: time of the alternative over time of ours.
        ours: milliseconds.
        theirs: milliseconds.
    """

    key: Key
    alternative: str
    ratio: Quartiles
    ours: Quartiles
    theirs: Quartiles

    def __str__(self) -> str:
        return (
            f"{self.key}: {times(self.ratio)} against {self.alternative}, which takes {milliseconds(self.theirs)} ms; "
            f"ours takes {milliseconds(self.ours)} ms"
        )


def matches(cases: Sequence[Case]) -> list[Match]:
    """Of every case that has an alternative, the slowest of ours first."""
    found = [
        Match(case.key, name, case.ratio(name), case.time(), case.time(name))
        for case in cases
        if (name := case.strongest)
    ]
    return sorted(found, key=lambda match: match.ratio.median)


def summary(result: Result) -> Iterator[Block]:
    """Title, headline, losses, the operators' table, and the facts of the run."""
    yield Heading(f"fastt2i on {result.device.name}", 1)
    yield Paragraph(facts(result))
    yield from _headline(result)
    yield _operators(result)
    yield Paragraph(
        "A ratio is the time of the alternative over the time of ours: above 1×, ours is faster. Candidates take turns "
        "in every round; a figure is the median of the rounds, with the lower and upper quartile in brackets. Training "
        "is forward and backward together, inference is forward alone. The strongest alternative is the one that is "
        "fastest in that case."
    )
    if limits := measured_limits(result):
        yield Paragraph(limits)


def facts(result: Result) -> str:
    """Commit, date and versions in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in result.device.versions.items())
    changed = " with uncommitted changes" if result.dirty else ""
    measured = result.measured[:16].replace("T", " ") or "unknown date"
    return f"commit {result.commit[:12]}{changed} · {measured} · {versions}"


def measured_limits(result: Result) -> str:
    """What the device was measured to do at best; empty where that is not known."""
    device = result.device
    told = [f"copies {rate(device.copy_bytes_per_second, 'B')}"] if device.copy_bytes_per_second else []
    told += [f"{dtype} matrix products {rate(flops, 'FLOP')}" for dtype, flops in device.flops_per_second.items()]
    return f"Measured limits of the device: {', '.join(told)}." if told else ""


def _headline(result: Result) -> Iterator[Block]:
    found = matches(result.cases)
    if not found:
        yield Paragraph(f"{counted(len(result.cases), 'case')}, none with an alternative that runs here.", "lead")
        return
    worst, best = found[0], found[-1]
    yield Paragraph(
        f"{significant(geometric_mean(match.ratio.median for match in found))}× as fast as the strongest alternative, "
        f"as a geometric mean of {counted(len(found), 'case')} of {counted(len(result.operators), 'operator')}; "
        f"best {significant(best.ratio.median)}×, worst {significant(worst.ratio.median)}×.",
        "lead",
    )
    if alone := len(result.cases) - len(found):
        yield Paragraph(f"{counted(alone, 'more case')} without an alternative that runs here.")
    lost = [match for match in found if match.ratio.median < BELOW]
    if lost:
        yield Paragraph(f"Below {BELOW:g}×, so slower than the strongest alternative, in {counted(len(lost), 'case')}:")
        yield Bullets([str(match) for match in lost])
    else:
        yield Paragraph(f"No case is below {BELOW:g}×.")


def _operators(result: Result) -> Table:
    """Of each operator the mean, and the best and the worst case."""
    head = ["operator", "cases", "geometric mean", "which", "ratio", "ours, ms", "its, ms", "strongest alternative"]
    rows: list[Row] = []
    for operator, cases in result.operators.items():
        found = matches(cases)
        mean = f"{significant(geometric_mean(match.ratio.median for match in found))}×" if found else ""
        first: Row = [operator, str(len(cases)), mean]
        ends = {"best": found[-1], "worst": found[0]} if len(found) > 1 else dict(zip(["only"], found, strict=False))
        for which, match in ends.items():
            figures: Row = [ratio_cell(match.ratio), milliseconds(match.ours), milliseconds(match.theirs)]
            rows.append([*first, which, *figures, match.alternative, match.key.within_operator])
            first = [SAME, SAME, SAME]
        if not found:
            rows.append([*first, *[""] * 6])
    return Table([*head, "case"], rows, words={"operator", "which", "strongest alternative", "case"})


def ratio_cell(ratio: Quartiles) -> Cell:
    """Marked where ours loses, or wins by more than the spread."""
    kind = "worse" if ratio.median < BELOW else "better" if ratio.low > 1 else ""
    return Cell(times(ratio), kind)


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
