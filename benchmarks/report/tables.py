"""All that a report of one run says, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.harness.result import Case, Quartiles, Result
from benchmarks.kernels.table import KernelTable
from benchmarks.report import plots as report_pictures
from benchmarks.report.document import SAME, Beside, Block, Bullets, Cell, Details, Heading, Paragraph, Row, Table
from benchmarks.report.growth import Curve, curves, exponent
from benchmarks.report.kernels import compiled_kernels
from benchmarks.report.summary import counted, ratio_cell, summary
from benchmarks.report.units import bytes_of, milliseconds, significant, times


def content(result: Result, tables: Sequence[KernelTable]) -> Iterator[Block]:
    """Of a run, and of the kernels as some versions of Triton compile them."""
    yield from summary(result)
    for operator, cases in result.operators.items():
        yield from _operator(operator, cases)
    yield from _limits(result)
    yield from _growth(curves(result))
    yield from compiled_kernels(tables)
    yield from _unavailable(result)


def _operator(operator: str, cases: Sequence[Case]) -> Iterator[Block]:
    yield Heading(operator)
    pictures = [report_pictures.speed_up(operator, cases)] if any(case.alternatives for case in cases) else []
    if drawn := report_pictures.memory(operator, cases):
        pictures.append(drawn)
    if pictures:
        yield Beside(pictures)
    yield _against_alternatives(cases)
    yield Details(
        f"Every measurement of {operator}: parts, other implementations of ours, errors", [_everything(cases)]
    )


def _against_alternatives(cases: Sequence[Case]) -> Table:
    """A row for each alternative of each case, the part that counts."""
    head = ["case", "alternative", "ratio", "its, ms", "its memory", "ours, ms", "our memory"]
    forms, works = any(case.ours.form for case in cases), any(case.work for case in cases)
    head += ["form"] * forms + ["ours does"] * works
    rows: list[Row] = []
    for case in cases:
        label: str | Cell = case.key.within_operator
        ours: Row = [milliseconds(case.time()), bytes_of(case.ours.peak_bytes)]
        ours = [*ours, *[case.ours.form] * forms, *[_work(case)] * works]
        for name in case.alternatives:
            its = [milliseconds(case.time(name)), bytes_of(case.candidates[name].peak_bytes)]
            rows.append([label, name, ratio_cell(case.ratio(name)), *its, *ours])
            label, ours = SAME, [SAME] * len(ours)
        if not case.alternatives:
            rows.append([label, "none", "", "", "", *ours])
    return Table(head, rows, words={"case", "form", "alternative"})


def _work(case: Case) -> str:
    seconds = 1e-3 * case.time().median
    return ", ".join(f"{significant(number / seconds)} {unit}/s" for unit, number in case.work.items())


def _everything(cases: Sequence[Case]) -> Table:
    """A row for each part of each candidate."""
    head = ["case", "candidate", "part", "ms", "ratio", "rounds", "memory", "largest error"]
    rows: list[Row] = []
    for case in cases:
        label: str | Cell = case.key.within_operator
        for name, candidate in case.candidates.items():
            form = f" ({candidate.form})" if candidate.form else ""
            errors = case.errors.get(name)
            of_candidate: Row = [
                "" if candidate.rounds is None else str(candidate.rounds),
                bytes_of(candidate.peak_bytes),
                f"{max(errors):.1e}" if errors else "",
            ]
            named: str | Cell = f"{name}{form}"
            for part, time in candidate.milliseconds.items():
                ratio = case.ratios.get(name, {}).get(part)
                rows.append([label, named, part, milliseconds(time), ratio_cell(ratio) if ratio else "", *of_candidate])
                label, named, of_candidate = SAME, SAME, [SAME] * 3
    return Table(head, rows, words={"case", "candidate", "part"})


def _limits(result: Result) -> Iterator[Block]:
    floors = [(case, case.floor) for case in result.cases if case.floor]
    if not floors:
        return
    yield Heading("How far from the limits of the device")
    yield Paragraph(
        "The floor of a case is the larger of two times: moving the fewest bytes at the measured rate of copies, and "
        "doing the fewest operations at the measured rate of matrix products."
    )
    pictures = [report_pictures.floors(result), report_pictures.roofline(result)]
    yield Beside([picture for picture in pictures if picture])
    head = ["case", "bound by", "times the floor", "ours, ms", "floor, ms", "fewest bytes", "FLOP", "FLOP a byte"]
    rows = []
    for case, floor in floors:
        distance = Quartiles(*(time / floor.milliseconds for time in case.time()))
        intensity = significant(floor.flops / floor.bytes) if floor.bytes else ""
        figures = [times(distance), milliseconds(case.time()), significant(floor.milliseconds)]
        amounts = [bytes_of(floor.bytes), f"{floor.flops:.3g}", intensity]
        rows.append([str(case.key), floor.bound_by, *figures, *amounts])
    yield Details("Every floor", [Table(head, rows, words={"case", "bound by"})])


def _growth(found: Sequence[Curve]) -> Iterator[Block]:
    if not found:
        return
    yield Heading("Growth")
    yield Paragraph("Time and peak memory along an axis, with the exponent of the power law that fits best.")
    rows: list[Row] = []
    for place, curve in enumerate(found, 1):
        yield Beside(report_pictures.growth(place, curve))
        rows += _growth_rows(curve)
    head = [
        "series",
        "axis",
        "candidate",
        "points",
        "from",
        "to",
        "time grows as",
        "ms, first",
        "ms, last",
        "memory grows as",
    ]
    yield Table(head, rows, words={"series", "axis", "candidate"})


def _growth_rows(curve: Curve) -> Iterator[Row]:
    first: Row = [curve.name, curve.axis]
    for name in curve.candidates:
        cases = [case for case in curve.cases if name in case.candidates]
        ends = [f"{case.series.value:g}" for case in (cases[0], cases[-1]) if case.series]
        took = [milliseconds(case.time(name)) for case in (cases[0], cases[-1])]
        powers = [_power(curve.axis, exponent(points)) for points in (curve.times(name), curve.memory(name))]
        yield [*first, name, str(len(cases)), *ends, powers[0], *took, powers[1]]
        first = [SAME, SAME]


def _power(axis: str, power: float | None) -> str:
    return "" if power is None else f"{axis}^{power:.2f}"


def _unavailable(result: Result) -> Iterator[Block]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in result.cases:
        for name, why in case.unavailable.items():
            reasons.setdefault((name, why), []).append(case.key.operator)
    if reasons:
        yield Heading("What could not run here")
        yield Bullets(
            [
                f"{name}, in {counted(len(operators), 'case')} of {', '.join(dict.fromkeys(operators))}: {why}"
                for (name, why), operators in reasons.items()
            ]
        )
