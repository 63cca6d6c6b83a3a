"""What a run of the perf suite wrote, read and checked: one `Result` with a `Case` for each thing that was timed.

The file is pytest-benchmark's own JSON. `machine_info.fastt2i` tells the device, and the `extra_info` of an entry all
that is known of a case; every key that the dataclasses below do not call optional has to be there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.json_entry import Entry, read_json

KIND = "a result of the perf suite (pytest benchmarks --benchmark-only --benchmark-json=FILE)"
OURS = "ours"
ROLES = (OURS, "alternative", "implementation")
#: What counts of a case, by its direction.
PARTS = {"training": "both", "inference": "forward", "step": "step"}


class Quartiles(NamedTuple):
    """Of the rounds of a measurement."""

    low: float
    median: float
    high: float

    def overlaps(self, other: Quartiles) -> bool:
        """Whether the middle halves of two measurements share a value."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Candidate:
    """One of those that took turns.

    Attributes:
        role: `ours` as the dispatcher chooses it, `alternative`, or `implementation`: another one of ours, forced.
        milliseconds: of each part that was timed: `forward`, `backward`, `both` or `step`.
        form: which implementation the dispatcher chose; optional.
        peak_bytes: the most memory held during a run, beyond what its inputs take; optional.
        rounds: that were timed; optional.
    """

    name: str
    role: str
    milliseconds: Mapping[str, Quartiles]
    form: str = ""
    peak_bytes: int | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Floor:
    """The least that a case's counted part can take on the device.

    Attributes:
        bytes: the fewest that have to move.
        flops: the fewest operations.
        milliseconds: the larger of what bytes and operations take at the measured limits.
        bound_by: `bytes` or `operations`.
    """

    bytes: float
    flops: float
    milliseconds: float
    bound_by: str


@dataclass(frozen=True)
class Series:
    """A point of a growth curve: which curve, and where along which axis."""

    name: str
    axis: str
    value: float


class Key(NamedTuple):
    """What tells a case from all others of a run, and finds it in another run."""

    operator: str
    case: str
    dtype: str
    direction: str

    def __str__(self) -> str:
        return ", ".join(part for part in self if part)

    @property
    def within_operator(self) -> str:
        """Without the operator, where that is said already."""
        return ", ".join(part for part in self[1:] if part)


@dataclass(frozen=True)
class Case:
    """One thing that was timed, by every candidate in turns.

    Attributes:
        candidates: by name; `ours` is always there.
        ratios: time of a candidate over time of ours, by candidate and part: quartiles of the ratios of each round.
            More than 1 means that ours is faster.
        headline: whether it is in the README's table.
        work: how much one run handles, by unit: `{"images": 32}`.
        unavailable: candidates that could not run, and why.
        errors: by candidate, relative errors of result and gradients against float64.
    """

    key: Key
    candidates: Mapping[str, Candidate]
    ratios: Mapping[str, Mapping[str, Quartiles]]
    headline: bool = False
    work: Mapping[str, float] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    floor: Floor | None = None
    series: Series | None = None

    @property
    def part(self) -> str:
        """The part that counts: `both`, `forward` or `step`."""
        return PARTS[self.key.direction]

    @property
    def ours(self) -> Candidate:
        return self.candidates[OURS]

    @property
    def alternatives(self) -> list[str]:
        """What people would take instead of ours."""
        return [name for name, candidate in self.candidates.items() if candidate.role == "alternative"]

    @property
    def strongest(self) -> str | None:
        """The alternative that is fastest in the part that counts; None where none could run."""
        return min(self.alternatives, key=lambda name: self.ratio(name).median, default=None)

    def time(self, name: str = OURS) -> Quartiles:
        """Milliseconds of a candidate in the part that counts."""
        return self.candidates[name].milliseconds[self.part]

    def ratio(self, name: str) -> Quartiles:
        """Time of a candidate over time of ours in the part that counts."""
        return self.ratios[name][self.part]


