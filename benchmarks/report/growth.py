"""How time and memory grow along an axis: curves of a result, and the exponents of power laws fitted to them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.harness.result import Case, Result


class Point(NamedTuple):
    """Of a curve: where on the axis, and what was measured there."""

    x: float
    y: float


@dataclass(frozen=True)
class Curve:
    """Cases of one series, rising along its axis.

    Attributes:
        name: the series, with the dtype and direction where it has several.
        axis: what grows.
    """

    name: str
    axis: str
    cases: tuple[Case, ...]

    @property
    def candidates(self) -> list[str]:
        """Ours and the alternatives that ran somewhere on the curve."""
        names = (name for case in self.cases for name in ("ours", *case.alternatives))
        return list(dict.fromkeys(names))

    def times(self, candidate: str) -> list[Point]:
        """Median milliseconds of the part that counts."""
        return [
            Point(case.series.value, case.time(candidate).median)
            for case in self.cases
            if case.series and candidate in case.candidates
        ]

    def memory(self, candidate: str) -> list[Point]:
        """Peak bytes, where they were measured."""
        return [
            Point(case.series.value, float(peak))
            for case in self.cases
            if case.series and candidate in case.candidates and (peak := case.candidates[candidate].peak_bytes)
        ]


def curves(result: Result) -> list[Curve]:
    """All series of a result that have at least two points."""
    grouped: dict[tuple[str, ...], list[Case]] = {}
    for case in result.cases:
        if case.series:
            key = case.key
            place = (case.series.name, case.series.axis, key.operator, key.dtype, key.direction)
            grouped.setdefault(place, []).append(case)
    names = [place[0] for place in grouped]
    found = []
    for (name, axis, _, *kind), cases in grouped.items():
        label = ", ".join([name, *filter(None, kind)]) if names.count(name) > 1 else name
        points = sorted(cases, key=lambda case: case.series.value if case.series else 0.0)
        if len({case.series.value for case in points if case.series}) > 1:
            found.append(Curve(label, axis, tuple(points)))
    return found


def exponent(points: Iterable[Point]) -> float | None:
    """The p of y = c x^p that fits best, by least squares of the logarithms; None without two places on the axis."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    if len({x for x, _ in logs}) < 2:
        return None
    middle_x, middle_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - middle_x) * (y - middle_y) for x, y in logs) / sum((x - middle_x) ** 2 for x, _ in logs)
