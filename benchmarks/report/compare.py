"""What a change did: two runs of the benchmark suite, case by case."""

from __future__ import annotations

from statistics import geometric_mean

from benchmarks.harness.result import Quartiles, Result
from benchmarks.report.content import facts
from benchmarks.report.page import Document


def comparison(a: Result, b: Result) -> Document:
    """What became of A's cases in B: times, and ratios against each alternative."""
    cases_a, cases_b = ({case.key: case for case in run.cases} for run in (a, b))
    pairs = [(cases_a[key], case) for key, case in cases_b.items() if key in cases_a]
    names = dict.fromkeys([*a.device.versions, *b.device.versions])
    versions = {name: [run.device.versions.get(name, "none") for run in (a, b)] for name in names}
    content = {
        "runs": {"A": a, "B": b},
        "facts": facts,
        "versions": [f"{name} {old} and {new}" for name, (old, new) in versions.items() if old != new],
        "pairs": pairs,
        "mean": geometric_mean(old.time().median / new.time().median for old, new in pairs) if pairs else None,
        "changes": [change(old.time(), new.time(), more_is_better=False) for old, new in pairs],
        "change": change,
        "ratios": [(a, b, name) for a, b in pairs for name in a.alternatives if name in b.alternatives],
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
