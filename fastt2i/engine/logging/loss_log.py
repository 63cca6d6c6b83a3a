"""Accumulates losses on the device; they reach the host only when they are logged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastt2i.engine.distributed.world import World

NEVER = torch.iinfo(torch.int64).max


class NonFiniteLoss(Exception):
    """A loss was infinite or not a number.

    Attributes:
        step: the first step with such a loss.
        name: the loss.
    """

    def __init__(self, step: int, name: str) -> None:
        super().__init__(f"{name} at step {step}")
        self.step = step
        self.name = name


@dataclass
class _Sums:
    """Sums of the losses of some steps, their count, and the first step at which each loss was not finite."""

    total: Tensor
    count: Tensor
    first_bad: Tensor


class LossLog:
    """Sums of every loss since the last reading, and the first step at which each was not finite.

    world: the processes whose losses are parts of the whole batch's; one by default.
    """

    def __init__(self, world: World | None = None) -> None:
        self._world = world or World()
        self._sums: dict[tuple[str, ...], _Sums] = {}

    def add(self, losses: dict[str, Tensor], step: Tensor) -> None:
        """Add the losses of one step without waiting for the device; step: its number, int64 scalar.

        The sums stay where they are, so that this can be part of a CUDA graph.
        """
        values = torch.stack([v.float() for v in losses.values()])
        sums = self._sums.get(tuple(losses))
        if sums is None:
            zero, never = torch.zeros_like(values), torch.full_like(values, NEVER, dtype=torch.int64)
            sums = self._sums[tuple(losses)] = _Sums(zero, torch.zeros_like(step), never)
        sums.total += values
        sums.count += 1
        sums.first_bad.copy_(torch.where(values.isfinite(), sums.first_bad, sums.first_bad.minimum(step)))

    def read(self) -> dict[str, float]:
        """Means since the last reading, of all ranks; waits for the device and for the others.

        Raises:
            NonFiniteLoss: a loss was infinite or not a number at some step since the last reading.
        """
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        bad: list[tuple[int, str]] = []
        for names, sums in self._sums.items():
            self._world.all_reduce_mean_(sums.total)
            self._world.all_reduce_min_(sums.first_bad)
            steps = int(sums.count)
            for name, value, step in zip(names, sums.total.tolist(), sums.first_bad.tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + steps
                if step < NEVER:
                    bad.append((step, name))
            sums.total.zero_()
            sums.count.zero_()
            sums.first_bad.fill_(NEVER)
        if bad:
            raise NonFiniteLoss(*min(bad))
        return {name: totals[name] / counts[name] for name in totals if counts[name]}
