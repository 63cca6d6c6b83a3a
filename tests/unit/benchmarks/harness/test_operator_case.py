"""What is timed is right: a wrong result of ours fails its case, and no time of it is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.harness.operator_case import OperatorCase, WrongResult, compare_operator
from benchmarks.harness.result import read_result
from benchmarks.harness.roofline import Limits, of_gate
from benchmarks.harness.suite import Suite, result
from benchmarks.harness.timing import MIN_ROUNDS
from fastt2i.ops import gate
from fastt2i.ops.dispatch import registry
from fastt2i.ops.gate import torch_impl as gate_torch

LIMITS = Limits(1e10, {"fp32": 1e11, "bf16": 1e11})


@pytest.fixture
def suite() -> Suite:
    return Suite(torch.device("cpu"), LIMITS, seconds=0.05, quick=True)


def gate_case(size: int = 37) -> OperatorCase:
    pre = torch.randn(2, 10, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return OperatorCase("gate", "2x10", gate, (pre,), True, of_gate(pre.numel() // 2, 4, True), images=2)


def replace_gate(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Tensor]) -> None:
    operator = registry._REGISTRY["gate"]
    implementations = {**operator.implementations, "torch": registry.Implementation(run)}
    monkeypatch.setitem(registry._REGISTRY, "gate", registry.Operator(implementations, lambda call: ("torch",), ""))


def test_a_case_is_recorded_and_read_back(suite: Suite, tmp_path: Path) -> None:
    size = 163  # from 2 MiB it is our own form that runs
    compare_operator(suite, gate_case(size))
    path = tmp_path / "result.json"
    path.write_text(result(suite.device, LIMITS, suite.cases).to_json())
    (case,) = read_result(path).cases
    assert (case.operator, case.dtype, case.direction) == ("gate", "fp32", "training") and [case] == suite.cases
    assert {name: c.role for name, c in case.candidates.items()} == {"ours": "ours", "reference": "alternative"}
    assert case.ours.form == "torch" and set(case.ours.milliseconds) == {"forward", "backward", "both"}
    assert (case.ours.rounds or 0) >= MIN_ROUNDS
    bytes_of_result = 2 * 5 * size * size * 4
    for candidate in case.candidates.values():  # the result, its gradient and that of both halves
        assert candidate.peak_bytes is not None and 4 * bytes_of_result <= candidate.peak_bytes < 12 * bytes_of_result
    assert case.roofline and case.roofline.bound_by == "memory" and case.roofline.bytes == 8 * bytes_of_result
    assert len(case.errors["ours"]) == 2 and max(case.errors["ours"]) < 1e-6
    assert "triton" in case.unavailable and "CUDA" in case.unavailable["triton"]
    assert str(case).startswith("gate, 2x10, fp32, training") and "reference" in str(case)


def test_cases_in_fresh_memory_say_so(suite: Suite) -> None:
    fresh = replace(suite, fresh_memory=True)
    compare_operator(fresh, gate_case())
    assert fresh.cases[0].case == "2x10, fresh memory"


def test_a_kernel_that_is_wrong_at_a_tail_is_no_time(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
        y = gate_torch.gate(pre, activation, negative_slope)
        tail = torch.ones_like(y)
        tail[..., -1] = 0.9  # the last column, as if a mask were off by one
        return y * tail

    replace_gate(monkeypatch, wrong)
    with pytest.raises(WrongResult, match=r"gate, 2x10, fp32: torch is wrong: its result is wrong by 1\.\de-02"):
        compare_operator(suite, gate_case())
    assert not suite.cases


def test_a_gradient_that_is_wrong_is_no_time(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
        y = gate_torch.gate(pre, activation, negative_slope)
        return y + 0.1 * (pre[:, :5] - pre[:, :5].detach())

    replace_gate(monkeypatch, wrong)
    with pytest.raises(WrongResult, match="its gradient 1 is wrong"):
        compare_operator(suite, gate_case())
