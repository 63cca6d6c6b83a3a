"""What a report of one run holds, for its template."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean
from typing import NamedTuple

from benchmarks.harness.result import Case, Key, Quartiles, Result
from benchmarks.kernels.table import KernelTable, by_kernel
from benchmarks.report import plots
from benchmarks.report.growth import curves
from benchmarks.report.page import Document

#: Ratios below this are reported as losses.
BELOW = 0.97


class Match(NamedTuple):
    """A case against its strongest alternative: ratio of theirs over ours, and both times in milliseconds."""

    key: Key
    alternative: str
    ratio: Quartiles
    ours: Quartiles
    theirs: Quartiles


class Operator(NamedTuple):
    """The cases of an operator, their matches and its pictures."""

    name: str
    cases: Sequence[Case]
    found: Sequence[Match]
    speed_up: plots.Plot | None
    memory: plots.Plot | None

    @property
    def ends(self) -> list[tuple[str, Match]]:
        """Best and worst."""
        if len(self.found) < 2:
            return [("only", match) for match in self.found]
        return [("best", self.found[-1]), ("worst", self.found[0])]


def report(result: Result, kernels: Sequence[KernelTable]) -> Document:
    """Of a run, and of the kernels as some versions of Triton compile them."""
    found, series = matches(result.cases), curves(result)
    content = {
        "result": result,
        "facts": facts(result),
        "found": found,
        "below": BELOW,
        "mean_ratio": mean_ratio,
        "kind": kind,
        "operators": [
            Operator(name, cases, matches(cases), plots.speed_up(name, cases), plots.memory(name, cases))
            for name, cases in result.operators.items()
        ],
        "distance_plot": plots.distance(result),
        "roofline_plot": plots.roofline(result),
        "curves": series,
        "growth_plots": [plot for place, curve in enumerate(series, 1) for plot in plots.growth(place, curve)],
        "kernels": kernels,
        "by_kernel": by_kernel,
        "unavailable": unavailable(result),
    }
    return Document("report.md.jinja", f"fastt2i on {result.device.name}", content)


def matches(cases: Sequence[Case]) -> list[Match]:
    """Of every case that has an alternative, the slowest of ours first."""
    found = [
        Match(case.key, name, case.ratio(name), case.time(), case.time(name))
        for case in cases
        if (name := case.strongest)
    ]
    return sorted(found, key=lambda match: match.ratio.median)


def mean_ratio(found: Sequence[Match]) -> float:
    """Geometric mean."""
    return geometric_mean(match.ratio.median for match in found)


def kind(ratio: Quartiles) -> str:
    """`worse` where ours loses, `better` where it wins by more than the spread."""
    return "worse" if ratio.median < BELOW else "better" if ratio.low > 1 else ""


def facts(result: Result) -> str:
    """Commit, date and versions in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in result.device.versions.items())
    changed = " with uncommitted changes" if result.dirty else ""
    measured = result.measured[:16].replace("T", " ") or "unknown date"
    return f"commit {result.commit[:12]}{changed} · {measured} · {versions}"


def unavailable(result: Result) -> dict[tuple[str, str], list[str]]:
    """Operators by candidate that could not run and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in result.cases:
        for name, why in case.unavailable.items():
            reasons.setdefault((name, why), []).append(case.operator)
    return reasons
