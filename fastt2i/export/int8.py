"""Weights in 8 bits: a quarter of the size, at a loss that an export measures and tells.

What is computed with them is float32 as before: only what the file holds is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

#: Weights that share a scale: of one row, side by side.
GROUP = 32
#: Smaller weights stay as they are: they are next to nothing of the file.
SMALLEST = 4096


class Int8(nn.Module):
    """A weight (N, ...) as int8 (N, groups, group) and scales (N, groups, 1): weight = int8 * scale.

    A group's scale is its largest magnitude over 127, so that an error is at most 1/254 of that.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        row = shape[1:].numel()
        self.group = GROUP if row % GROUP == 0 else row

    def forward(self, rounded: Tensor, scale: Tensor) -> Tensor:
        return (rounded.to(scale.dtype) * scale).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        groups = weight.reshape(len(weight), -1, self.group)
        scale = groups.abs().amax(dim=2, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        return (groups / scale).round().clamp(-127, 127).to(torch.int8), scale


def quantize_weights(network: nn.Module) -> None:
    """Replace every large weight matrix in a network, which is not trained, by its int8 form."""
    for module in list(network.modules()):
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() >= 2 and weight.numel() >= SMALLEST:
            weight.requires_grad_(False)
            parametrize.register_parametrization(module, "weight", Int8(weight.shape))
