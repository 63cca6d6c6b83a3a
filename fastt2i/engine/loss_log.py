"""Losses accumulate on the device, and reach the host only when they are logged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    total: Tensor
    first_bad: Tensor
    count: int = 0


class LossLog:
    """Sums of every loss since the last reading, and the first step at which each was not finite."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], _Sums] = {}

    def add(self, losses: dict[str, Tensor], step: int) -> None:
        """Take in the losses of one step without waiting for the device."""
        values = torch.stack([v.float() for v in losses.values()])
        sums = self._sums.get(tuple(losses))
        if sums is None:
            never = torch.full_like(values, torch.iinfo(torch.int64).max, dtype=torch.int64)
            sums = self._sums[tuple(losses)] = _Sums(torch.zeros_like(values), never)
        sums.total += values
        sums.first_bad = torch.where(values.isfinite(), sums.first_bad, sums.first_bad.clamp(max=step))
        sums.count += 1

    def read(self) -> dict[str, float]:
        """Means since the last reading; waits for the device.

        Raises:
            NonFiniteLoss: a loss was infinite or not a number at some step since the last reading.
        """
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        bad: list[tuple[int, str]] = []
        for names, sums in self._sums.items():
            total, first_bad = sums.total.tolist(), sums.first_bad.tolist()
            for name, value, step in zip(names, total, first_bad, strict=True):
                totals[name] = totals.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + sums.count
                if step < torch.iinfo(torch.int64).max:
                    bad.append((step, name))
        self._sums.clear()
        if bad:
            raise NonFiniteLoss(*min(bad))
        return {name: totals[name] / counts[name] for name in totals}
