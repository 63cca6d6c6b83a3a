"""Initialisation of gated convolutions: the gain that keeps the mean square."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from fastt2i.ops.gate.reference import activate


@cache
def feature_gain(activation: str, negative_slope: float) -> float:
    """The standard deviation a of the feature half at which E[act(a f)^2] E[sigmoid(g)^2] = 1 for f, g ~ N(0, 1).

    `tanh` cannot reach 1; it gets 5/3, which `torch.nn.init.calculate_gain` recommends.
    """
    if activation == "tanh":
        return nn.init.calculate_gain("tanh")
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64, device="cpu")  # whatever the default device is
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)

    def mean_square(values: Tensor) -> float:
        return torch.trapezoid(values.square() * density, x).item()

    gate = mean_square(torch.sigmoid(x))
    low, high = 0.0, 100.0
    for _ in range(60):  # bisection: the mean square grows with the gain
        gain = (low + high) / 2
        if mean_square(activate(gain * x, activation, negative_slope)) * gate < 1:
            low = gain
        else:
            high = gain
    return gain
