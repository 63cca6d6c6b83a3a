"""Candidates that take turns, so that none has the better minutes of a machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def in_turns(
    benchmark: Any, candidates: dict[str, Callable[[], float | None]], *, rounds: int, warm_up: int = 3
) -> dict[str, list[float]]:
    """Time candidates in rounds of all; the first is what the others are compared with.

    A candidate may return the seconds that count of it. Quartiles in milliseconds and the median of the ratios of each
    round go into the row's `extra_info`, and are printed. Returns seconds of each round.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}

    def one_round() -> None:
        for name, run in candidates.items():
            taken[name].append(_seconds(run))

    for _ in range(warm_up):
        one_round()
    for times in taken.values():
        times.clear()
    benchmark.pedantic(one_round, rounds=rounds)
    first = next(iter(candidates))
    print(f"\n{benchmark.group}")
    for name, times in taken.items():
        quartiles = statistics.quantiles(times, n=4)
        ratios = statistics.quantiles([a / b for a, b in zip(taken[first], times, strict=True)], n=4)
        benchmark.extra_info[name] = {
            "milliseconds": [round(1e3 * t, 3) for t in quartiles],
            f"times {first}": [round(ratio, 3) for ratio in ratios],
        }
        print(f"  {name:34} {1e3 * quartiles[1]:9.2f} ms {ratios[1]:7.2f}x  ({ratios[0]:.2f} to {ratios[2]:.2f})")
    return taken


def _seconds(run: Callable[[], float | None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    own = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began if own is None else own
