"""Moving average of a module's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """An exponential moving average of a module's parameters, itself a module that can be run and saved.

    The decay ramps up, min(decay, (1 + t) / (10 + t)) at step t, so that the first random weights are forgotten
    quickly.
    """

    def __init__(self, source: M, decay: float) -> None:
        self.module = copy.deepcopy(source).eval().requires_grad_(False)
        self._decay = decay
        self._average: list[Tensor] = list(self.module.parameters())
        self._source: list[Tensor] = list(source.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the source after step number `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._source, 1 - decay)
