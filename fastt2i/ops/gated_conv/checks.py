"""Checks of a gated convolution's arguments."""

from __future__ import annotations

from torch import Tensor

from fastt2i.ops.checks import check_floating, is_whole
from fastt2i.ops.gate.checks import check_activation


def check_gated_conv2d(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, activation: str) -> None:
    """x is (B, Cin, H, W), weight (2 Cout, Cin / groups, kh, kw), bias (2 Cout,)."""
    check_floating(op, x=x, weight=weight, bias=bias)
    check_activation(op, activation)
    if x.ndim != 4:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; it must be (B, Cin, H, W) or (Cin, H, W)")
    if weight.ndim != 4 or weight.shape[0] % 2 or weight.shape[0] == 0:
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}; it must be (2 * Cout, Cin / groups, kh, kw), with an even "
            "number of rows: the feature half, then the gate half"
        )
    if 0 in weight.shape[1:]:
        raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}; there must be a channel and a tap each way")
    if not is_whole(groups):
        raise ValueError(f"{op}: groups is {groups!r}; it must be a whole number")
    if groups < 1 or weight.shape[0] % groups or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            f"{op}: x has {x.shape[1]} channels and weight has {weight.shape[0]} rows of {weight.shape[1]}, which do "
            f"not fit {groups} groups; x must have {weight.shape[1]} * groups channels and groups must divide the rows"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{op}: bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},), as weight has rows"
        )


def check_convolution(
    op: str, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    """Stride, padding and dilation are possible, and the kernel fits the image."""
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f"{op}: stride is {stride}, padding {padding} and dilation {dilation}; stride and dilation must be 1 or "
            "more, padding 0 or more"
        )
    for k, side in enumerate(("height", "width")):
        reach, size = dilation[k] * (weight.shape[2 + k] - 1) + 1, x.shape[2 + k] + 2 * padding[k]
        if reach > size:
            raise ValueError(
                f"{op}: the kernel reaches over {reach} pixels of {side} and x has {size} with its padding"
            )


def check_upsample_gated_conv2d(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """As for `gated_conv2d`, with a 3x3 kernel."""
    check_gated_conv2d(op, x, weight, bias, 1, activation)
    if weight.shape[2:] != (3, 3):
        raise ValueError(f"{op}: weight has a kernel of {tuple(weight.shape[2:])}; it must be (3, 3)")
