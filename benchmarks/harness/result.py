"""The record of a run of the benchmark suite: a `Result` with a `Case` for each thing that was timed.

It is written as JSON, a line for each case, and read back with every value checked; a field without a default has to be
there. `__post_init__` raises `ValueError` with the field's name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.harness.json_files import read_json

KIND = "a result of the benchmark suite (pytest benchmarks --benchmark-only --benchmark-json=FILE)"
OURS = "ours"
#: The part of a case that is compared, by its direction.
PARTS = {"training": "both", "inference": "forward", "step": "step"}


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile over the rounds of a measurement."""

    low: float
    median: float
    high: float

    def overlaps(self, other: Quartiles) -> bool:
        """Whether the interquartile ranges of two measurements overlap."""
        return self.low <= other.high and other.low <= self.high

    def over(self, unit: float) -> Quartiles:
        """In units of something else."""
        return Quartiles(*(value / unit for value in self))


class Checked:
    """A part of the record whose numbers are above 0, and whose quartiles rise."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check(name, value)


def _check(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check(f"{name}.{key}", part)
    elif isinstance(value, Quartiles) and not 0 < value.low <= value.median <= value.high < math.inf:
        raise ValueError(f"{name} is {list(value)}; it has to be three rising numbers above 0")
    elif isinstance(value, float) and not 0 < value < math.inf:
        raise ValueError(f"{name} is {value:g}; it has to be a number above 0")


@dataclass(frozen=True)
class Candidate(Checked):
    """One of the implementations that were timed.

    Attributes:
        role: `ours` as it is dispatched, `alternative`, or `implementation`: another one of ours, forced.
        milliseconds: by part: `forward`, `backward`, `both` or `step`.
        form: name of the implementation that ran.
        peak_bytes: peak memory of a run beyond what its inputs take.
        rounds: number of rounds that were timed.
    """

    role: Literal["ours", "alternative", "implementation"]
    milliseconds: Mapping[str, Quartiles]
    form: str = ""
    peak_bytes: int | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Roofline:
    """The least time that a case can take at the device's measured limits.

    Attributes:
        bytes: fewest bytes to be moved.
        flops: fewest operations, a multiply-add being two.
        milliseconds: the larger of the two times.
        bound_by: which of the two it is.
    """

    bytes: float
    flops: float
    milliseconds: float
    bound_by: Literal["memory", "compute"]

    def __post_init__(self) -> None:
        _check("milliseconds", self.milliseconds)
        if not (0 <= self.bytes < math.inf and 0 <= self.flops < math.inf):
            raise ValueError("bytes and flops have to be numbers of at least 0")


@dataclass(frozen=True)
class Series(Checked):
    """A point of a growth curve: name of the curve, its axis, and where on it."""

    name: str
    axis: str
    value: float


class Key(NamedTuple):
    """Identifies a case within a run, and across runs."""

    operator: str
    case: str
    dtype: str
    direction: str

    def __str__(self) -> str:
        return ", ".join(filter(None, self))

    @property
    def within_operator(self) -> str:
        """Without the operator's name."""
        return ", ".join(filter(None, self[1:]))


