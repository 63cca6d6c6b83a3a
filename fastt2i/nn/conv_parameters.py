"""Gated convolutions made of `torch.nn.Conv2d`: which ones fit together, and the copy of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def check_convs(feature_conv: nn.Conv2d, gate_conv: nn.Conv2d | None) -> int:
    """How many rows a gated convolution made of these has; raises where they do not fit together."""
    given = [feature_conv] if gate_conv is None else [feature_conv, gate_conv]
    for conv in given:
        if type(conv) is not nn.Conv2d:
            raise TypeError(f"from_conv: {type(conv).__name__} is not torch.nn.Conv2d itself, and may do other things")
        if hooks := [*conv._forward_pre_hooks.values(), *conv._forward_hooks.values()]:
            raise ValueError(
                f"from_conv: the convolution has a hook ({_name(hooks[0])}), which would be lost; remove it before"
            )
        if conv.padding_mode != "zeros":
            raise ValueError(f"from_conv: padding_mode is {conv.padding_mode!r}; it must be 'zeros'")
    if gate_conv is None:
        if feature_conv.out_channels % 2:
            raise ValueError(
                f"from_conv: the convolution has {feature_conv.out_channels} output channels; there must be an even "
                "number: the feature half, then the gate half"
            )
        return feature_conv.out_channels
    if feature_conv.groups != 1 or gate_conv.groups != 1:
        groups = (feature_conv.groups, gate_conv.groups)
        raise ValueError(f"from_conv: two convolutions with groups {groups} are not one with groups; they must have 1")
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"):
        ours, theirs = getattr(feature_conv, name), getattr(gate_conv, name)
        if ours != theirs:
            raise ValueError(f"from_conv: {name} is {ours} in feature_conv and {theirs} in gate_conv; they must agree")
    for name in ("weight", "bias"):
        ours, theirs = getattr(feature_conv, name), getattr(gate_conv, name)
        if ours is not None and theirs is not None and ours.requires_grad != theirs.requires_grad:
            raise ValueError(f"from_conv: one {name} has requires_grad=False; both must, or none: they become one")
    return 2 * feature_conv.out_channels


def _name(hook: object) -> str:
    return getattr(hook, "__name__", type(hook).__name__)


def copy_parameters(convs: Sequence[nn.Conv2d], weight: Tensor, bias: Tensor | None) -> None:
    """Copy the convolutions' weights and biases into a layer's, one's rows behind the other's; frozen ones stay so."""
    with torch.no_grad():
        weight.copy_(torch.cat([conv.weight for conv in convs]))
        weight.requires_grad_(convs[0].weight.requires_grad)
        if bias is not None:
            rows = [conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias for conv in convs]
            bias.copy_(torch.cat(rows))
            bias.requires_grad_(any(conv.bias is not None and conv.bias.requires_grad for conv in convs))


def pair(values: tuple[int, ...]) -> tuple[int, int]:
    """Height and width, as `Conv2d` has them, typed as two."""
    return values[0], values[1]
