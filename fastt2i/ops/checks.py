"""Checks that operators share: an error is one sentence with the values in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensors(op: str, **arguments: Tensor | None) -> None:
    """All are tensors; None is passed over."""
    for name, argument in arguments.items():
        if argument is not None and not isinstance(argument, Tensor):
            raise TypeError(f"{op}: {name} is a {type(argument).__name__}; it must be a torch.Tensor")


def check_pair(op: str, name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """A whole number stands for two; the two numbers."""
    both = value if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(is_whole(number) for number in both):
        raise ValueError(f"{op}: {name} is {value!r}; it must be a whole number, or two of them: height, then width")
    first, second = (number if isinstance(number, int) else int(number) for number in both)
    return first, second


def is_whole(number: object) -> bool:
    """Whether it is a whole number, of Python or NumPy."""
    return isinstance(number, int) or isinstance(number, np.integer)  # noqa: SIM101  the compiler knows the first alone


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


def check_as_many(op: str, images: Tensor, captions: Tensor) -> None:
    """There are as many images as captions."""
    if images.shape[0] != captions.shape[0]:
        raise ValueError(
            f"{op}: there are {images.shape[0]} images and {captions.shape[0]} captions; caption i must be image i's"
        )


def check_exclude(op: str, images: Tensor, captions: int, exclude: Tensor | None) -> None:
    """exclude is bool (images, captions)."""
    if exclude is None:
        return
    if exclude.dtype != torch.bool:
        raise TypeError(f"{op}: exclude is {exclude.dtype}; it must be bool, true for pairs that are no negatives")
    shape = (images.shape[0], captions)
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


def check_constants(op: str, impl: str | None, **numbers: float) -> None:
    """No number is a tensor that requires a gradient: kernels take numbers, and would leave it out without a word."""
    for name, number in numbers.items():
        if isinstance(number, Tensor) and number.requires_grad and impl != "reference":
            raise TypeError(
                f"{op}: {name} is a tensor that requires a gradient; it must be a number, or impl 'reference', which "
                "differentiates by it"
            )


def check_positive(op: str, **numbers: float) -> None:
    """All numbers are positive and finite."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{op}: {name} is {number}; it must be more than 0 and finite")
