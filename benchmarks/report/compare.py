"""What a change did: two runs of the benchmark suite, case by case."""

from __future__ import annotations

from statistics import geometric_mean

from benchmarks.harness.result import Case, Quartiles, Result
from benchmarks.report.content import facts
from benchmarks.report.page import Document, Marked, Table
from benchmarks.report.units import milliseconds, significant, times


def comparison(a: Result, b: Result) -> Document:
    """What became of A's cases in B: times, and ratios against each alternative."""
    cases_a, cases_b = ({case.key: case for case in run.cases} for run in (a, b))
    pairs = [(cases_a[key], case) for key, case in cases_b.items() if key in cases_a]
    versions = {name: [run.device.versions.get(name, "none") for run in (a, b)] for name in a.device.versions}
    versions |= {name: ["none", version] for name, version in b.device.versions.items() if name not in versions}
    head = "case,alternative,change,B / A,ratio in A,ratio in B,its ms in A,its ms in B"
    ratios = [_ratio_row(old, new, name) for old, new in pairs for name in old.alternatives if name in new.alternatives]
    content = {
        "a": a,
        "b": b,
        "facts": {"A": facts(a), "B": facts(b)},
        "versions": [f"{name} {old} and {new}" for name, (old, new) in versions.items() if old != new],
        "pairs": pairs,
        "mean": geometric_mean(old.time().median / new.time().median for old, new in pairs) if pairs else None,
        "changes": [change(old.time(), new.time(), more_is_better=False) for old, new in pairs],
        "time_table": Table(["case", "change", "A / B", "A in ms", "B in ms"], [_time_row(*pair) for pair in pairs]),
        "ratio_table": Table(head.split(","), ratios),
        "only": {
            "A": [key for key in cases_a if key not in cases_b],
            "B": [key for key in cases_b if key not in cases_a],
        },
    }
    return Document("compare.md.jinja", "What a change did", content)


def change(a: Quartiles, b: Quartiles, *, more_is_better: bool) -> str:
    """`better` or `worse` where A and B differ by more than their spread, else empty."""
    if a.overlaps(b):
        return ""
    return "better" if (b.median > a.median) == more_is_better else "worse"


def _time_row(a: Case, b: Case) -> list[str | Marked]:
    kind = change(a.time(), b.time(), more_is_better=False)
    word = {"better": "faster", "worse": "slower", "": ""}[kind]
    ratio = Marked(f"{significant(a.time().median / b.time().median)}×", kind)
    return [str(a.key), Marked(word, kind), ratio, milliseconds(a.time()), milliseconds(b.time())]


def _ratio_row(a: Case, b: Case, name: str) -> list[str | Marked]:
    old, new = a.ratio(name), b.ratio(name)
    kind = change(old, new, more_is_better=True)
    ratio = Marked(f"{significant(new.median / old.median)}×", kind)
    return [
        *(str(a.key), name, Marked(kind, kind), ratio),
        *(times(old), times(new), milliseconds(a.time(name)), milliseconds(b.time(name))),
    ]
