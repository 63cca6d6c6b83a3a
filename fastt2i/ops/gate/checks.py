"""Checks of a gate's arguments."""

from __future__ import annotations

from torch import Tensor

from fastt2i.ops.checks import check_floating
from fastt2i.ops.gate.reference import ACTIVATIONS


def check_activation(op: str, activation: str) -> None:
    """The activation is one that exists."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")


def check_gate(pre: Tensor, activation: str) -> None:
    """pre is (B, 2C, *)."""
    check_floating("gate", pre=pre)
    check_activation("gate", activation)
    if pre.ndim < 2 or pre.shape[1] % 2:
        raise ValueError(
            f"gate: pre has shape {tuple(pre.shape)}; it must be (B, 2C, ...), with an even number of channels"
        )
