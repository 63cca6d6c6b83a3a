"""Autocast for operators that torch does not know."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def cast_for_autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Cast to the dtype of the autocast region that is open, if any; float64 and integers stay, as in torch; so does
    None.

    So that a wrong dtype is still there when the arguments are checked.
    """
    device_type = x.device.type
    if not _is_enabled(device_type):
        return x, *others
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(None if tensor is None else _cast(tensor, dtype) for tensor in (x, *others))


def promote_for_autocast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Inside an autocast region give both tensors the wider of their dtypes: one may come from a cast operator."""
    floating = x.is_floating_point() and y.is_floating_point()
    if not floating or not _is_enabled(x.device.type):
        return x, y
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def autocast_disabled(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside."""
    return torch.autocast(device.type, enabled=False) if _is_enabled(device.type) else nullcontext()


def _is_enabled(device_type: str) -> bool:
    # A device such as `meta` has no autocast.
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x
