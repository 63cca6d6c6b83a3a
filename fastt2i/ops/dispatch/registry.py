"""The one place that decides which implementation of an operator runs.

A name is `reference`, or an `impl` and a form of it, such as `torch/phases`. What was timed on this machine
(`fastt2i.ops.tuning`) decides, where all that may run was; else a rule of thumb does. What was found wrong never runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.kernels.launch import unavailable_reason
from fastt2i.ops.dispatch.timing_cache import best, table_of
from fastt2i.ops.dispatch.tuning import is_on, measure

IMPLEMENTATIONS = ("reference", "torch", "triton")
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


class Call(NamedTuple):
    """What an implementation is chosen by: everything about a call but the values."""

    op: str
    device: torch.device
    dtype: torch.dtype
    shapes: tuple[torch.Size, ...]
    """Of the tensors that decide the work."""
    settings: tuple[Any, ...]
    """What else does: activation, stride, groups and the like."""
    layout: str
    """Of the first tensor: `channels_last`, `contiguous` or `strided`."""
    training: bool
    """Whether a backward will follow."""

    def key(self) -> str:
        """A line that names the call in the table of times."""
        # Written so that torch.compile can trace it.
        shapes = " ".join(["x".join([f"{size}" for size in shape]) for shape in self.shapes])
        settings = "".join([f" {setting}" for setting in self.settings])
        direction = "training" if self.training else "inference"
        return f"{self.op} {shapes} {DTYPES[self.dtype]} {self.layout} {direction}{settings}"


#: Why an implementation cannot run for a call; None if it can.
Reason = Callable[[Call], str | None]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator."""

    run: Callable[..., Tensor]
    unavailable: Reason = lambda call: None


@dataclass(frozen=True)
class Operator:
    """An operator's implementations and the rule of thumb.

    Attributes:
        implementations: by name.
        prefer: names for a call, best first.
        rule: the same in words.
    """

    implementations: dict[str, Implementation]
    prefer: Callable[[Call], tuple[str, ...]]
    rule: str


_REGISTRY: dict[str, Operator] = {}
_forced: str | None = None
_choices: list[tuple[Call, str]] | None = None


def register(
    op: str,
    implementations: dict[str, Implementation],
    prefer: Callable[[Call], tuple[str, ...]] = lambda call: ("reference",),
    rule: str = "reference",
) -> None:
    """Name the implementations of an operator and how to choose among them where nothing was timed."""
    _REGISTRY[op] = Operator(implementations, prefer, rule)


def operators() -> dict[str, str]:
    """All operators by name, with their rule of thumb in words."""
    return {op: operator.rule for op, operator in _REGISTRY.items()}


def implementations(call: Call) -> dict[str, str | None]:
    """Every `impl` of the call's operator, with why it cannot run for this call, or None if a form of it can."""
    listed = {}
    for impl in IMPLEMENTATIONS:
        reasons = [_unavailable(call, name) for name in _names(call.op, impl)] or [_missing(call, impl)]
        listed[impl] = None if None in reasons else reasons[0]
    return listed


def describe(op: str, *tensors: Tensor | None, settings: tuple[Any, ...] = (), shaping: int = 1) -> Call:
    """The call of an operator on these tensors, the first `shaping` of which decide the work."""
    given = [tensor for tensor in tensors if tensor is not None]
    first = given[0]
    layout = "contiguous" if first.is_contiguous() else "strided"
    if first.ndim == 4 and layout == "strided" and first.is_contiguous(memory_format=torch.channels_last):
        layout = "channels_last"
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    shapes = tuple(tensor.shape for tensor in given[:shaping])
    return Call(op, first.device, first.dtype, shapes, settings, layout, training)


def example(op: str, device: torch.device) -> Call:
    """A plain call of an operator in float32, by which to tell what there is."""
    return Call(
        op, device, torch.float32, (torch.Size((1, 16, 8, 8)), torch.Size((32, 16, 3, 3))), (1,), "contiguous", True
    )


