"""The plots of a report: speed-ups, memory, roofline, distance from the bound, growth."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING, Any

from benchmarks.harness.result import OURS, Case, Quartiles, Result
from benchmarks.report.growth import Curve, Point
from benchmarks.report.page import TEMPLATES, Plot
from benchmarks.report.units import significant, with_prefix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Stands for the colour of the text around a plot, in the style sheet too; nothing else is drawn in it.
INK = "#010203"
#: Legible on white and on near black.
COLOURS = {OURS: "#2f7fd6", "reference": "#d9822b", "torch.compile": "#8e63ce"}
OTHERS = ("#3a9d5d", "#c94f7c", "#7a8a99", "#b59a2c", "#2aa5a5")
MARKERS = "osD^vP*X<>"
#: Inches. A phone shows a plot at nearly its own size.
WIDTH, LINE, GAP = 4.7, 0.165, 0.12

Bars = Mapping[str, Mapping[str, Quartiles]]
Write = Callable[[float], str]


def speed_up(operator: str, cases: Sequence[Case]) -> Plot | None:
    """Bars of time of each alternative over time of ours, with quartiles as whiskers."""
    bars = {c.key.within_operator: {name: c.ratio(name) for name in c.alternatives} for c in cases if c.alternatives}
    values = [1.0, *(value for group in bars.values() for ratio in group.values() for value in ratio)]
    span = max(values) / min(values) + 0.5

    def scale(axes: Axes) -> None:
        axes.set_xlabel("times as fast as the alternative (right of 1: faster); whiskers: quartiles")
        axes.set(xscale="log", xlim=(min(values) / span**0.14, max(values) * span**0.16))
        _log_ticks(axes.xaxis, lambda ratio, _: f"{ratio:g}×")

    what = f"speed-up of {operator}"
    return _bars(bars, what, " over each alternative", scale, 1.0, lambda ratio: f"{significant(ratio)}×")


def memory(operator: str, cases: Sequence[Case]) -> Plot | None:
    """Bars of the peak memory of ours and the alternatives; None where it was not measured."""
    bars = {}
    for case in cases:
        peaks = {name: case.candidates[name].peak_bytes for name in (OURS, *case.alternatives)}
        if group := {name: Quartiles(*[float(peak)] * 3) for name, peak in peaks.items() if peak is not None}:
            bars[case.key.within_operator] = group

    def scale(axes: Axes) -> None:
        axes.set_xlim(0, 1.22 * max([peak.median for group in bars.values() for peak in group.values()]) or 1.0)
        axes.xaxis.set_major_formatter(lambda value, _: with_prefix(value) if value else "0")
        axes.set_xlabel("peak memory (shorter is better)")

    return _bars(bars, f"peak memory of {operator}", "", scale, 0.0, with_prefix)


def roofline(result: Result) -> Plot | None:
    """Achieved rate over arithmetic intensity, under the measured roofs; None without bounds or limits."""
    peaks, bandwidth = result.device.flops_per_second, result.device.copy_bytes_per_second
    found = [(case, case.roofline) for case in result.cases if case.roofline]
    points = {
        case.key: (bound.flops / bound.bytes, bound.flops / (1e-3 * case.time().median))
        for case, bound in found
        if bound.bytes and bound.flops
    }
    if not points or not bandwidth or not peaks:
        return None
    markers = dict(zip(dict.fromkeys(key.operator for key in points), cycle(MARKERS), strict=False))
    colours = _colours([*peaks, *(key.dtype for key in points)])
    intensities = [x for x, _ in points.values()] + [peak / bandwidth for peak in peaks.values()]
    span = (min(intensities) / 2, 3 * max(intensities))
    rates = [with_prefix(f(y for _, y in points.values()), "FLOP/s") for f in (min, max)]
    alt = (
        f"Roofline of {result.device.name}: {len(points)} cases, from {' to '.join(rates)}, "
        "under the measured rates of copies and matrix products"
    )

    def draw(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log", xlim=span, xlabel="FLOP per byte of the fewest bytes")
        for dtype, peak in peaks.items():
            line = [(x, min(x * bandwidth, peak)) for x in (span[0], peak / bandwidth, span[1])]
            axes.plot(*zip(*line, strict=True), color=colours[dtype], linewidth=1.4, label=f"measured roof, {dtype}")
        for key, point in points.items():
            axes.plot(*point, markers[key.operator], color=colours[key.dtype], markersize=5, alpha=0.85)
        _log_ticks(axes.xaxis, lambda value, _: f"{value:g}")
        _log_ticks(axes.yaxis, lambda flops, _: with_prefix(flops, "FLOP/s"))
        for operator, marker in markers.items():
            axes.plot([], [], marker, color=INK, markersize=5, label=operator)

    caption = "Roofline: what ours achieves of the operations that are needed, under the device's measured limits"
    return _plot("roofline", alt, caption, 4.2, draw, columns=2)


def distance(result: Result) -> Plot | None:
    """Times of ours and of the strongest alternative over the roofline's, a line for each operator and dtype."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for case in result.cases:
        if case.roofline:
            label, bound = f"{case.operator} {case.dtype}".strip(), case.roofline.milliseconds
            ours.setdefault(label, []).append(case.time().median / bound)
            strongest = [case.time(case.strongest).median / bound] if case.strongest else []
            theirs.setdefault(label, []).extend(strongest)
    if not ours:
        return None
    alt = "Times the bound, ours. " + "; ".join(
        f"{label}: {significant(min(values))} to {significant(max(values))}" for label, values in ours.items()
    )

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.axvline(1, color=INK, linewidth=0.9)
        kinds = ((OURS, ours, -0.15, COLOURS[OURS], None), ("strongest alternative", theirs, 0.15, OTHERS[2], "none"))
        for name, times, shift, colour, fill in kinds:
            x = [value for values in times.values() for value in values]
            y = [row + shift for row, values in enumerate(times.values()) for _ in values]
            axes.plot(x, y, "o", color=colour, mfc=fill, markersize=4.5, label=name)
        _log_ticks(axes.xaxis, lambda ratio, _: f"{ratio:g}×")
        axes.set_yticks(range(len(ours)), list(ours))
        axes.set_ylim(len(ours) - 0.5, -0.5)
        axes.set_xlabel("times the bound (1: the device allows no less)")

    return _plot("distance", alt, "Distance from the bound: each dot is a case", 0.9 + 0.3 * len(ours), draw)


