"""Candidates take turns in changing order, and a ratio is of one round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from benchmarks.harness.roofline import Limits
from benchmarks.harness.suite import Suite, Timed
from benchmarks.harness.timing import take_turns


def test_all_take_turns_in_changing_order() -> None:
    order: list[str] = []

    def sampler(name: str) -> Callable[[int], dict[str, float]]:
        def sample(repeats: int) -> dict[str, float]:
            order.append(name)
            return {"step": 0.01}

        return sample

    taken = take_turns({name: sampler(name) for name in ("ours", "a", "b")}, 1.0)
    rounds = Counter(tuple(order[i : i + 3]) for i in range(6, len(order), 3))
    assert all(sorted(turns) == ["a", "b", "ours"] for turns in rounds) and len(rounds) > 3
    assert {len(samples) for samples in taken.values()} == {rounds.total()}


def test_ratios_are_of_the_same_round() -> None:
    """A machine that grows slower in the middle of it changes no ratio."""
    slowness = iter([factor for factor in [1.0] * 15 + [3.0] * 15 for _ in range(2)])

    def sampler(seconds: float) -> Callable[[int], dict[str, float]]:
        return lambda repeats: {"step": seconds * next(slowness, 3.0)}

    suite = Suite(torch.device("cpu"), Limits(1e10, {}), seconds=1.0)
    suite.compare({"ours": Timed(sampler(0.02), "ours"), "other": Timed(sampler(0.05))}, "case", operator="thing")
    assert suite.cases[0].ratio("other") == pytest.approx((2.5, 2.5, 2.5))
