"""Networks that are larger than they can be are refused before their memory is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class AtMost(TorchFunctionMode):
    """While it is entered, no more numbers are made for parameters and buffers, together, than `limit`.

    Raises:
        ValueError: they would be more; what would be too many is not there yet.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit, self._made = limit, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (torch.empty, torch.zeros, torch.eye):
            shape = args[0] if isinstance(args[0], Sequence) else args
            self._made += math.prod(shape) if func is not torch.eye else shape[0] ** 2
            if self._made > self._limit:
                raise ValueError(f"its networks would have {self._made:,} numbers or more, and not {self._limit:,}")
        return func(*args, **(kwargs or {}))
