"""What a report of one run holds, for its template."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from benchmarks.harness.result import Case, Quartiles, Result
from benchmarks.kernels.table import KernelTable, by_kernel
from benchmarks.report import plots
from benchmarks.report.growth import curves
from benchmarks.report.page import Document

#: Ratios below this are reported as losses.
BELOW = 0.97


def report(result: Result, kernels: Sequence[KernelTable]) -> Document:
    """Of a run, and of the kernels as some versions of Triton compile them."""
    series = curves(result)
    content = {
        "result": result,
        "facts": facts(result),
        "compared": compared,
        "ends": ends,
        "below": BELOW,
        "mean_ratio": mean_ratio,
        "kind": kind,
        "speed_up": plots.speed_up,
        "memory": plots.memory,
        "distance_plot": plots.distance(result),
        "roofline_plot": plots.roofline(result),
        "curves": series,
        "growth_plots": [plot for place, curve in enumerate(series, 1) for plot in plots.growth(place, curve)],
        "kernels": kernels,
        "by_kernel": by_kernel,
        "unavailable": unavailable(result),
    }
    return Document("report.md.jinja", f"fastt2i on {result.device.name}", content)


def compared(cases: Sequence[Case]) -> list[Case]:
    """Those that have an alternative, the slowest of ours against the strongest one first."""
    found = [case for case in cases if case.alternatives]
    return sorted(found, key=lambda case: case.ratio(case.strongest).median)


def ends(found: Sequence[Case]) -> list[tuple[str, Case]]:
    """Best and worst of what `compared` gives."""
    return [("best", found[-1]), ("worst", found[0])] if len(found) > 1 else [("only", case) for case in found]


def mean_ratio(cases: Sequence[Case]) -> float:
    """Geometric mean against the strongest alternatives."""
    return geometric_mean(case.ratio(case.strongest).median for case in cases)


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
