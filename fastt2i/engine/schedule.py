"""Step-dependent scalars: learning rates and the weight of the moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fastt2i.config import OptimConfig
from fastt2i.engine.ema import Ema
from fastt2i.engine.optim import Player


class StepSchedule:
    """The number of a step, its learning rates and the weight of the moving average, as device tensors.

    A replayed CUDA graph reads the tensors and so sees the current values.

    Attributes:
        step: int64 scalar.
        ema_weight: float32 scalar.
    """

    def __init__(self, config: OptimConfig, steps: int, players: Sequence[Player[Any]], ema: Ema[Any]) -> None:
        """steps: of the whole run."""
        device = next(ema.module.parameters()).device
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.ema_weight = torch.zeros((), dtype=torch.float32, device=device)
        self._config, self._steps = config, steps
        self._players, self._ema = players, ema

    def set(self, step: int) -> None:
        """Set the values of step number `step`, counted from 0, without waiting for the device."""
        self.step.fill_(step)
        self.ema_weight.fill_(self._ema.weight(step))
        factor = lr_factor(self._config, step, self._steps)
        for player in self._players:
            player.set_lr(factor * getattr(self._config, f"{player.name}_lr"))


def lr_factor(config: OptimConfig, step: int, steps: int) -> float:
    """The factor of the learning rates at a step: linear warm-up, then constant or half a cosine down to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, steps - config.warmup)))
