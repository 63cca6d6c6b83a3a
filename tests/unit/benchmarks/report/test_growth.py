"""Exponents of growth are those of the power laws that points are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.result import read_result
from benchmarks.report.growth import Point, curves, exponent


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("factor", [1e-6, 3.0])
def test_the_exponent_of_a_power_law(power: float, factor: float) -> None:
    points = [(x, factor * x**power) for x in (3, 16, 64, 100)]
    assert exponent(points) == pytest.approx(power, abs=1e-9)


def test_the_exponent_is_that_of_least_squares() -> None:
    """Of three points in equal steps the middle one has no say in the slope."""
    points = [(1, 1.0), (10, 7.0), (100, 100.0)]
    assert exponent(points) == pytest.approx(1.0)
    assert exponent([*points, (1000, 1e4)]) == pytest.approx(1.3155, abs=1e-4)


@pytest.mark.parametrize("points", [[], [(2, 3)], [(2, 3), (2, 4)]])
def test_one_place_has_no_exponent(points: list[Point]) -> None:
    assert exponent(points) is None


def test_a_curve_is_in_order_and_knows_who_ran(content: dict[str, Any], write: Callable[..., Path]) -> None:
    content["cases"].reverse()
    largest = next(case for case in content["cases"] if case["case"].startswith("batch 64"))
    del largest["candidates"]["reference"], largest["ratios"]["reference"]
    (curve,) = curves(read_result(write(content)))
    assert (curve.name, curve.axis, curve.candidates) == (
        "region_keyword_loss over the batch",
        "batch",
        ["ours", "reference"],
    )
    assert curve.times("ours") == [(x, pytest.approx(0.021 * x**2)) for x in (16, 32, 64)]
    assert curve.memory("reference") == [(x, 400 * x**2) for x in (16, 32)]
    assert exponent(curve.times("reference")) == pytest.approx(2.5)


def test_dtypes_are_curves_of_their_own(content: dict[str, Any], write: Callable[..., Path]) -> None:
    more = copy.deepcopy(content["cases"])
    for case in more:
        case["dtype"] = "bf16"
    content["cases"] += more
    names = [curve.name for curve in curves(read_result(write(content)))]
    assert names == [f"region_keyword_loss over the batch, {dtype}, training" for dtype in ("fp32", "bf16")]
