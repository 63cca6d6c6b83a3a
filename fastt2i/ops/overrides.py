"""Tensor subclasses and modes see the public operators as they see torch's own functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

from torch.overrides import handle_torch_function, has_torch_function

F = TypeVar("F", bound=Callable[..., Any])


def overridable(function: F) -> F:
    """A public operator that follows `__torch_function__` (torch.overrides): a subclass among the types of its tensors,
    or a `TorchFunctionMode`, that overrides it is called with the operator, and decides what it does."""

    @functools.wraps(function)
    def public(*args: Any, **options: Any) -> Any:
        given = (*args, *options.values())
        if tuples := [value for value in given if isinstance(value, tuple)]:  # a convolution's tensors, say
            given = (*given, *chain.from_iterable(tuples))
        if has_torch_function(given):
            return handle_torch_function(public, given, *args, **options)
        return function(*args, **options)

    # Code of its own, or torch.compile would count the forms of all operators together against its limit for one.
    public.__code__ = public.__code__.replace(co_name=function.__name__)  # type: ignore[attr-defined]
    return public  # type: ignore[return-value]