@dataclass(frozen=True)
class Device:
    """Where a run was measured.

    Attributes:
        slug: its folder under `benchmarks/results/`.
        type: `cpu` or `cuda`.
        versions: of fastt2i, Python, torch and Triton.
        copy_bytes_per_second: measured; optional.
        flops_per_second: measured rate of matrix products by dtype; optional.
    """

    name: str
    slug: str
    type: str
    versions: Mapping[str, str]
    copy_bytes_per_second: float | None = None
    flops_per_second: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A run of the perf suite.

    Attributes:
        commit: that was measured; `unknown` outside a repository.
        dirty: whether there were changes that no commit has.
        measured: date and time as ISO 8601.
    """

    path: Path
    device: Device
    commit: str
    dirty: bool
    measured: str
    cases: tuple[Case, ...]

    @property
    def operators(self) -> Mapping[str, list[Case]]:
        """Cases by operator, both in the order of the file."""
        found: dict[str, list[Case]] = {}
        for case in self.cases:
            found.setdefault(case.key.operator, []).append(case)
        return found


def read_result(path: Path) -> Result:
    """Read a result and check all of it.

    Raises:
        UserError: the file is none, or something in it is missing or wrong; the message says what and where.
    """
    entry = read_json(path, KIND)
    machine = entry.entry("machine_info")
    if "fastt2i" not in machine:
        raise entry.wrong("machine_info.fastt2i", f"is missing; name {KIND}")
    commit = entry.entry("commit_info", {})
    cases = tuple(_case(benchmark.entry("extra_info")) for benchmark in entry.entries("benchmarks"))
    if not cases:
        raise entry.wrong("benchmarks", "is empty; a result has at least one case")
    keys = [case.key for case in cases]
    if double := next((key for key in keys if keys.count(key) > 1), None):
        raise entry.wrong("benchmarks", f"has two cases {double}; each has to be told from all others")
    return Result(
        path=path,
        device=_device(machine.entry("fastt2i")),
        commit=commit.text("id", "") or "unknown",
        dirty=commit.truth("dirty", False),
        measured=entry.text("datetime", "") or commit.text("time", ""),
        cases=cases,
    )


def _device(entry: Entry) -> Device:
    slug = entry.text("slug")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", slug):
        raise entry.wrong("slug", f"is {slug!r}; it names a folder: lower-case letters, digits and hyphens")
    versions, limits = entry.entry("versions"), entry.entry("limits", {})
    rates = limits.entry("flops_per_second", {})
    return Device(
        name=entry.text("device"),
        slug=slug,
        type=entry.text("device_type"),
        versions={name: versions.text(name) for name in versions},
        copy_bytes_per_second=_positive(limits, "copy_bytes_per_second") if "copy_bytes_per_second" in limits else None,
        flops_per_second={dtype: _positive(rates, dtype) for dtype in rates},
    )


def _case(entry: Entry) -> Case:
    key = Key(*(entry.text(name) for name in Key._fields))
    if key.direction not in PARTS:
        raise entry.wrong("direction", f"is {key.direction!r}; it has to be {', '.join(PARTS)}")
    work, unavailable, errors = (entry.entry(name, {}) for name in ("unit_of_work", "unavailable", "errors"))
    case = Case(
        key=key,
        candidates=_candidates(entry.entry("candidates"), PARTS[key.direction]),
        ratios={name: _quartiles_by_part(ratios) for name, ratios in _entries(entry.entry("ratios"))},
        headline=entry.truth("headline", False),
        work={unit: _positive(work, unit) for unit in work},
        unavailable={name: unavailable.text(name) for name in unavailable},
        errors={name: errors.numbers(name) for name in errors},
        floor=_floor(entry.entry("floor")) if "floor" in entry else None,
        series=_series(entry.entry("series")) if "series" in entry else None,
    )
    for name in case.candidates:
        if name != OURS and case.part not in case.ratios.get(name, {}):
            raise entry.wrong(f"ratios.{name}.{case.part}", "is missing; every candidate but ours has one")
    return case


def _candidates(entry: Entry, part: str) -> dict[str, Candidate]:
    found = {name: _candidate(name, candidate, part) for name, candidate in _entries(entry)}
    if [name for name, candidate in found.items() if candidate.role == OURS] != [OURS]:
        raise entry.wrong("", "has to have one candidate of the role ours, by the name ours")
    return found


def _candidate(name: str, entry: Entry, part: str) -> Candidate:
    role = entry.text("role")
    if role not in ROLES:
        raise entry.wrong("role", f"is {role!r}; it has to be {', '.join(ROLES)}")
    milliseconds = _quartiles_by_part(entry.entry("milliseconds"))
    if part not in milliseconds:
        raise entry.wrong(f"milliseconds.{part}", "is missing; it is the part that counts")
    return Candidate(
        name,
        role,
        milliseconds,
        form=entry.text("form", ""),
        peak_bytes=entry.whole("peak_bytes", None),
        rounds=entry.whole("rounds", None),
    )


def _entries(entry: Entry) -> list[tuple[str, Entry]]:
    return [(name, entry.entry(name)) for name in entry]


def _quartiles_by_part(entry: Entry) -> dict[str, Quartiles]:
    return {part: _quartiles(entry, part) for part in entry}


def _quartiles(entry: Entry, key: str) -> Quartiles:
    values = entry.numbers(key)
    if len(values) != 3 or values[0] <= 0 or list(values) != sorted(values):
        raise entry.wrong(key, f"is {list(values)}; it has to be three rising numbers above 0: the quartiles")
    return Quartiles(*values)


def _floor(entry: Entry) -> Floor:
    number = {name: entry.number(name) for name in ("bytes", "flops")}
    if min(number.values()) < 0:
        raise entry.wrong("", "has bytes or flops below 0")
    return Floor(**number, milliseconds=_positive(entry, "milliseconds"), bound_by=entry.text("bound_by"))


def _series(entry: Entry) -> Series:
    return Series(entry.text("name"), entry.text("axis"), _positive(entry, "value"))


def _positive(entry: Entry, key: str) -> float:
    value = entry.number(key)
    if value <= 0:
        raise entry.wrong(key, f"is {value:g}; it has to be above 0")
    return value