def growth(place: int, curve: Curve) -> list[Plot]:
    """Time, and memory where it was measured, along the axis of a curve; place: of the curve among the others."""
    plots = [_growth(f"growth-{place}-time", curve, "time", "ms", {n: curve.times(n) for n in curve.candidates})]
    peaks = {name: [(x, y / 1e6) for x, y in curve.memory(name)] for name in curve.candidates}
    if len(peaks[OURS]) > 1:
        plots.append(_growth(f"growth-{place}-memory", curve, "peak memory", "MB", peaks))
    return plots


def _growth(name: str, curve: Curve, what: str, unit: str, lines: Mapping[str, Sequence[Point]]) -> Plot:
    powers = {candidate: curve.power_law(points) for candidate, points in lines.items()}
    labels = {candidate: f"{candidate}: {power}" if power else candidate for candidate, power in powers.items()}
    alt = f"Growth of {what} with {curve.axis}: {curve.name}. " + "; ".join(
        f"{labels[candidate]}, " + ", ".join(f"{x:g}: {significant(y)} {unit}" for x, y in points)
        for candidate, points in lines.items()
    )
    colours = _colours(lines)

    def draw(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log", xlabel=curve.axis, ylabel=f"{what}, {unit}")
        for candidate, points in lines.items():
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colours[candidate], ms=4, label=labels[candidate])
        _log_ticks(axes.yaxis, lambda value, _: f"{value:g}")
        axes.minorticks_off()
        places = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(places, [f"{x:g}" for x in places])

    return _plot(name, alt, f"{curve.name}: {what}", 3.2, draw, columns=1)


