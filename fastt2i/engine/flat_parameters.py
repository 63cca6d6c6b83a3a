"""A module's parameters in one piece of memory, so that what is done to all of them is one operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Numbers that a parameter's place is a multiple of: 256 bytes of float32, what allocators align to.
ALIGNMENT = 64


@torch.no_grad()
def flatten_parameters(module: nn.Module) -> Tensor:
    """Move the parameters of a module, all of one dtype and device, into a vector, of which they are views then.

    Values and memory formats stay as they are. Between two parameters there may be some unused zeros.
    """
    parameters = list(module.parameters())
    starts = [0]
    for parameter in parameters:
        starts.append(starts[-1] + -(-parameter.numel() // ALIGNMENT) * ALIGNMENT)
    flat = parameters[0].new_zeros(starts[-1])
    for parameter, start in zip(parameters, starts, strict=False):
        dense = torch.empty_like(parameter)  # its strides, without gaps
        view = flat.as_strided(parameter.shape, dense.stride(), start)
        parameter.data = view.copy_(parameter)
    return flat
