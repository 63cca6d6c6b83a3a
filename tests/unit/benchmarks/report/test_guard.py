"""A kernel that has become slow fails the guard; the spread is allowed for, and nothing is missed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import timing
from benchmarks.harness.operator_case import OperatorCase, compare_operator
from benchmarks.harness.result import read_result
from benchmarks.harness.roofline import Limits, of_gate
from benchmarks.harness.suite import Suite, result
from benchmarks.report import guard
from fastt2i.ops import gate
from fastt2i.ops.dispatch import registry
from fastt2i.ops.gate import torch_impl as gate_torch


class Clock:
    """Goes on by a millisecond when it is read, and by what is added: what else runs on the machine is not in it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        self.seconds += 1e-3
        return self.seconds


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_slow_kernel_fails_the_guard(
    is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock.perf_counter))

    def slow(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
        clock.seconds += 0.05 * is_slow
        return gate_torch.gate(pre, activation, negative_slope)

    operator = registry._REGISTRY["gate"]
    implementations = {**operator.implementations, "torch": registry.Implementation(slow)}
    monkeypatch.setitem(registry._REGISTRY, "gate", registry.Operator(implementations, lambda call: ("torch",), ""))
    suite = Suite(torch.device("cpu"), Limits(1e10, {"fp32": 1e11}), seconds=0.05, quick=True)
    pre = torch.randn(2, 10, 37, 37, generator=torch.Generator().manual_seed(0)).requires_grad_()
    compare_operator(suite, OperatorCase("gate", "2x10", gate, (pre,), True, of_gate(pre.numel() // 2, 4, True)))
    path = tmp_path / "result.json"
    path.write_text(result(suite.device, suite.limits, suite.cases).to_json())
    key = {"operator": "gate", "case": "2x10", "dtype": "fp32", "direction": "training"}
    bounds = tmp_path / "bounds.json"
    bounds.write_text(json.dumps([{**key, "against": "reference", "least": 0.9}]))
    monkeypatch.setattr(guard, "BOUNDS", bounds)
    assert guard.main([str(path)]) == int(is_slow)
    assert ("TOO SLOW" in capsys.readouterr().out) == is_slow


def test_the_guard_allows_for_the_spread_and_misses_nothing(
    content: dict[str, Any], write: Callable[..., Path]
) -> None:
    result = read_result(write(content))
    case = result.cases[0]
    low, median, high = case.ratio("reference")
    allowed = median + (high - low)
    bounds = [
        guard.Bound(*case.key, "reference", 0.999 * allowed),
        guard.Bound(*case.key, "reference", 1.001 * allowed),
        guard.Bound(*case.key, "nobody", 0.0),
        guard.Bound(*case.key._replace(dtype="fp16"), "reference", 0.0),
    ]
    verdicts = [guard.judge(bound, result) for bound in bounds]
    assert [holds for holds, _ in verdicts] == [True, False, False, False]
    assert [told[:8].strip() for _, told in verdicts] == ["holds", "TOO SLOW", "MISSING", "MISSING"]


def test_the_committed_bounds_are_of_cases_that_the_quick_suite_has() -> None:
    bounds = guard.read_bounds()
    assert bounds and all(0.5 < bound.least < 20 for bound in bounds)
    assert all(bound.direction in ("training", "inference", "step") for bound in bounds)
