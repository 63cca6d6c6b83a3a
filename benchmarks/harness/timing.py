"""Candidates that take turns, so that none has the better minutes of a machine."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.isolation import pause

#: Seconds of each part of a run, such as its forward and its backward.
Sample = Mapping[str, float]
#: Runs as often as told, and returns the mean of each part.
Candidate = Callable[[int], Sample]

#: Seconds that one sample takes at least: shorter runs are repeated, so that no clock and no interrupt decides.
SHORTEST = 5e-3
#: Rounds of all candidates.
FEWEST, MOST = 5, 61
#: Parts that they are divided into, between which other cases have their turns.
WINDOWS = 5


class Stopwatch:
    """Takes the time of a device, from which the host may run away.

    On a GPU, what its second-level cache holds is pushed out before a run, so that every run reads its inputs from
    memory; meanwhile the host gets ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pushes: Tensor | None = None
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._pushes = torch.empty(4 * cache, dtype=torch.uint8, device=device)

    def clear(self) -> None:
        """Make the caches of a GPU forget; on a CPU what fits into them is there in training too."""
        if self._pushes is not None:
            self._pushes.zero_()

    def mark(self) -> Any:
        """Now, on the device."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: Sequence[Any]) -> list[float]:
        """Between each mark and the next."""
        if self._device.type != "cuda":
            return [later - earlier for earlier, later in itertools.pairwise(marks)]
        marks[-1].synchronize()
        return [1e-3 * earlier.elapsed_time(later) for earlier, later in itertools.pairwise(marks)]

    def timed(self, run: Callable[[], object], part: str) -> Candidate:
        """A candidate of one part."""

        def sample(repeats: int) -> Sample:
            total = 0.0
            for _ in range(repeats):
                self.clear()
                marks = [self.mark()]
                run()
                marks.append(self.mark())
                total += self.seconds(marks)[0]
            return {part: total / repeats}

        return sample


def take_turns(
    benchmark: Any, candidates: Mapping[str, Candidate], ours: str, seconds: float
) -> dict[str, list[Sample]]:
    """Time candidates in rounds of all, for about as many seconds; each candidate's sample of each round.

    The order changes from round to round, but ours is last, for that is what pytest-benchmark's own row tells. Each is
    run twice before, and the second run decides how often it is repeated and how many rounds there are. Between some
    rounds other cases have their turns, where they do (`isolation`).
    """
    alone = {name: sum([sum(sample(1).values()) for _ in range(2)][1:]) for name, sample in candidates.items()}
    repeats = {name: max(1, math.ceil(SHORTEST / took)) for name, took in alone.items()}
    a_round = sum(alone[name] * repeats[name] for name in candidates)
    rounds = min(MOST, max(FEWEST, int(seconds / a_round)))
    taken: dict[str, list[Sample]] = {name: [] for name in candidates}
    others, shuffle = [name for name in candidates if name != ours], random.Random(0)
    begins = {-(-rounds * window // WINDOWS) for window in range(1, WINDOWS)}

    def take(name: str) -> None:
        taken[name].append(candidates[name](repeats[name]))

    def take_others() -> None:
        if len(taken[ours]) in begins:
            pause()
        shuffle.shuffle(others)
        for name in others:
            take(name)

    benchmark.pedantic(take, args=(ours,), setup=take_others, rounds=rounds)
    return taken


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


def milliseconds(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Quartiles of every part of a candidate's samples."""
    return {part: [1e3 * t for t in quartiles([sample[part] for sample in samples])] for part in samples[0]}


def ratios(theirs: Sequence[Sample], ours: Sequence[Sample]) -> dict[str, list[float]]:
    """Quartiles of their time over ours, round by round: more than 1 is for us."""
    return {
        part: quartiles([a[part] / b[part] for a, b in zip(theirs, ours, strict=True)])
        for part in ours[0]
        if part in theirs[0]
    }
