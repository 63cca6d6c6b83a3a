"""Candidates are timed in turns, round after round, so that a machine's slower minutes are shared by all."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.harness.isolation import pause
from benchmarks.harness.result import Quartiles

#: Seconds of each part of a run, such as its forward and its backward.
Sample = Mapping[str, float]
#: Runs as often as told, and returns the mean of each part.
Sampler = Callable[[int], Sample]

#: Seconds that a sample takes at least: shorter runs are repeated, so that neither clock nor interrupts decide.
MIN_SAMPLE_SECONDS = 5e-3
MIN_ROUNDS, MAX_ROUNDS = 5, 61
#: The rounds are divided into so many windows, between which other cases have their turns.
WINDOWS = 5
#: Significant digits that are recorded.
DIGITS = 4


class Stopwatch:
    """Takes the time of a device.

    On a GPU times are those of events, and the second-level cache is flushed before a run, so that every run reads its
    inputs from memory; meanwhile the host gets ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        if self._on_cuda:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(4 * cache, dtype=torch.uint8, device=device)

    def laps(self, run: Callable[[Callable[[], None]], object], repeats: int) -> list[float]:
        """Mean seconds of each lap of a run, which is given what it calls at the end of one."""
        rows = []
        for _ in range(repeats):
            if self._on_cuda:  # on a CPU, what fits into the caches is there in training too
                self._flush.zero_()
            marks = [self._mark()]
            run(lambda marks=marks: marks.append(self._mark()))
            rows.append(self._seconds(marks))
        return [statistics.fmean(column) for column in zip(*rows, strict=True)]

    def sampler(self, run: Callable[[], object], part: str = "step") -> Sampler:
        """Times a run that has one part."""

        def in_one_lap(lap: Callable[[], None]) -> None:
            run()
            lap()

        return lambda repeats: {part: self.laps(in_one_lap, repeats)[0]}

    def _mark(self) -> Any:
        """The present moment on the device."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, marks: Sequence[Any]) -> list[float]:
        """Between each mark and the next."""
        if not self._on_cuda:
            return [later - earlier for earlier, later in itertools.pairwise(marks)]
        marks[-1].synchronize()
        return [1e-3 * earlier.elapsed_time(later) for earlier, later in itertools.pairwise(marks)]


def take_turns(samplers: Mapping[str, Sampler], seconds: float) -> dict[str, list[Sample]]:
    """Time candidates for about as many seconds together; each one's sample of each round.

    The order changes from round to round. Each is run twice before; the second run decides how often it is repeated in
    a sample, and the number of rounds. Between some rounds other cases have their turns (`isolation`).
    """
    alone = {name: [sum(sample(1).values()) for _ in range(2)][1] for name, sample in samplers.items()}
    repeats = {name: max(1, math.ceil(MIN_SAMPLE_SECONDS / took)) for name, took in alone.items()}
    rounds = int(seconds / sum(alone[name] * repeats[name] for name in samplers))
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, rounds))
    pauses = {-(-rounds * window // WINDOWS) for window in range(1, WINDOWS)}
    taken: dict[str, list[Sample]] = {name: [] for name in samplers}
    order, shuffle = list(samplers), random.Random(0)
    for number in range(rounds):
        if number in pauses:
            pause()
        shuffle.shuffle(order)
        for name in order:
            taken[name].append(samplers[name](repeats[name]))
    return taken


def rounded(value: float) -> float:
    """To the digits that are recorded."""
    return float(f"{value:.{DIGITS}g}")


def quartiles(values: Sequence[float]) -> Quartiles:
    return Quartiles(*map(rounded, statistics.quantiles(values, n=4, method="inclusive")))


def milliseconds(samples: Sequence[Sample]) -> dict[str, Quartiles]:
    """Quartiles of every part."""
    return {part: quartiles([1e3 * sample[part] for sample in samples]) for part in samples[0]}


def ratios(theirs: Sequence[Sample], ours: Sequence[Sample]) -> dict[str, Quartiles]:
    """Quartiles of their time over ours, round by round."""
    return {
        part: quartiles([a[part] / b[part] for a, b in zip(theirs, ours, strict=True)])
        for part in ours[0]
        if part in theirs[0]
    }
