"""Checks of the arguments of a convolution with a leaky ReLU."""

from __future__ import annotations

from torch import Tensor

from fastt2i.ops.checks import check_floating, check_positive

OP = "leaky_conv2d"


def check_leaky_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float, gain: float) -> None:
    """x is (B, Cin, H, W), weight (Cout, Cin, kh, kw), bias (Cout,)."""
    check_floating(OP, x=x, weight=weight, bias=bias)
    check_positive(OP, negative_slope=negative_slope, gain=gain)
    if x.ndim != 4:
        raise ValueError(f"{OP}: x has shape {tuple(x.shape)}; it must be (B, Cin, H, W)")
    if weight.ndim != 4 or 0 in weight.shape or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"{OP}: weight has shape {tuple(weight.shape)}; it must be (Cout, {x.shape[1]}, kh, kw), as x has channels"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{OP}: bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},)")


def check_shortcut(
    weight: Tensor, size: tuple[int, ...], shortcut: Tensor, shortcut_weight: Tensor, shortcut_bias: Tensor | None
) -> None:
    """A 1x1 convolution of the shortcut has the output's shape, `size`; all have the weight's dtype and device."""
    if not isinstance(shortcut, Tensor) or not isinstance(shortcut_weight, Tensor):
        raise TypeError(f"{OP}: the shortcut's x and weight must be tensors")
    check_floating(OP, weight=weight, shortcut=shortcut, shortcut_weight=shortcut_weight, shortcut_bias=shortcut_bias)
    if shortcut.ndim != 4 or (shortcut.shape[0], *shortcut.shape[2:]) != (size[0], *size[2:]):
        raise ValueError(
            f"{OP}: the shortcut has shape {tuple(shortcut.shape)}; it must be ({size[0]}, C, {size[2]}, {size[3]}), "
            "with the images and pixels of the output"
        )
    expected = (size[1], shortcut.shape[1], 1, 1)
    if shortcut_weight.shape != expected:
        raise ValueError(f"{OP}: the shortcut's weight has shape {tuple(shortcut_weight.shape)}; it must be {expected}")
    if shortcut_bias is not None and shortcut_bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{OP}: the shortcut's bias has shape {tuple(shortcut_bias.shape)}; it must be ({weight.shape[0]},)"
        )
