"""The gate against its formula; its mistakes are told with those of the gated convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops import gate
from fastt2i.ops.gate.reference import ACTIVATIONS

WRITTEN_OUT = {
    "identity": lambda x: x,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.2 * x),
    "relu": lambda x: x.clamp(min=0),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "silu": lambda x: x / (1 + (-x).exp()),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_is_its_formula(activation: str) -> None:
    pre = randn(2, 6, 5, 3)
    expected = WRITTEN_OUT[activation](pre[:, :3]) / (1 + (-pre[:, 3:]).exp())
    torch.testing.assert_close(gate(pre, activation=activation), expected)


def test_the_identity_gate_is_a_glu_in_any_dimension() -> None:
    for shape in [(3, 4), (3, 4, 5), (3, 4, 5, 6), (0, 4, 5)]:
        pre = randn(*shape)
        torch.testing.assert_close(gate(pre, activation="identity"), F.glu(pre, dim=1))


def test_negative_slope() -> None:
    pre = randn(2, 2)
    expected = torch.where(pre[:, :1] > 0, pre[:, :1], 0.01 * pre[:, :1]) * pre[:, 1:].sigmoid()
    torch.testing.assert_close(gate(pre, negative_slope=0.01), expected)
