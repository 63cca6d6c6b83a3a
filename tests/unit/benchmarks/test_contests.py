"""What is timed is right, and what is slow is seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness.comparison import Contender, Contest, hold, line
from benchmarks.harness.operator_case import OperatorCase, Wrong, compete
from benchmarks.harness.result import read_result
from benchmarks.harness.roofline import Limits, of_gate, of_gated_convolution
from benchmarks.harness.timing import FEWEST, take_turns
from benchmarks.report import guard
from fastt2i.ops import gate
from fastt2i.ops.dispatch import registry
from fastt2i.ops.gate import torch_impl as gate_torch

CPU = torch.device("cpu")
LIMITS = Limits(1e10, {"fp32": 1e11, "bf16": 1e11})


class Benchmark:
    """pytest-benchmark's fixture, as far as it is used."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.group = ""

    def pedantic(
        self, target: Callable[..., Any], args: tuple[Any, ...], setup: Callable[[], None], rounds: int
    ) -> None:
        for _ in range(rounds):
            setup()
            target(*args)


def gate_case(size: int = 37) -> OperatorCase:
    pre = torch.randn(2, 10, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return OperatorCase("gate", "2x10", gate, (pre,), True, of_gate(pre.numel() // 2, 4, True), images=2)


def replace_gate(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Tensor]) -> None:
    operator = registry._REGISTRY["gate"]
    implementations = {**operator.implementations, "torch": registry.Implementation(run)}
    monkeypatch.setitem(registry._REGISTRY, "gate", registry.Operator(implementations, lambda call: ("torch",), ""))


def as_file(benchmark: Benchmark, content: dict[str, Any], path: Path) -> Path:
    """A result with this case alone; `content` is any other result."""
    content["benchmarks"] = [{"name": "case", "stats": {}, "extra_info": benchmark.extra_info}]
    path.write_text(json.dumps(content))
    return path


def test_a_case_is_written_as_the_report_reads_it(content: dict[str, Any], tmp_path: Path) -> None:
    benchmark, size = Benchmark(), 163  # from 2 MiB it is our own form that runs
    compete(benchmark, gate_case(size), CPU, LIMITS, 0.05, compiled=False)
    case = read_result(as_file(benchmark, content, tmp_path / "result.json")).cases[0]
    assert (case.key.operator, case.key.dtype, case.key.direction) == ("gate", "fp32", "training")
    assert {name: c.role for name, c in case.candidates.items()} == {"ours": "ours", "reference": "alternative"}
    assert case.ours.form == "torch" and set(case.ours.milliseconds) == {"forward", "backward", "both"}
    assert (case.ours.rounds or 0) >= FEWEST
    result = 2 * 5 * size * size * 4
    for candidate in case.candidates.values():  # the result, its gradient and that of both halves
        assert candidate.peak_bytes is not None and 4 * result <= candidate.peak_bytes < 12 * result
    assert case.floor and case.floor.bound_by == "bytes" and case.floor.bytes == 8 * result
    assert len(case.errors["ours"]) == 2 and max(case.errors["ours"]) < 1e-6
    assert "triton" in case.unavailable and "CUDA" in case.unavailable["triton"]
    assert "reference" in line(benchmark.extra_info)


def test_a_kernel_that_is_wrong_at_a_tail_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
        y = gate_torch.gate(pre, activation, negative_slope)
        tail = torch.ones_like(y)
        tail[..., -1] = 0.9  # the last column, as if a mask were off by one
        return y * tail

    replace_gate(monkeypatch, wrong)
    benchmark = Benchmark()
    with pytest.raises(Wrong, match=r"gate, 2x10, fp32: torch is wrong: its result is wrong by 1\.\de-02"):
        compete(benchmark, gate_case(), CPU, LIMITS, 0.05, compiled=False)
    assert not benchmark.extra_info


def test_a_gradient_that_is_wrong_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
        y = gate_torch.gate(pre, activation, negative_slope)
        return y + 0.1 * (pre[:, :5] - pre[:, :5].detach())

    replace_gate(monkeypatch, wrong)
    with pytest.raises(Wrong, match="its gradient 1 is wrong"):
        compete(Benchmark(), gate_case(), CPU, LIMITS, 0.05, compiled=False)


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_slow_kernel_fails_the_guard(
    is_slow: bool, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def slow(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
        time.sleep(0.05 * is_slow)
        return gate_torch.gate(pre, activation, negative_slope)

    replace_gate(monkeypatch, slow)
    benchmark = Benchmark()
    compete(benchmark, gate_case(), CPU, LIMITS, 0.05, compiled=False)
    result = as_file(benchmark, content, tmp_path / "result.json")
    key = {"operator": "gate", "case": "2x10", "dtype": "fp32", "direction": "training"}
    bounds = tmp_path / "bounds.json"
    # A tenth of the reference's speed: no other process makes one of two that take turns ten times as slow.
    bounds.write_text(json.dumps({"bounds": [{**key, "against": "reference", "least": 0.1}]}))
    assert guard.main([str(result), "--bounds", str(bounds)]) == int(is_slow)
    assert ("TOO SLOW" in capsys.readouterr().out) == is_slow


def test_the_guard_allows_for_the_spread_and_misses_nothing(
    content: dict[str, Any], write: Callable[..., Path]
) -> None:
    result = read_result(write(content))
    case = result.cases[0]
    low, median, high = case.ratio("reference")
    allowed = median + (high - low)
    verdicts = guard.judge(
        result,
        [
            guard.Bound(case.key, "reference", 0.999 * allowed),
            guard.Bound(case.key, "reference", 1.001 * allowed),
            guard.Bound(case.key, "nobody", 0.0),
            guard.Bound(case.key._replace(dtype="fp16"), "reference", 0.0),
        ],
    )
    assert [verdict.holds for verdict in verdicts] == [True, False, False, False]


def test_the_committed_bounds_are_of_cases_that_the_quick_suite_has() -> None:
    bounds = guard.read_bounds(guard.BOUNDS)
    assert bounds and all(0.5 < bound.least < 20 for bound in bounds)
    assert all(bound.key.direction in ("training", "inference", "step") for bound in bounds)


def test_others_take_turns_in_changing_order_and_ours_comes_last() -> None:
    order: list[str] = []

    def candidate(name: str) -> Callable[[int], dict[str, float]]:
        def sample(repeats: int) -> dict[str, float]:
            order.append(name)
            return {"step": 0.01}

        return sample

    taken = take_turns(Benchmark(), {name: candidate(name) for name in ("ours", "a", "b")}, "ours", 1.0)
    rounds = [order[i : i + 3] for i in range(6, len(order), 3)]
    assert all(round[2] == "ours" for round in rounds) and {tuple(round[:2]) for round in rounds} == {
        ("a", "b"),
        ("b", "a"),
    }
    assert {len(samples) for samples in taken.values()} == {len(rounds)}


def test_ratios_are_of_the_same_round() -> None:
    """A machine that grows slower in the middle of it changes no ratio."""
    slowness = iter([factor for factor in [1.0] * 15 + [3.0] * 15 for _ in range(2)])

    def candidate(seconds: float) -> Callable[[int], dict[str, float]]:
        return lambda repeats: {"step": seconds * next(slowness, 3.0)}

    benchmark = Benchmark()
    contenders = {"ours": Contender(candidate(0.02), "ours"), "other": Contender(candidate(0.05))}
    hold(benchmark, Contest("thing", "case", "", "step"), contenders, 1.0)
    low, median, high = benchmark.extra_info["ratios"]["other"]["step"]
    assert (low, median, high) == pytest.approx((2.5, 2.5, 2.5))


def test_floors_by_hand() -> None:
    # 1 image of 2 channels, 4x4, 1x1 kernel to 3 gated channels.
    work = of_gated_convolution(32, 12, 48, taps=2, itemsize=2, training=False)
    assert work.bytes == 2 * (32 + 12 + 48) and work.flops == 2 * 96 * 2
    training = of_gated_convolution(32, 12, 48, taps=2, itemsize=2, training=True)
    assert training.flops == 3 * work.flops and training.bytes == work.bytes + 2 * (2 * 48 + 3 * 48 + 44 + 44)
    assert of_gate(10, 4, False).bytes == 120
