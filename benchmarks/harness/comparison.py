"""A case of the perf suite: contenders take turns, and what is found is written down as `results_file` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.result import OURS, PARTS, Series
from benchmarks.harness.timing import Candidate, milliseconds, ratios, take_turns

#: Significant digits that are kept of a figure.
DIGITS = 4


@dataclass(frozen=True)
class Contender:
    """One that takes part.

    Attributes:
        sample: times it.
        role: `ours`, `alternative`, or `implementation`.
        form: which implementation it is, if that is known, and what else tells it.
        peak_bytes: the most memory that it takes, if that is known.
    """

    sample: Candidate
    role: str = "alternative"
    form: str = ""
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Contest:
    """What is timed, and what is known of it before.

    Attributes:
        operator: or another thing that has a name.
        case: which one of it.
        dtype: by its short name; empty where there is none.
        direction: `training`, `inference`, or `step`.
        headline: whether it is in the README's table.
        work: how much a run handles, by unit.
        floor: as `floors.Work.floor` tells it.
        series: the growth curve that it is a point of.
        errors: by contender, relative errors of result and gradients against float64.
        unavailable: contenders that cannot take part, and why.
    """

    operator: str
    case: str
    dtype: str
    direction: str
    headline: bool = False
    work: Mapping[str, float] = field(default_factory=dict)
    floor: Mapping[str, Any] | None = None
    series: Series | None = None
    errors: Mapping[str, list[float]] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)


def hold(benchmark: Any, contest: Contest, contenders: Mapping[str, Contender], seconds: float) -> None:
    """Time all contenders, about as many seconds together, and put what is found into the benchmark's row."""
    benchmark.group = contest.operator
    samples = {name: contender.sample for name, contender in contenders.items()}
    taken = take_turns(benchmark, samples, OURS, seconds)
    told: dict[str, Any] = {
        name: getattr(contest, name) for name in ("operator", "case", "dtype", "direction", "headline")
    }
    told["candidates"] = {
        name: {
            "role": contender.role,
            "milliseconds": _rounded(milliseconds(taken[name])),
            "rounds": len(taken[name]),
            **({"form": contender.form} if contender.form else {}),
            **({"peak_bytes": contender.peak_bytes} if contender.peak_bytes is not None else {}),
        }
        for name, contender in contenders.items()
    }
    told["ratios"] = {name: _rounded(ratios(taken[name], taken[OURS])) for name in contenders if name != OURS}
    told |= {"unit_of_work": dict(contest.work)} if contest.work else {}
    told |= {"floor": _rounded(contest.floor)} if contest.floor else {}
    told |= {"series": contest.series.__dict__} if contest.series else {}
    told |= {"errors": _rounded(contest.errors)} if contest.errors else {}
    told |= {"unavailable": dict(contest.unavailable)} if contest.unavailable else {}
    benchmark.extra_info.update(told)


def line(told: Mapping[str, Any]) -> str:
    """A case in a line: milliseconds of ours, and how many times that the others take."""
    part = PARTS[told["direction"]]
    name = ", ".join(filter(None, (told["operator"], told["case"], told["dtype"], told["direction"])))
    mine = told["candidates"][OURS]["milliseconds"][part][1]
    others = "  ".join(f"{other} {ratio[part][1]:.2f}x" for other, ratio in told["ratios"].items())
    return f"{name:76} {mine:9.3f} ms  {others}"


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
