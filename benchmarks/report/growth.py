"""How time and memory grow along an axis: curves of a result, and the exponents of power laws fitted to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import linear_regression

from benchmarks.harness.result import OURS, Case, Result

#: Where a case is on the axis of its series.
_place = attrgetter("series.value")
#: Of a curve: where on the axis, and what was measured there.
Point = tuple[float, float]


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
        names = (name for case in self.cases for name in (OURS, *case.alternatives))
        return list(dict.fromkeys(names))

    def of(self, candidate: str) -> list[Case]:
        """The cases in which a candidate ran."""
        return [case for case in self.cases if candidate in case.candidates]

    def times(self, candidate: str) -> list[Point]:
        """Median milliseconds of the part that counts."""
        return [(_place(case), case.time(candidate).median) for case in self.of(candidate)]

    def memory(self, candidate: str) -> list[Point]:
        """Peak bytes, where they were measured."""
        peaks = [(_place(case), case.candidates[candidate].peak_bytes) for case in self.of(candidate)]
        return [(x, float(peak)) for x, peak in peaks if peak]

    def power_law(self, points: Sequence[Point]) -> str:
        """That fits the points best; empty where there is none."""
        power = exponent(points)
        return "" if power is None else f"{self.axis}^{power:.2f}"


def curves(result: Result) -> list[Curve]:
    """All series of a result that have at least two points."""
    grouped: dict[tuple[str, ...], list[Case]] = {}
    for case in result.cases:
        if case.series:
            place = (case.series.name, case.series.axis, case.operator, case.dtype, case.direction)
            grouped.setdefault(place, []).append(case)
    names, found = [place[0] for place in grouped], []
    for (name, axis, _, *kind), cases in grouped.items():
        label = ", ".join([name, *filter(None, kind)]) if names.count(name) > 1 else name
        if len(set(map(_place, cases))) > 1:
            found.append(Curve(label, axis, tuple(sorted(cases, key=_place))))
    return found


def exponent(points: Sequence[Point]) -> float | None:
    """The p of y = c x^p that fits best, by least squares of the logarithms; None without two places on the axis."""
    if len({x for x, _ in points}) < 2:
        return None
    return linear_regression(*([math.log(value) for value in values] for values in zip(*points, strict=True))).slope