def _colours(names: Iterable[str]) -> dict[str, str]:
    left = cycle(OTHERS)
    return {name: COLOURS.get(name) or next(left) for name in dict.fromkeys(names)}


def _bars(bars: Bars, what: str, more: str, scale: Callable[[Axes], None], start: float, write: Write) -> Plot | None:
    """Horizontal bars in groups, the group's label above them, from the top down in units of inches; None of none.

    Args:
        what: is shown; with `more`, the caption.
    """
    if not bars:
        return None
    by_name: dict[str, list[tuple[float, Quartiles]]] = {}
    labels, y = {}, 0.0
    for label, group in bars.items():
        labels[y] = textwrap.wrap(label, 62)
        y += LINE * len(labels[y])
        for name, value in group.items():
            by_name.setdefault(name, []).append((y + LINE / 2, value))
            y += LINE
        y += GAP
    told = [f"{name}: {_range([value.median for _, value in places], write)}" for name, places in by_name.items()]
    colours = _colours(by_name)

    def draw(axes: Axes) -> None:
        scale(axes)
        for top, lines in labels.items():
            axes.text(0, top, "\n".join(lines), transform=axes.get_yaxis_transform(), va="top", fontsize=7.5)
        axes.axvline(start, color=INK, linewidth=0.9)
        for name, places in by_name.items():
            middles, values = zip(*places, strict=True)
            whiskers = [[v.median - v.low for v in values], [v.high - v.median for v in values]]
            drawn = axes.barh(
                middles,
                [v.median - start for v in values],
                LINE * 0.8,
                left=start,
                xerr=whiskers if any(map(any, whiskers)) else None,
                error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2},
                color=colours[name],
                label=name,
            )
            axes.bar_label(drawn, [write(v.median) for v in values], padding=3, fontsize=7)
        axes.set_ylim(y, 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)

    alt = f"Bars: {what} in {len(bars)} cases. {'; '.join(told)}"
    name = what.removeprefix("peak ").replace(" of ", "-", 1)
    return _plot(name, alt, f"{what[0].upper()}{what[1:]}{more}", 0.85 + y, draw)


def _range(values: Sequence[float], write: Write) -> str:
    """The least and the most."""
    return write(min(values)) + (f" to {write(max(values))}" if len(values) > 1 else "")


def _log_ticks(axis: Any, write: Callable[[float, Any], str]) -> None:
    """Round numbers on a logarithmic axis: every 1, 2 and 5, or as on a linear axis where that would be too few."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    few = LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,))
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]) if high < 5 * low else few)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(write)


def _plot(name: str, alt: str, caption: str, height: float, draw: Callable[[Axes], None], columns: int = 3) -> Plot:
    # Imported here: the guard and the README's table need no plots. A Figure of its own needs no display.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": name}, TEMPLATES / "plots.mplstyle"):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        columns = columns if len(axes.get_legend_handles_labels()[1]) <= 3 else min(columns, 2)
        figure.legend(loc="outside upper left", ncols=columns, fontsize=7.5, handlelength=1.4, columnspacing=1.2)
        png = _saved(figure, "png", dpi=160, facecolor="white", metadata={"Software": None})
        svg = _saved(figure, "svg", transparent=True, metadata={"Date": None}).decode()
        return Plot(re.sub(r"[^\w-]+", "-", name), alt, caption, _for_a_page(svg, alt), png)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, **options)
    return file.getvalue()


def _for_a_page(svg: str, alt: str) -> str:
    """For the inside of a page: no addresses, no names that two plots could share, the text's own colour."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace(INK, "currentColor").strip()
