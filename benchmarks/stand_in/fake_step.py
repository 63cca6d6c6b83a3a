"""A preset's training step and its inputs as fake CUDA tensors: shapes, strides and dtypes without numbers."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases.training_step import make_inputs, make_step
from fastt2i.config import Config
from fastt2i.engine.flat_parameters import flatten_parameters
from fastt2i.engine.optim import make_player
from fastt2i.engine.precision import Precision
from fastt2i.engine.step import StepInputs, TrainStep

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
M = TypeVar("M", bound=nn.Module)


def fake_step(config: Config, mode: FakeTensorMode) -> tuple[TrainStep, StepInputs]:
    """The engine's step with fake networks, optimizers and inputs on a GPU, to be called inside `mode`.

    The optimizers have taken a step already, as before any capture.
    """
    # Built on the CPU, for a whitening needs its captions' numbers; then each tensor is replaced by a fake one.
    plain = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp32"))
    real, inputs = make_step(plain, CPU), make_inputs(config, CPU)
    generator, discriminator = (fake_module(p.module, mode) for p in (real.generator, real.discriminator))
    precision, ema = Precision(config.train.precision, CUDA), copy.copy(real.ema)
    with mode, _WithoutValues():
        players = [
            make_player(name, module, config.optim, precision)
            for name, module in (("generator", generator), ("discriminator", discriminator))
        ]
        ema.module = fake_module(real.ema.module, mode)
        ema._average, ema._source = flatten_parameters(ema.module), flatten_parameters(generator)
        for player in players:
            player.scaler.scale(torch.empty((), device=CUDA))
            for parameter in player.module.parameters():
                parameter.grad = torch.empty_like(parameter)
            player.step()
            player.zero_grad()
    return TrainStep(config.loss, *players, ema, precision), to_fake(inputs, mode)


def fake_module(module: M, mode: FakeTensorMode) -> M:
    """The module with fake parameters and buffers of the same strides."""
    with mode:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(_fake(parameter), requires_grad=parameter.requires_grad)
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else _fake(buffer)
    return module


def to_fake(part: Any, mode: FakeTensorMode) -> Any:
    """Tensors, or tuples of them, as fake ones on the GPU."""
    if isinstance(part, tuple):
        return type(part)(*(to_fake(p, mode) for p in part))
    with mode:
        return None if part is None else _fake(part)


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


class _WithoutValues(TorchDispatchMode):
    """Adam compares its learning rate with zero when it is made, and its kernel has no fake."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if function._schema.name.startswith("aten::_fused_adam"):
            return None
        return function(*arguments, **(options or {}))
