"""The two networks of a GAN with their optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastt2i.config import OptimConfig
from fastt2i.engine.cast_parameters import cast_parameters
from fastt2i.engine.distributed.gradient_mean import GradientMean
from fastt2i.engine.distributed.world import World
from fastt2i.engine.precision import Precision
from fastt2i.errors import UserError

M = TypeVar("M", bound=nn.Module)
PLAYERS = ("generator", "discriminator")


@dataclass(frozen=True)
class Player(Generic[M]):
    """One of the two networks with its optimizer and gradient scaler."""

    name: str
    module: M
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    gradient_mean: GradientMean | None = None
    """Averages the gradients over all ranks, where there are several."""
    frozen: frozenset[nn.Parameter] = frozenset()
    """Parameters that are never trained."""

    def requires_grad_(self, required: bool) -> None:
        """Whether the module's parameters get gradients; those that are never trained get none."""
        for parameter in self.module.parameters():
            parameter.requires_grad_(required and parameter not in self.frozen)

    def run(self, precision: Precision, *inputs: Tensor) -> Any:
        """What the module returns, computed in a precision; compiled code fuses its casts with what needs them."""
        with precision.autocast():
            if not precision.casts or torch.compiler.is_compiling():
                return self.module(*inputs)
            groups = self.gradient_mean.groups if self.gradient_mean else ()
            copies = cast_parameters(self.module, precision.dtype, groups)
            return functional_call(self.module, copies, inputs, tie_weights=False)

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Accumulate the gradient of a part of the loss; with the last part, average the sum over all ranks."""
        with self.gradient_mean if self.gradient_mean and last else nullcontext():
            self.scaler.scale(loss).backward()

    def step(self) -> None:
        """One step of the optimizer with the accumulated gradients."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def zero_grad(self) -> None:
        """Set the gradients to None. Not by `zero_grad(set_to_none=True)`: Apex's takes no argument."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if self.scaler.is_enabled():
            # And the scaler's record of them: after a step that failed between its two calls, as when it cannot be
            # captured in a CUDA graph, it would refuse the next one.
            self.scaler._per_optimizer_states.clear()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate, without waiting for the device."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)


def make_player(
    name: str, module: M, config: OptimConfig, precision: Precision, world: World | None = None
) -> Player[M]:
    """A player whose learning rate is the configuration's `<name>_lr`, in a run of one process by default.

    Raises:
        UserError: the optimizer asked for is not installed, or needs a GPU; or nothing of the player would be trained.
    """
    frozen = _freeze(name, module, config.freeze)
    optimizer = _make_optimizer(module, config, getattr(config, f"{name}_lr"))
    trained = [p for p in module.parameters() if p not in frozen]
    gradient_mean = GradientMean(trained, world.size) if world and world.size > 1 else None
    return Player(name, module, optimizer, precision.make_scaler(), gradient_mean, frozen)


def _freeze(player: str, module: nn.Module, parts: Sequence[str]) -> frozenset[nn.Parameter]:
    """The parameters of the parts that are of this player; they require no gradient any more.

    Raises:
        UserError: there is no such part, or nothing would be left to train.
    """
    frozen: set[nn.Parameter] = set()
    for part in parts:
        owner, _, path = part.partition(".")
        if owner not in PLAYERS:
            raise UserError(f"optim.freeze names {part}; a part begins with {' or '.join(PLAYERS)}")
        if owner != player:
            continue
        own = [p for name, p in module.named_parameters() if f"{name}.".startswith(f"{path}." if path else "")]
        if not own:
            names = ", ".join(f"{player}.{name}" for name, _ in module.named_children())
            raise UserError(f"optim.freeze names {part}, which has nothing to train; there are {names}")
        frozen.update(own)
    if all(p in frozen for p in module.parameters()):
        raise UserError(f"optim.freeze leaves nothing of the {player} to train")
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozenset(frozen)


def _make_optimizer(module: nn.Module, config: OptimConfig, rate: float) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    device = parameters[0].device
    # A device tensor, so that a replayed CUDA graph sees the current value.
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
