"""Moving average of a module's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from fastt2i.engine.flat_parameters import flatten_parameters

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """An exponential moving average of a module's parameters, itself a module that can be run and saved.

    The parameters of both become views of one vector each, so that an update is one launch.
    """

    def __init__(self, source: M, decay: float) -> None:
        self.module = copy.deepcopy(source).eval().requires_grad_(False)
        self.decay = decay
        self._average = flatten_parameters(self.module)
        self._source = flatten_parameters(source)

    def weight(self, step: int) -> float:
        """What the source weighs in the update after step number `step`, counted from 0.

        The decay ramps up, min(decay, (1 + t) / (10 + t)) at step t, so that the first random weights are forgotten
        quickly.
        """
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """Move the average towards the source; weight: float32 scalar, on the device."""
        self._average.lerp_(self._source, weight)
