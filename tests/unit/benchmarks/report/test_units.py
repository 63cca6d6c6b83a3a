"""Figures keep three digits that count, and are what they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.result import Quartiles
from benchmarks.report.units import milliseconds, significant, times, with_prefix


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012345, "0.0123"),
        (0.99996, "1.00"),
        (1.2345, "1.23"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1512.4, "1512"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert significant(value) == text


@given(st.floats(1e-4, 1e9))
def test_what_is_written_is_the_value(value: float) -> None:
    assert float(significant(value)) == pytest.approx(value, rel=5.1e-3)
    assert "e" not in significant(value)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (43_234_567, "43.2 MB"),
        (999_600, "1 MB"),
        (5e15, "5 PB"),
    ],
)
def test_bytes(number: float | None, text: str) -> None:
    assert with_prefix(number) == text


def test_quartiles_stand_beside_the_median() -> None:
    measured = Quartiles(0.951, 0.9697, 1.0)
    assert milliseconds(measured) == "0.970 (0.951–1.00)"
    assert times(measured) == "0.970× (0.951–1.00)"
    assert with_prefix(1.1e11, "FLOP/s") == "110 GFLOP/s"