def forms(call: Call) -> dict[str, str | None]:
    """Every implementation of the call's operator by its full name, with why it cannot run for this call, or None."""
    return {name: _unavailable(call, name) for name in _names(call.op, None)}


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Inside this block `impl=None` means this `impl`, or this form of one, wherever it can run: for comparisons."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextmanager
def recorded() -> Iterator[list[tuple[Call, str]]]:
    """The calls inside this block in their order, with the names of the implementations that they run."""
    global _choices
    before, _choices = _choices, []
    try:
        yield _choices
    finally:
        _choices = before


def select(call: Call, impl: str | None, arguments: tuple[Any, ...]) -> Callable[..., Tensor]:
    """The implementation to run for a call: the fastest that was timed, else the one of the rule of thumb.

    Raises:
        ValueError: there is no such implementation.
        RuntimeError: it cannot run for this call, or gave wrong results when it was to be timed; or times are being
            taken, this call's are not known, and a CUDA graph is being captured.
    """
    if impl is not None and impl not in IMPLEMENTATIONS:
        raise ValueError(f"{call.op}: impl is {impl!r}; it must be None or one of {', '.join(IMPLEMENTATIONS)}")
    operator = _REGISTRY[call.op]
    if impl is None and _forced is not None and None in [_unavailable(call, n) for n in _names(call.op, _forced)]:
        impl = _forced
    only = impl is None and len(operator.implementations) == 1
    name = "reference" if only else _choose(call, impl, operator, arguments)
    if _choices is not None:
        _choices.append((call, name))
    return operator.implementations[name].run


def _choose(call: Call, impl: str | None, operator: Operator, arguments: tuple[Any, ...]) -> str:
    if not is_on() and not torch.compiler.is_compiling() and not _is_timed(call):
        # Whether the others could run is not asked, which would take longer than some calls.
        for preferred in operator.prefer(call):
            if impl in _spellings(preferred) and _unavailable(call, preferred) is None:
                return preferred
    reasons = {name: _unavailable(call, name) for name in _names(call.op, impl)}
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        assert impl is not None  # the reference runs everywhere
        reason = next(iter(reasons.values()), None) or _missing(call, impl)
        raise RuntimeError(f"{call.op}: impl={impl!r} cannot run: {reason}")
    if len(names) > 1 and is_on() and call.shapes[0].numel():
        key = call.key()
        if not set(names) <= set(table_of(call.device).get(key, {})):
            candidates = {name: operator.implementations[name].run for name in names}
            truth = operator.implementations["reference"].run
            measure(call.device, key, call.training, candidates, truth, arguments)
    name = _best(call, tuple(names), operator.prefer(call))
    if name is None:
        raise RuntimeError(
            f"{call.op}: impl={impl!r} cannot run: all of it was left out when times were taken, being wrong or failing"
        )
    return name


def _is_timed(call: Call) -> bool:
    """Whether anything is known of the call; most tables are empty, and then it need not be spelt out."""
    table = table_of(call.device)
    return bool(table) and call.key() in table


def _best(call: Call, names: tuple[str, ...], preferred: tuple[str, ...]) -> str | None:
    if not torch.compiler.is_compiling():
        return best(call.device, call.key(), names, preferred)
    from fastt2i.ops.dispatch.compile_constants import best_when_traced

    return best_when_traced(call.device, call.key() if _is_fixed(call) else "", names, preferred)


def _is_fixed(call: Call) -> bool:
    """Whether all sizes are, when traced; to look one up that torch.compile keeps open would fix it."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    sizes = [size for shape in call.shapes for size in shape]
    return all(map(has_static_value, sizes))


def _names(op: str, impl: str | None) -> list[str]:
    return [name for name in _REGISTRY[op].implementations if impl in _spellings(name)]


def _spellings(name: str) -> tuple[str | None, ...]:
    """Every `impl` that means this implementation, among others or alone."""
    return None, name, name.split("/")[0]


def _unavailable(call: Call, name: str) -> str | None:
    return _REGISTRY[call.op].implementations[name].unavailable(call)


def _missing(call: Call, impl: str) -> str:
    if impl == "triton":
        return unavailable_reason(call.device.type) or f"this version has no Triton kernel for {call.op}"
    return f"this version has no PyTorch implementation of {call.op} other than the reference"