@dataclass(frozen=True)
class Case(Checked):
    """One thing that was timed, with all candidates of it.

    Attributes:
        dtype: short name; empty where there is none.
        direction: `training` is forward and backward, `inference` forward alone.
        candidates: by name; `ours` is always there.
        ratios: time of a candidate over time of ours, by candidate and part: quartiles over the ratios of each round.
            More than 1 means that ours is faster.
        headline: whether it is in the README's table.
        work: how much one run handles, by unit: `{"images": 32}`.
        unavailable: candidates that could not run, and why.
        errors: by candidate, relative errors of result and gradients against float64.
    """

    operator: str
    case: str
    direction: Literal["training", "inference", "step"]
    candidates: Mapping[str, Candidate]
    ratios: Mapping[str, Mapping[str, Quartiles]]
    dtype: str = ""
    headline: bool = False
    work: Mapping[str, float] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    roofline: Roofline | None = None
    series: Series | None = None

    def __post_init__(self) -> None:
        if [name for name, candidate in self.candidates.items() if candidate.role == OURS] != [OURS]:
            raise ValueError("candidates has to have one candidate of the role ours, by the name ours")
        for name, candidate in self.candidates.items():
            if self.part not in candidate.milliseconds:
                raise ValueError(f"candidates.{name}.milliseconds.{self.part} is missing; it is the part compared")
            if name != OURS and self.part not in self.ratios.get(name, {}):
                raise ValueError(f"ratios.{name}.{self.part} is missing; every candidate but ours has one")
        super().__post_init__()

    @property
    def key(self) -> Key:
        return Key(self.operator, self.case, self.dtype, self.direction)

    @property
    def part(self) -> str:
        """The part that is compared: `both`, `forward` or `step`."""
        return PARTS[self.direction]

    @property
    def ours(self) -> Candidate:
        return self.candidates[OURS]

    @property
    def alternatives(self) -> list[str]:
        """What people would use instead of ours."""
        return [name for name, candidate in self.candidates.items() if candidate.role == "alternative"]

    @property
    def strongest(self) -> str:
        """The fastest alternative; empty where none could run."""
        return min(self.alternatives, key=lambda name: self.ratio(name).median, default="")

    def time(self, name: str = OURS) -> Quartiles:
        """Milliseconds of a candidate in the part that is compared."""
        return self.candidates[name].milliseconds[self.part]

    def ratio(self, name: str) -> Quartiles:
        """Time of a candidate over time of ours in the part that is compared."""
        return self.ratios[name][self.part]

    def __str__(self) -> str:
        """One line: milliseconds of ours, and the times of the others over them."""
        others = "  ".join(f"{name} {self.ratio(name).median:.2f}x" for name in self.ratios)
        return f"{self.key!s:76} {self.time().median:9.3f} ms  {others}"


@dataclass(frozen=True)
class Device(Checked):
    """Where a run was measured.

    Attributes:
        slug: its folder under `benchmarks/results/`.
        type: `cpu` or `cuda`.
        versions: of fastt2i, Python, torch and Triton.
        copy_bytes_per_second: measured.
        flops_per_second: measured rate of matrix products by dtype.
    """

    name: str
    slug: str
    type: Literal["cpu", "cuda"]
    versions: Mapping[str, str]
    copy_bytes_per_second: float | None = None
    flops_per_second: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", self.slug):
            raise ValueError(f"slug is {self.slug!r}; it names a folder: lower-case letters, digits and hyphens")
        super().__post_init__()


@dataclass(frozen=True)
class Result:
    """A run of the benchmark suite.

    Attributes:
        dirty: whether there were changes that no commit has.
        measured: date and time as ISO 8601.
        commit: that was measured; `unknown` outside a repository.
    """

    device: Device
    cases: tuple[Case, ...]
    measured: str = ""
    commit: str = "unknown"
    dirty: bool = False

    def __post_init__(self) -> None:
        keys = [case.key for case in self.cases]
        if not keys:
            raise ValueError("cases is empty; a result has at least one case")
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"cases has two cases {repeated}; each has to be told from all others")

    @property
    def operators(self) -> Mapping[str, list[Case]]:
        """Cases by operator, both in the order of the file."""
        found: dict[str, list[Case]] = {}
        for case in self.cases:
            found.setdefault(case.operator, []).append(case)
        return found

    def to_json(self) -> str:
        """JSON with a line for each case, so that a diff shows which have changed."""
        told = _without_defaults(self)
        cases = ",\n".join(json.dumps(_without_defaults(case)) for case in told.pop("cases"))
        head = ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in told.items())
        return f'{{\n{head},\n"cases": [\n{cases}\n]}}\n'


def read_result(path: Path) -> Result:
    """Read a result and check all of it.

    Raises:
        UserError: the file is none, or something in it is missing or wrong; the message says what and where.
    """
    return read_json(path, Result, KIND)


def _without_defaults(part: Any) -> Any:
    """A dataclass as JSON can hold it, without the fields that have their default."""
    if isinstance(part, Mapping):
        return {key: _without_defaults(value) for key, value in part.items()}
    if not is_dataclass(part):
        return part
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(part)}
    return {name: _without_defaults(v) for name in defaults if (v := getattr(part, name)) != defaults[name]}
