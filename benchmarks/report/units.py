"""How figures are written in reports, comparisons and the README: three digits that count, quartiles in brackets."""

from __future__ import annotations

import math

from benchmarks.harness.result import Quartiles

UNITS = ("B", "kB", "MB", "GB", "TB")


def significant(value: float, digits: int = 3) -> str:
    """Without an exponent; digits before the point are all kept."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 9.996 becomes 10.0, which has one digit less behind the point
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def milliseconds(time: Quartiles) -> str:
    """Median, and the quartiles around it."""
    return f"{significant(time.median)} ({significant(time.low)}–{significant(time.high)})"


def times(ratio: Quartiles) -> str:
    """Median, and the quartiles around it."""
    return f"{significant(ratio.median)}× ({significant(ratio.low)}–{significant(ratio.high)})"


def bytes_of(number: float | None) -> str:
    """In the unit that leaves one to three digits before the point; empty where nothing is known."""
    if number is None:
        return ""
    power = min(len(UNITS) - 1, int(math.log10(number) // 3)) if number >= 1 else 0
    return f"{significant(number / 1000**power)} {UNITS[power]}"


def rate(number: float, unit: str) -> str:
    """Of a second: `1.23 TFLOP/s`."""
    power = max(0, min(5, int(math.log10(number) // 3)))
    return f"{significant(number / 1000**power)} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}/s"
