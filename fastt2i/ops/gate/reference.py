"""The definition of the gate in readable PyTorch, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "elu": F.elu, "silu": F.silu, "tanh": torch.tanh}
ACTIVATIONS = ("identity", "leaky_relu", *POINTWISE)


def activate(x: Tensor, activation: str, negative_slope: float) -> Tensor:
    """The activation of the feature half."""
    if activation == "identity":
        return x
    if activation == "leaky_relu":
        return F.leaky_relu(x, negative_slope)
    return POINTWISE[activation](x)


def gate(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f) * sigmoid(g) of pre (B, 2C, *) = [f, g]."""
    feature, gate = pre.chunk(2, dim=1)
    return activate(feature, activation, negative_slope) * torch.sigmoid(gate)
