"""Parameters in the dtype that autocast would cast them to, all in one operation, and their gradients likewise.

Autocast casts each parameter when it is first used, and autograd each of their gradients: hundreds of launches a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def cast_parameters(
    module: nn.Module, dtype: torch.dtype, groups: Iterable[Sequence[nn.Parameter]] = ()
) -> dict[str, Tensor]:
    """Copies of a module's parameters in a dtype, by name, through which gradients reach the parameters.

    Args:
        module: whose parameters are float32 and dense; none of them has two names.
        dtype: of the copies.
        groups: the parameters in parts whose gradients are finished apart, one after another while a backward pass
            runs. Those in none of them, by default all, are together.
    """
    parameters = dict(module.named_parameters())
    parts = [list(group) for group in groups]
    apart = {parameter for part in parts for parameter in part}
    copies: dict[Tensor, Tensor] = {}
    for part in filter(None, [*parts, [parameter for parameter in parameters.values() if parameter not in apart]]):
        copies.update(zip(part, _Cast.apply(dtype, *part), strict=True))
    return {name: copies[parameter] for name, parameter in parameters.items()}


class _Cast(torch.autograd.Function):
    """One copy for all, into tensors of the same strides; a gradient that is not there stays so."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.like = [parameter.detach() for parameter in parameters]  # of their strides; no values are read
        copies = tuple(torch.empty_like(parameter, dtype=dtype) for parameter in parameters)
        torch._foreach_copy_(copies, parameters)
        return copies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        made = [None if g is None else torch.empty_like(p) for p, g in zip(ctx.like, gradients, strict=True)]
        pairs = [(m, g) for m, g in zip(made, gradients, strict=True) if m is not None and g is not None]
        if pairs:
            torch._foreach_copy_([_in_memory_order(m) for m, _ in pairs], [_ordered_as(g, m) for m, g in pairs])
        return None, *made


def _ordered_as(x: Tensor, like: Tensor) -> Tensor:
    """x in one dimension, in the order in which the memory of `like`, which is dense, has its elements.

    torch copies many tensors in one launch only if each pair has the same strides, those of dimensions of size 1
    included, where they mean nothing.
    """
    strides = zip(x.shape, x.stride(), like.stride(), strict=True)
    if any(size > 1 and own != wanted for size, own, wanted in strides):
        x = torch.empty_like(like, dtype=x.dtype).copy_(x)
    return _in_memory_order(x)


def _in_memory_order(dense: Tensor) -> Tensor:
    return dense.as_strided((dense.numel(),), (1,))
