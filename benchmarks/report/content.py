"""What a report of one run holds, for its template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.result import Case, Result
from benchmarks.kernels.table import KernelTable
from benchmarks.report import plots, tables
from benchmarks.report.growth import curves
from benchmarks.report.page import Document
from benchmarks.report.units import with_prefix


def report(result: Result, kernels: Sequence[KernelTable]) -> Document:
    """Of a run, and of the kernels as some versions of Triton compile them."""
    found, series = tables.matches(result.cases), curves(result)
    content = {
        "result": result,
        "facts": facts(result),
        "found": found,
        "mean": tables.mean_ratio(found) if found else None,
        "below": tables.BELOW,
        "lost": [match for match in found if match.ratio.median < tables.BELOW],
        "operators": tables.operators(result),
        "limits": _limits(result),
        "sections": [_section(operator, cases) for operator, cases in result.operators.items()],
        "roofline": tables.roofline(result),
        "distance_plot": plots.distance(result),
        "roofline_plot": plots.roofline(result),
        "growth": tables.growth(series),
        "growth_plots": [plot for place, curve in enumerate(series, 1) for plot in plots.growth(place, curve)],
        "kernels": [_kernels(table) for table in kernels],
        "unavailable": tables.unavailable(result),
    }
    return Document("report.md.jinja", f"fastt2i on {result.device.name}", content)


def facts(result: Result) -> str:
    """Commit, date and versions in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in result.device.versions.items())
    changed = " with uncommitted changes" if result.dirty else ""
    measured = result.measured[:16].replace("T", " ") or "unknown date"
    return f"commit {result.commit[:12]}{changed} · {measured} · {versions}"


def _limits(result: Result) -> str:
    """What the device was measured to do at best; empty where that is not known."""
    device = result.device
    told = [f"copies {with_prefix(device.copy_bytes_per_second, 'B/s')}"] if device.copy_bytes_per_second else []
    rates = device.flops_per_second.items()
    told += [f"{dtype} matrix products {with_prefix(flops, 'FLOP/s')}" for dtype, flops in rates]
    return f"Measured limits of the device: {', '.join(told)}." if told else ""


def _section(operator: str, cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "operator": operator,
        "speed_up": plots.speed_up(operator, cases),
        "memory": plots.memory(operator, cases),
        "alternatives": tables.alternatives(cases),
        "measurements": tables.measurements(cases),
    }


def _kernels(table: KernelTable) -> dict[str, Any]:
    return {
        "table": table,
        "spilled": [row for row in table.kernels if row.stack],
        "most": tables.kernels(table),
        "programs": tables.programs(table),
    }
