"""What a change did: two runs of the perf suite, case by case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean

from benchmarks.harness.result import Case, Quartiles, Result
from benchmarks.report.document import Block, Bullets, Cell, Heading, Paragraph, Row, Table
from benchmarks.report.summary import facts
from benchmarks.report.units import milliseconds, significant, times


def comparison(a: Result, b: Result) -> Iterator[Block]:
    """What became of A's cases in B: times, and ratios against each alternative."""
    yield Heading("What a change did", 1)
    yield Bullets([f"{name}: {run.device.name} · {facts(run)}" for name, run in (("A", a), ("B", b))])
    yield from _differences(a, b)
    before = {case.key: case for case in a.cases}
    pairs = [(before[case.key], case) for case in b.cases if case.key in before]
    if not pairs:
        yield Paragraph("The two have no case in common.", "warning")
    else:
        yield from _tables(pairs)
    for name, only, other in (("A", a, b), ("B", b, a)):
        known = {case.key for case in other.cases}
        if missing := [str(case.key) for case in only.cases if case.key not in known]:
            yield Heading(f"Only in {name}", 2)
            yield Bullets(missing)


def _differences(a: Result, b: Result) -> Iterator[Block]:
    if a.device.slug != b.device.slug:
        yield Paragraph(
            f"A was measured on {a.device.name} and B on {b.device.name}: this shows two devices, not a change.",
            "warning",
        )
    names = dict.fromkeys((*a.device.versions, *b.device.versions))
    changed = [
        f"{name} {a.device.versions.get(name, 'none')} and {b.device.versions.get(name, 'none')}"
        for name in names
        if a.device.versions.get(name) != b.device.versions.get(name)
    ]
    if changed:
        yield Paragraph(f"A and B had different versions: {'; '.join(changed)}.", "warning")


def _tables(pairs: Sequence[tuple[Case, Case]]) -> Iterator[Block]:
    changes = [verdict(a.time(), b.time(), more_is_better=False) for a, b in pairs]
    mean = geometric_mean(a.time().median / b.time().median for a, b in pairs)
    yield Paragraph(
        f"B is {significant(mean)}× as fast as A, as a geometric mean of {len(pairs)} cases; by more than the spread, "
        f"{changes.count('better')} are faster and {changes.count('worse')} slower.",
        "lead",
    )
    yield Paragraph(
        "A change is marked where the middle halves of the rounds in A and B share no value. Times of two runs differ "
        "by the machine's state too; both sides of a ratio are of one run, so ratios tell more."
    )
    yield Heading("Time of ours")
    head = ["case", "change", "A / B", "A, ms", "B, ms"]
    yield Table(head, [_time_row(a, b) for a, b in pairs], words={"case", "change"})
    rows = [_ratio_row(a, b, name) for a, b in pairs for name in a.alternatives if name in b.alternatives]
    if rows:
        yield Heading("Ratio against each alternative")
        head = ["case", "alternative", "change", "B / A", "ratio in A", "ratio in B", "its ms in A", "its ms in B"]
        yield Table(head, rows, words={"case", "alternative", "change"})


def verdict(a: Quartiles, b: Quartiles, *, more_is_better: bool) -> str:
    """`better` or `worse` where A and B differ by more than their spread, else empty."""
    if a.overlaps(b):
        return ""
    return "better" if (b.median > a.median) == more_is_better else "worse"


def _time_row(a: Case, b: Case) -> Row:
    kind = verdict(a.time(), b.time(), more_is_better=False)
    word = {"better": "faster", "worse": "slower", "": ""}[kind]
    ratio = Cell(f"{significant(a.time().median / b.time().median)}×", kind)
    return [str(a.key), Cell(word, kind), ratio, milliseconds(a.time()), milliseconds(b.time())]


def _ratio_row(a: Case, b: Case, name: str) -> Row:
    old, new = a.ratio(name), b.ratio(name)
    kind = verdict(old, new, more_is_better=True)
    change = Cell(f"{significant(new.median / old.median)}×", kind)
    figures = [times(old), times(new), milliseconds(a.time(name)), milliseconds(b.time(name))]
    return [str(a.key), name, Cell(kind, kind), change, *figures]
