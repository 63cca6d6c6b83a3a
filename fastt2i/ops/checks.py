"""Checks of the operators' arguments: an error is one sentence with the values in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastt2i.ops.gate.reference import ACTIVATIONS
from fastt2i.ops.region_keyword.reference import VARIANTS

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensors(op: str, **arguments: Tensor | None) -> None:
    """All are tensors; None is passed over."""
    for name, argument in arguments.items():
        if argument is not None and not isinstance(argument, Tensor):
            raise TypeError(f"{op}: {name} is a {type(argument).__name__}; it must be a torch.Tensor")


def check_pair(op: str, name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """A whole number stands for two; the two numbers."""
    both = value if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(isinstance(number, int) for number in both):
        raise ValueError(f"{op}: {name} is {value!r}; it must be a whole number, or two of them: height, then width")
    return both[0], both[1]


def check_padding(op: str, padding: int | Sequence[int] | str) -> None:
    """Padding is a word that is known, or a pair of numbers."""
    if not isinstance(padding, str):
        check_pair(op, "padding", padding)
    elif padding not in ("same", "valid"):
        raise ValueError(f"{op}: padding is {padding!r}; it must be numbers, 'same' or 'valid'")


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """All tensors are floating point, of one dtype and on one device; None is passed over."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first_name, first = next(iter(given.items()))
    for name, tensor in given.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{op}: {name} is {tensor.dtype}; it must be float32, float16, bfloat16 or float64")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{op}: {name} is {tensor.dtype} but {first_name} is {first.dtype}; they must agree")
        if tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} but {first_name} is on {first.device}; they must agree"
            )


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


def check_gated_conv2d(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, activation: str) -> None:
    """x is (B, Cin, H, W), weight (2 Cout, Cin / groups, kh, kw), bias (2 Cout,)."""
    check_floating(op, x=x, weight=weight, bias=bias)
    check_activation(op, activation)
    if x.ndim != 4:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; it must be (B, Cin, H, W)")
    if weight.ndim != 4 or weight.shape[0] % 2 or weight.shape[0] == 0:
        raise ValueError(
            f"{op}: weight has shape {tuple(weight.shape)}; it must be (2 * Cout, Cin / groups, kh, kw), with an even "
            "number of rows: the feature half, then the gate half"
        )
    if 0 in weight.shape[1:]:
        raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}; there must be a channel and a tap each way")
    if not isinstance(groups, int):
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


def check_upsample_gated_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """As for `gated_conv2d`, with a 3x3 kernel."""
    check_gated_conv2d("upsample_gated_conv2d", x, weight, bias, 1, activation)
    if weight.shape[2:] != (3, 3):
        kernel = tuple(weight.shape[2:])
        raise ValueError(f"upsample_gated_conv2d: weight has a kernel of {kernel}; it must be (3, 3)")


def check_region_keyword(op: str, regions: Tensor, keywords: Tensor, mask: Tensor | None, variant: str) -> None:
    """regions is (I, R, D), keywords (J, T, D), mask bool (J, T)."""
    check_floating(op, regions=regions, keywords=keywords)
    if regions.ndim != 3 or keywords.ndim != 3 or regions.shape[2] != keywords.shape[2]:
        raise ValueError(
            f"{op}: regions has shape {tuple(regions.shape)} and keywords {tuple(keywords.shape)}; they must be "
            "(B_img, R, D) and (B_cap, T, D) with the same D"
        )
    if 0 in regions.shape[1:] or keywords.shape[1] == 0:
        raise ValueError(
            f"{op}: regions has shape {tuple(regions.shape)} and keywords {tuple(keywords.shape)}; there must be at "
            "least one region, one keyword and one feature"
        )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"{op}: keyword_mask is {mask.dtype}; it must be bool, true where a keyword is")
        if mask.shape != keywords.shape[:2]:
            shape = tuple(keywords.shape[:2])
            raise ValueError(f"{op}: keyword_mask has shape {tuple(mask.shape)}; it must be {shape}, as keywords")
        check_device(op, regions, keyword_mask=mask)
    check_variant(op, variant)


def check_variant(op: str, variant: str) -> None:
    """The variant is one that exists."""
    if variant not in VARIANTS:
        raise ValueError(f"{op}: variant is {variant!r}; it must be one of {', '.join(VARIANTS)}")


def check_as_many(op: str, images: Tensor, captions: Tensor) -> None:
    """There are as many images as captions."""
    if len(images) != len(captions):
        raise ValueError(
            f"{op}: there are {len(images)} images and {len(captions)} captions; caption i must be image i's"
        )


def check_exclude(op: str, images: Tensor, captions: int, exclude: Tensor | None) -> None:
    """exclude is bool (images, captions)."""
    if exclude is None:
        return
    if exclude.dtype != torch.bool:
        raise TypeError(f"{op}: exclude is {exclude.dtype}; it must be bool, true for pairs that are no negatives")
    shape = (len(images), captions)
    if exclude.shape != shape:
        raise ValueError(
            f"{op}: exclude has shape {tuple(exclude.shape)}; it must be {shape}, a row for each image and a column "
            "for each caption"
        )
    check_device(op, images, exclude=exclude)


def check_device(op: str, first: Tensor, **tensors: Tensor) -> None:
    """All tensors are on the device of the first."""
    for name, tensor in tensors.items():
        if tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} but the features are on {first.device}; they must agree"
            )


def check_positive(op: str, **numbers: float) -> None:
    """All numbers are positive and finite."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{op}: {name} is {number}; it must be more than 0 and finite")
