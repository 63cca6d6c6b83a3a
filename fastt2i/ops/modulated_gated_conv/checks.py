"""Checks of a modulation's arguments."""

from __future__ import annotations

import math

from torch import Tensor

from fastt2i.ops.checks import check_floating


def check_batch(op: str, x: Tensor) -> None:
    """x is a batch: scale and shift are by sample."""
    if x.ndim != 4:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; it must be (B, Cin, H, W)")


def check_modulation(
    op: str,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    gain: float,
    size: tuple[int, int],
) -> None:
    """scale and shift are (B, Cout), residual has the output's shape, with height and width `size`; all as x is."""
    for name, tensor in (("scale", scale), ("shift", shift)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} is a {type(tensor).__name__}; it must be a torch.Tensor")
    check_floating(op, x=x, scale=scale, shift=shift, residual=residual)
    expected = (x.shape[0], weight.shape[0] // 2)
    for name, tensor in (("scale", scale), ("shift", shift)):
        if tensor.shape != expected:
            raise ValueError(
                f"{op}: {name} has shape {tuple(tensor.shape)}; it must be {expected}, a number for each image and "
                "output channel"
            )
    if residual is not None and residual.shape != (*expected, *size):
        raise ValueError(
            f"{op}: residual has shape {tuple(residual.shape)}; it must be {(*expected, *size)}, as the output has"
        )
    if not math.isfinite(gain):
        raise ValueError(f"{op}: gain is {gain}; it must be finite")
