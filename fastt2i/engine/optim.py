"""The players of the game and their optimizers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fastt2i.config import OptimConfig
from fastt2i.engine.distributed.gradient_mean import GradientMean
from fastt2i.engine.distributed.world import World
from fastt2i.engine.precision import Precision
from fastt2i.errors import UserError

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Player(Generic[M]):
    """One of the two networks with what trains it."""

    name: str
    module: M
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    mean: GradientMean | None = None
    """What takes the mean of the gradients over all ranks, where there are several."""

    def minimise(self, loss: Tensor) -> None:
        """One step of the optimizer down the gradient of `loss`, of its mean over all ranks."""
        self.forget_gradients()
        self.add_gradient(loss)
        self.step()

    def add_gradient(self, loss: Tensor, *, last: bool = True) -> None:
        """Add the gradient of a part of the loss; with the last part, take the mean over all ranks of what they add."""
        with self.mean if self.mean and last else nullcontext():
            self.scaler.scale(loss).backward()

    def step(self) -> None:
        """One step of the optimizer down the gradients that were added."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def forget_gradients(self) -> None:
        """Drop the gradients. Not by `zero_grad(set_to_none=True)`: Apex's takes no argument."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if self.scaler.is_enabled():
            # And what the scaler has noted of them: a step that failed between its two calls, as where it cannot be
            # captured in a CUDA graph, would let none follow.
            self.scaler._per_optimizer_states.clear()

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the steps to come, without waiting for the device."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)


def make_player(
    name: str, module: M, config: OptimConfig, precision: Precision, world: World | None = None
) -> Player[M]:
    """A player whose learning rate is the configuration's `<name>_lr`, in a run of one process by default.

    Raises:
        UserError: the optimizer asked for is not installed, or needs a GPU.
    """
    optimizer = _make_optimizer(module, config, getattr(config, f"{name}_lr"))
    mean = GradientMean(module.parameters(), world.size) if world and world.size > 1 else None
    return Player(name, module, optimizer, precision.make_scaler(), mean)


def _make_optimizer(module: nn.Module, config: OptimConfig, rate: float) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    device = parameters[0].device
    # On the device, where the rate of the day reaches a captured step too.
    shared: dict[str, Any] = {
        "lr": torch.tensor(rate, dtype=torch.float32, device=device),
        "betas": (config.beta1, config.beta2),
        "eps": 1e-8,
    }
    if config.name == "apex":
        return _apex_adam()(parameters, adam_w_mode=False, capturable=True, **shared)
    return torch.optim.Adam(parameters, fused=True, capturable=device.type == "cuda", **shared)


def _apex_adam() -> Callable[..., torch.optim.Optimizer]:
    """NVIDIA Apex's FusedAdam; the package called apex on PyPI is another project."""
    try:
        from apex.optimizers import FusedAdam
    except ImportError:
        raise UserError(
            "optim.name is apex, but NVIDIA Apex, which has apex.optimizers.FusedAdam, is not installed; it is built "
            "from its source, github.com/NVIDIA/apex, with APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v "
            "--no-build-isolation . (the package apex on PyPI is another project); optim.name adam needs nothing more"
        ) from None
    if not torch.cuda.is_available():
        raise UserError("optim.name is apex, whose FusedAdam needs a GPU, and torch sees none here; use adam")
    return FusedAdam
