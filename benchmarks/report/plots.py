"""The diagrams of a report: speed-ups, memory, roofline, distance from the floor, growth."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from benchmarks.harness.result import OURS, Case, Quartiles, Result
from benchmarks.report.document import Picture
from benchmarks.report.growth import Curve, Point, exponent
from benchmarks.report.units import bytes_of, rate, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Stands for the colour of the text around a picture; nothing else is drawn in it.
INK = "#010203"
#: Legible on white and on near black.
COLOURS = {OURS: "#2f7fd6", "reference": "#d9822b", "torch.compile": "#8e63ce"}
OTHERS = ("#3a9d5d", "#c94f7c", "#7a8a99", "#b59a2c", "#2aa5a5")
MARKERS = "osD^vP*X<>"
#: Inches. A phone shows a picture at nearly its own size.
WIDTH, LINE, GAP = 4.7, 0.165, 0.12
STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **{"font.size": 8, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.15, "grid.linewidth": 0.6},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False},
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold any sign
}
NICE = [m * 10.0**p for p in range(-6, 17) for m in (1, 1.2, 1.5, 2, 3, 5, 7, 8, 9)]


def speed_up(operator: str, cases: Sequence[Case]) -> Picture:
    """Bars of time of each alternative over time of ours, with quartiles as whiskers."""
    bars = {
        case.key.within_operator: {name: case.ratio(name) for name in case.alternatives}
        for case in cases
        if case.alternatives
    }
    names = _names(bars.values())
    alt = f"Bars: speed-up of {operator} in {len(bars)} cases. " + _ranges(bars, names, lambda x: f"{significant(x)}×")

    def draw(axes: Axes) -> None:
        ratios = [value for group in bars.values() for ratio in group.values() for value in ratio]
        _ratio_axis(axes, [*ratios, 1.0])
        _bars(axes, bars, names, start=1.0, write=lambda ratio: f"{significant(ratio)}×")
        axes.set_xlabel("times as fast as the alternative (right of 1: faster); whiskers: quartiles")

    height = _bars_height(bars)
    return _picture(f"speed-up-{operator}", alt, f"Speed-up of {operator} over each alternative", height, draw)


def memory(operator: str, cases: Sequence[Case]) -> Picture | None:
    """Bars of the peak memory of ours and the alternatives; None where it was not measured."""
    bars = {}
    for case in cases:
        peaks = {name: case.candidates[name].peak_bytes for name in (OURS, *case.alternatives)}
        if group := {name: Quartiles(*[peak / 1e6] * 3) for name, peak in peaks.items() if peak is not None}:
            bars[case.key.within_operator] = group
    if not bars:
        return None
    names = _names(bars.values())
    alt = f"Bars: peak memory of {operator} in {len(bars)} cases. " + _ranges(bars, names, lambda x: bytes_of(1e6 * x))

    def draw(axes: Axes) -> None:
        axes.set_xlim(0, 1.22 * max([peak.median for group in bars.values() for peak in group.values()]) or 1.0)
        _bars(axes, bars, names, start=0.0, write=lambda peak: bytes_of(1e6 * peak))
        axes.set_xlabel("peak memory in MB (shorter is better)")

    return _picture(f"memory-{operator}", alt, f"Peak memory of {operator}", _bars_height(bars), draw)


def roofline(result: Result) -> Picture | None:
    """Achieved rate over arithmetic intensity, under the measured roofs; None without floors or limits."""
    device = result.device
    cases = [case for case in result.cases if case.floor and case.floor.bytes and case.floor.flops]
    if not cases or not device.copy_bytes_per_second or not device.flops_per_second:
        return None
    bandwidth = device.copy_bytes_per_second
    points = {case.key: (case.floor.flops / case.floor.bytes, _achieved(case)) for case in cases if case.floor}
    operators = list(dict.fromkeys(case.key.operator for case in cases))
    colours = _colours([*device.flops_per_second, *(case.key.dtype for case in cases)], OTHERS)
    intensities = [x for x, _ in points.values()] + [peak / bandwidth for peak in device.flops_per_second.values()]
    span = (min(intensities) / 2, 3 * max(intensities))
    rates = sorted(y for _, y in points.values())
    alt = (
        f"Roofline of {device.name}: {len(points)} cases, from {rate(rates[0], 'FLOP')} to {rate(rates[-1], 'FLOP')}, "
        "under the measured rates of copies and matrix products"
    )

    def draw(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log", xlim=span, xlabel="FLOP a byte of the fewest bytes")
        for dtype, peak in device.flops_per_second.items():
            edge = peak / bandwidth
            line = [(span[0], span[0] * bandwidth), (edge, peak), (max(span[1], edge), peak)]
            axes.plot(*zip(*line, strict=True), color=colours[dtype], linewidth=1.4, label=f"measured roof, {dtype}")
        for case in cases:
            marker = MARKERS[operators.index(case.key.operator) % len(MARKERS)]
            axes.plot(*points[case.key], marker, color=colours[case.key.dtype], markersize=5, alpha=0.85)
        low, high = axes.get_ylim()
        _ticks(axes.xaxis, _nice(span[0], span[1], 7))
        _ticks(axes.yaxis, _nice(low, high, 6), lambda flops: rate(flops, "FLOP"))
        for place, operator in enumerate(operators):
            axes.plot([], [], MARKERS[place % len(MARKERS)], color=INK, markersize=5, label=operator)

    caption = "Roofline: what ours achieves of the operations that are needed, under the device's measured limits"
    return _picture("roofline", alt, caption, 4.2, draw, columns=2)


def floors(result: Result) -> Picture | None:
    """Times of ours and of the strongest alternative over the floor, a line for each operator and dtype."""
    groups: dict[str, list[Case]] = {}
    for case in result.cases:
        if case.floor:
            groups.setdefault(" ".join(filter(None, [case.key.operator, case.key.dtype])), []).append(case)
    if not groups:
        return None

    def distance(case: Case, name: str) -> float:
        return case.time(name).median / (case.floor.milliseconds if case.floor else 1.0)

    ours = {label: sorted(distance(case, OURS) for case in cases) for label, cases in groups.items()}
    theirs = {
        label: [distance(case, case.strongest) for case in cases if case.strongest] for label, cases in groups.items()
    }
    alt = "Times the floor, ours. " + "; ".join(
        f"{label}: {significant(values[0])} to {significant(values[-1])}" for label, values in ours.items()
    )

    def draw(axes: Axes) -> None:
        _ratio_axis(axes, [1.0, *(value for group in (*ours.values(), *theirs.values()) for value in group)], room=0.05)
        axes.axvline(1, color=INK, linewidth=0.9)
        for row, label in enumerate(groups):
            axes.plot(
                theirs[label], [row + 0.15] * len(theirs[label]), "o", mfc="none", color=OTHERS[2], markersize=4.5
            )
            axes.plot(ours[label], [row - 0.15] * len(ours[label]), "o", color=COLOURS[OURS], markersize=4.5)
        axes.plot([], [], "o", color=COLOURS[OURS], label=OURS)
        axes.plot([], [], "o", mfc="none", color=OTHERS[2], label="strongest alternative")
        axes.set_yticks(range(len(groups)), list(groups))
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel("times the floor (1: the device allows no less)")

    caption = "Distance from the floor: each dot is a case"
    return _picture("floor", alt, caption, 0.9 + 0.3 * len(groups), draw)


def growth(place: int, curve: Curve) -> list[Picture]:
    """Time, and memory where it was measured, along the axis of a curve; place: of the curve among the others."""
    pictures = [_growth(f"growth-{place}-time", curve, "time", "ms", {n: curve.times(n) for n in curve.candidates})]
    peaks = {name: [Point(x, y / 1e6) for x, y in curve.memory(name)] for name in curve.candidates}
    if len(peaks[OURS]) > 1:
        pictures.append(_growth(f"growth-{place}-memory", curve, "peak memory", "MB", peaks))
    return pictures


def _growth(name: str, curve: Curve, what: str, unit: str, lines: Mapping[str, Sequence[Point]]) -> Picture:
    powers = {candidate: exponent(points) for candidate, points in lines.items()}
    labels = {
        candidate: candidate + (f": {curve.axis}^{power:.2f}" if power is not None else "")
        for candidate, power in powers.items()
    }
    alt = f"Growth of {what} with {curve.axis}: {curve.name}. " + "; ".join(
        f"{labels[candidate]}, " + ", ".join(f"{x:g}: {significant(y)} {unit}" for x, y in points)
        for candidate, points in lines.items()
    )
    colours = _colours(lines)
    places = sorted({point.x for points in lines.values() for point in points})

    def draw(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log", xlabel=curve.axis, ylabel=f"{what}, {unit}")
        for candidate, points in lines.items():
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colours[candidate], ms=4, label=labels[candidate])
        _ticks(axes.xaxis, places)
        values = [point.y for points in lines.values() for point in points]
        _ticks(axes.yaxis, _nice(min(values), max(values), 6))

    return _picture(name, alt, f"{curve.name}: {what}", 3.2, draw, columns=1)


def _achieved(case: Case) -> float:
    """FLOP/s of ours, of the operations that are needed."""
    return case.floor.flops / (1e-3 * case.time().median) if case.floor else 0.0


def _ranges(bars: Mapping[str, Mapping[str, Quartiles]], names: Sequence[str], write: Callable[[float], str]) -> str:
    """For an alternative text: the least and the most of each name."""
    told = []
    for name in names:
        values = [group[name].median for group in bars.values() if name in group]
        told.append(f"{name}: {write(min(values))}" + (f" to {write(max(values))}" if len(values) > 1 else ""))
    return "; ".join(told)


def _names(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _colours(names: Iterable[str], others: Sequence[str] = OTHERS) -> dict[str, str]:
    others_left = cycle(others)
    return {name: COLOURS.get(name) or next(others_left) for name in dict.fromkeys(names)}


def _bars(
    axes: Axes,
    bars: Mapping[str, Mapping[str, Quartiles]],
    names: Sequence[str],
    *,
    start: float,
    write: Callable[[float], str],
) -> None:
    """Horizontal bars in groups, the group's label above them, from the top down in units of inches."""
    colours, y = _colours(names), 0.0
    for label, group in bars.items():
        lines = _wrapped(label)
        axes.text(0, y, "\n".join(lines), transform=axes.get_yaxis_transform(), va="top", fontsize=7.5)
        y += LINE * len(lines)
        axes.plot([start, start], [y, y + LINE * len(group)], color=INK, linewidth=0.9)
        for name, value in group.items():
            middle = y + LINE / 2
            axes.barh(middle, value.median - start, LINE * 0.8, left=start, color=colours[name])
            if value.low < value.high:
                axes.plot([value.low, value.high], [middle] * 2, color=INK, linewidth=0.9, marker="|", markersize=4)
            end = max(value.high, start)
            axes.annotate(
                write(value.median), (end, middle), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
            y += LINE
        y += GAP
    for name in names:
        axes.barh(0, 0, 0, left=start, color=colours[name], label=name)
    axes.set_ylim(y, 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _bars_height(bars: Mapping[str, Mapping[str, Quartiles]]) -> float:
    groups = sum(LINE * (len(_wrapped(label)) + len(group)) + GAP for label, group in bars.items())
    return groups + 0.85


def _wrapped(label: str) -> list[str]:
    return textwrap.wrap(label, 62)


def _ratio_axis(axes: Axes, values: Sequence[float], room: float = 0.16) -> None:
    """A logarithmic axis with readable ticks, and room at its right end for a figure."""
    low, high = min(values), max(values)
    span = max(high / low, 1.5)
    axes.set_xscale("log")
    axes.set_xlim(low / span**0.05, low * span ** (1 + room))
    _ticks(axes.xaxis, _nice(low, low * span, 7), lambda ratio: f"{ratio:g}×")


def _nice(low: float, high: float, number: int) -> list[float]:
    """At most so many round numbers that are well apart on a logarithmic axis; 1 is one of them."""
    inside = [value for value in NICE if low * 0.97 <= value <= high * 1.03]
    chosen: list[float] = []
    for value in sorted(inside, key=lambda value: (value != 1, _roundness(value))):
        if all(max(value / other, other / value) > (high / low) ** (1 / number) for other in chosen):
            chosen.append(value)
    return sorted(chosen)


def _roundness(value: float) -> int:
    digit = float(f"{value:e}".split("e")[0])
    return (1, 2, 5, 3, 1.5, 7, 8, 1.2, 9).index(round(digit, 1))


def _ticks(axis: Any, places: Sequence[float], write: Callable[[float], str] = "{:g}".format) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(places))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: write(value))


def _picture(
    name: str, alt: str, caption: str, height: float, draw: Callable[[Axes], None], columns: int = 3
) -> Picture:
    # Imported here: the guard and the README's table need no diagrams. A Figure of its own needs no display.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        columns = columns if len(axes.get_legend_handles_labels()[1]) <= 3 else min(columns, 2)
        figure.legend(loc="outside upper left", ncols=columns, fontsize=7.5, handlelength=1.4, columnspacing=1.2)
        return Picture(re.sub(r"[^\w-]+", "-", name), alt, caption, _svg(figure), _png(figure))


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _svg(figure: Figure) -> str:
    """For the inside of a page: no addresses, no names that two pictures could share, the text's own colour."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace(INK, "currentColor").strip()
