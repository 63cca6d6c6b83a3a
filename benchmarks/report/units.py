"""How figures are written: three significant digits, quartiles in brackets, SI prefixes."""

from __future__ import annotations

from benchmarks.harness.result import Quartiles


def significant(value: float) -> str:
    """Three significant digits, and all before the point; without an exponent from 0.0001 on."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"


def milliseconds(time: Quartiles) -> str:
    """Median, and the quartiles around it."""
    return f"{significant(time.median)} ({significant(time.low)}–{significant(time.high)})"


def times(ratio: Quartiles) -> str:
    """Median, and the quartiles around it."""
    return f"{significant(ratio.median)}× ({significant(ratio.low)}–{significant(ratio.high)})"


def with_prefix(value: float | None, unit: str = "B") -> str:
    """With an SI prefix: `43.2 MB`, `1.23 TFLOP/s`; empty where nothing is known."""
    from matplotlib.ticker import EngFormatter  # here, since the guard needs none

    return "" if value is None else EngFormatter(unit)(float(f"{value:.3g}"))


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
