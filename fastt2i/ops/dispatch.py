"""The one place that decides which implementation of an operator runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastt2i.kernels.launch import unavailable_reason

IMPLEMENTATIONS = ("reference", "torch", "triton")

#: Why an implementation cannot run on this device with this dtype; None if it can.
Reason = Callable[[torch.device, torch.dtype], str | None]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator."""

    run: Callable[..., torch.Tensor]
    unavailable: Reason = lambda device, dtype: None


@dataclass(frozen=True)
class Operator:
    """An operator's implementations and the rule by which `impl=None` chooses one.

    Attributes:
        implementations: by name.
        prefer: the name to take for an input of this shape on this device with this dtype.
        rule: the same in words.
    """

    implementations: dict[str, Implementation]
    prefer: Callable[[torch.Size, torch.device, torch.dtype], str]
    rule: str


_REGISTRY: dict[str, Operator] = {}


def register(
    op: str,
    prefer: Callable[[torch.Size, torch.device, torch.dtype], str] = lambda shape, device, dtype: "reference",
    rule: str = "reference",
    **implementations: Implementation,
) -> None:
    """Name the implementations of an operator and how to choose among them."""
    _REGISTRY[op] = Operator(implementations, prefer, rule)


def operators() -> dict[str, str]:
    """All operators by name, with the rule by which `impl=None` chooses, in words."""
    return {op: operator.rule for op, operator in _REGISTRY.items()}


def implementations(op: str, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Every implementation of an operator by name, with why it cannot run on this device with this dtype, or None."""
    return {name: _unavailable(op, name, device, dtype) for name in IMPLEMENTATIONS}


def select(
    op: str, impl: str | None, shape: torch.Size, device: torch.device, dtype: torch.dtype
) -> Callable[..., torch.Tensor]:
    """The implementation to run on an input of this shape.

    Raises:
        ValueError: there is no such implementation.
        RuntimeError: it cannot run on this device with this dtype.
    """
    name = _REGISTRY[op].prefer(shape, device, dtype) if impl is None else impl
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"{op}: impl is {name!r}; it must be None or one of {', '.join(IMPLEMENTATIONS)}")
    reason = _unavailable(op, name, device, dtype)
    if reason:
        raise RuntimeError(f"{op}: impl={name!r} cannot run: {reason}")
    return _REGISTRY[op].implementations[name].run


def _unavailable(op: str, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if name in _REGISTRY[op].implementations:
        return _REGISTRY[op].implementations[name].unavailable(device, dtype)
    if name == "triton":
        return unavailable_reason(device.type) or f"this version has no Triton kernel for {op}"
    return f"this version has no PyTorch implementation of {op} other than the reference"
