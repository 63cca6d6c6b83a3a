"""The players of the game and their optimizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from fastt2i.config import OptimConfig
from fastt2i.engine.precision import Precision

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Player(Generic[M]):
    """One of the two networks with what trains it."""

    name: str
    module: M
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def minimise(self, loss: Tensor) -> None:
        """One step of the optimizer down the gradient of `loss`."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def make_player(name: str, module: M, config: OptimConfig, precision: Precision) -> Player[M]:
    """A player whose learning rate is the configuration's `<name>_lr`."""
    optimizer = torch.optim.Adam(
        module.parameters(), lr=getattr(config, f"{name}_lr"), betas=(config.beta1, config.beta2), eps=1e-8, fused=True
    )
    return Player(name, module, optimizer, precision.make_scaler())
