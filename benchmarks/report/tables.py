"""The tables of a report on one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean
from typing import NamedTuple

from benchmarks.harness.result import Candidate, Case, Key, Quartiles, Result
from benchmarks.kernels.table import KernelTable, by_kernel
from benchmarks.report.growth import Curve, exponent
from benchmarks.report.page import Marked, Table
from benchmarks.report.units import milliseconds, significant, times, with_prefix

#: Ratios below this are reported as losses.
BELOW = 0.97

Row = list[str | Marked]


class Match(NamedTuple):
    """A case against its strongest alternative: ratio of theirs over ours, and both times in milliseconds."""

    key: Key
    alternative: str
    ratio: Quartiles
    ours: Quartiles
    theirs: Quartiles


def matches(cases: Sequence[Case]) -> list[Match]:
    """Of every case that has an alternative, the slowest of ours first."""
    found = [
        Match(case.key, name, case.ratio(name), case.time(), case.time(name))
        for case in cases
        if (name := case.strongest)
    ]
    return sorted(found, key=lambda match: match.ratio.median)


def mean_ratio(found: Sequence[Match]) -> float:
    return geometric_mean(match.ratio.median for match in found)


def operators(result: Result) -> Table:
    """Of each operator the geometric mean, and its best and worst case."""
    rows: list[Row] = []
    for operator, cases in result.operators.items():
        found = matches(cases)
        first: Row = [operator, str(len(cases)), f"{significant(mean_ratio(found))}×" if found else ""]
        ends = {"best": found[-1], "worst": found[0]} if len(found) > 1 else dict(zip(["only"], found, strict=False))
        for which, match in ends.items():
            figures: Row = [marked_ratio(match.ratio), milliseconds(match.ours), milliseconds(match.theirs)]
            rows.append([*first, which, *figures, match.alternative, match.key.within_operator])
            first = [""] * 3
        if not found:
            rows.append([*first, *[""] * 6])
    head = "operator,cases,geometric mean,which,ratio,ours in ms,its ms,strongest alternative,case"
    return Table(head.split(","), rows)


def alternatives(cases: Sequence[Case]) -> Table:
    """A row for each alternative of each case, the part that is compared."""
    rows: list[Row] = []
    for case in cases:
        ours: Row = [milliseconds(case.time()), with_prefix(case.ours.peak_bytes), case.ours.form, _throughput(case)]
        first: Row = [case.key.within_operator]
        for name in case.alternatives:
            figures: Row = [milliseconds(case.time(name)), with_prefix(case.candidates[name].peak_bytes)]
            rows.append([*first, name, marked_ratio(case.ratio(name)), *figures, *ours])
            first, ours = [""], [""] * len(ours)
        if not case.alternatives:
            rows.append([*first, "none", "", "", "", *ours])
    head = "case,alternative,ratio,its ms,its memory,ours in ms,our memory,form,throughput"
    return Table(head.split(","), rows)


def _throughput(case: Case) -> str:
    seconds = 1e-3 * case.time().median
    return ", ".join(f"{significant(amount / seconds)} {unit}/s" for unit, amount in case.work.items())


def measurements(cases: Sequence[Case]) -> Table:
    """A row for each part of each candidate."""
    rows: list[Row] = []
    for case in cases:
        label = case.key.within_operator
        for name, candidate in case.candidates.items():
            named, others = (
                f"{name} ({candidate.form})" if candidate.form else name,
                _of_candidate(case, name, candidate),
            )
            for part, time in candidate.milliseconds.items():
                ratio = case.ratios.get(name, {}).get(part)
                rows.append([label, named, part, milliseconds(time), marked_ratio(ratio) if ratio else "", *others])
                label, named, others = "", "", [""] * 3
    return Table(["case", "candidate", "part", "ms", "ratio", "rounds", "memory", "largest error"], rows)


def _of_candidate(case: Case, name: str, candidate: Candidate) -> list[str]:
    errors, rounds = case.errors.get(name), candidate.rounds
    memory = with_prefix(candidate.peak_bytes)
    return ["" if rounds is None else str(rounds), memory, f"{max(errors):.1e}" if errors else ""]


def roofline(result: Result) -> Table:
    """How far ours is from the device's limits."""
    rows: list[Row] = []
    for case in result.cases:
        if bound := case.roofline:
            distance = Quartiles(*(time / bound.milliseconds for time in case.time()))
            intensity = significant(bound.flops / bound.bytes) if bound.bytes else ""
            figures = [times(distance), milliseconds(case.time()), significant(bound.milliseconds)]
            amounts = [with_prefix(bound.bytes), f"{bound.flops:.3g}", intensity]
            rows.append([str(case.key), bound.bound_by, *figures, *amounts])
    head = "case,bound by,times the bound,ours in ms,bound in ms,fewest bytes,FLOP,FLOP per byte"
    return Table(head.split(","), rows)


def growth(curves: Sequence[Curve]) -> Table:
    """Exponents of time and memory along each curve."""
    head = "series,axis,candidate,points,from,to,time grows as,first ms,last ms,memory grows as"
    return Table(head.split(","), [row for curve in curves for row in _growth_rows(curve)])


def _growth_rows(curve: Curve) -> Iterator[Row]:
    first: Row = [curve.name, curve.axis]
    for name in curve.candidates:
        cases = [case for case in curve.cases if name in case.candidates]
        ends = [f"{case.series.value:g}" for case in (cases[0], cases[-1]) if case.series]
        took = [milliseconds(case.time(name)) for case in (cases[0], cases[-1])]
        powers = [power_law(curve.axis, exponent(points)) for points in (curve.times(name), curve.memory(name))]
        yield [*first, name, str(len(cases)), *ends, powers[0], *took, powers[1]]
        first = ["", ""]


def power_law(axis: str, power: float | None) -> str:
    return "" if power is None else f"{axis}^{power:.2f}"


def kernels(table: KernelTable) -> Table:
    """The most that each kernel takes on each GPU, over its configurations and dtypes."""
    rows: list[Row] = []
    for (kernel, architecture), found in by_kernel(table.kernels).items():
        instructions = " ".join(sorted({name for row in found for name in row.tensor_cores.split()}))
        most = _resources(*(max(getattr(row, name) for row in found) for name in ("registers", "shared", "stack")))
        rows.append([kernel, architecture, instructions, str(len(found)), *most])
    return Table(["kernel", "GPU", "PTX", "programs", "registers", "shared memory", "stack"], rows)


def programs(table: KernelTable) -> Table:
    """Each compiled kernel."""
    rows: list[Row] = [
        [row.case, row.tensor_cores, *_resources(row.registers, row.shared, row.stack)] for row in table.kernels
    ]
    return Table(["program", "PTX", "registers", "shared memory", "stack"], rows)


def _resources(registers: int, shared: int, stack: int) -> Row:
    return [str(registers), f"{shared / 1024:.4g} KiB", Marked(f"{stack} B", "worse" if stack else "")]


def unavailable(result: Result) -> dict[tuple[str, str], list[str]]:
    """Operators by candidate that could not run and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in result.cases:
        for name, why in case.unavailable.items():
            reasons.setdefault((name, why), []).append(case.operator)
    return reasons


def marked_ratio(ratio: Quartiles) -> Marked:
    """Marked where ours loses, or wins by more than the spread."""
    return Marked(times(ratio), "worse" if ratio.median < BELOW else "better" if ratio.low > 1 else "")
