"""The one place that decides which implementation of an operator runs.

A name is `reference`, or an `impl` and a form of it, such as `torch/phases`. Of implementations that were all timed on
this machine (`fastt2i.ops.tuning`) the fastest runs; else a heuristic chooses. One that was found wrong never runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.kernels.launch import unavailable_reason
from fastt2i.ops.autocast import autocast_disabled
from fastt2i.ops.dispatch.timing_cache import fastest, times_of
from fastt2i.ops.dispatch.tuning import is_tuning, measure
from fastt2i.ops.transforms import under_transform

IMPLEMENTATIONS = ("reference", "torch", "triton")
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


class Call(NamedTuple):
    """What an implementation is chosen by: all of a call but its values."""

    op: str
    device: torch.device
    dtype: torch.dtype
    shapes: tuple[torch.Size, ...]
    """Of the key tensors, whose sizes decide the amount of work."""
    settings: tuple[Any, ...]
    """Other arguments that decide it: activation, stride, groups and the like."""
    layout: str
    """Of the first tensor: `channels_last`, `contiguous` or `strided`."""
    training: bool
    """Whether a backward will follow."""

    def key(self) -> str:
        """The call's key in the timing cache, one line."""
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

    run: Callable[..., Any]
    """Gives a tensor, or a tuple of them."""
    unavailable: Reason = lambda call: None


@dataclass(frozen=True)
class Operator:
    """An operator's implementations, and the heuristic for calls that were not timed.

    Attributes:
        implementations: by name.
        prefer: the heuristic: names for a call, best first.
        heuristic: the same in words.
        per_sample: places of the arguments that have a row for each sample.
    """

    implementations: dict[str, Implementation]
    prefer: Callable[[Call], tuple[str, ...]]
    heuristic: str
    per_sample: tuple[int, ...] = (0,)


_REGISTRY: dict[str, Operator] = {}
_forced: str | None = None
_choices: list[tuple[Call, str]] | None = None


def register(
    op: str,
    implementations: dict[str, Implementation],
    prefer: Callable[[Call], tuple[str, ...]] = lambda call: ("reference",),
    heuristic: str = "reference",
    per_sample: tuple[int, ...] = (0,),
) -> None:
    """Name the implementations of an operator and how to choose among them where nothing was timed."""
    _REGISTRY[op] = Operator(implementations, prefer, heuristic, per_sample)


def per_sample(op: str) -> tuple[int, ...]:
    """Places of an operator's arguments that have a row for each sample."""
    return _REGISTRY[op].per_sample


def operators() -> dict[str, str]:
    """All operators by name, with their heuristic in words."""
    return {op: operator.heuristic for op, operator in _REGISTRY.items()}


def implementations(call: Call) -> dict[str, str | None]:
    """Every `impl` of the call's operator, with why it cannot run for this call, or None if a form of it can."""
    listed = {}
    for impl in IMPLEMENTATIONS:
        reasons = [_unavailable(call, name) for name in _names(call.op, impl)] or [_missing(call, impl)]
        listed[impl] = None if None in reasons else reasons[0]
    return listed


def make_call(op: str, *tensors: Tensor | None, settings: tuple[Any, ...] = (), num_key_tensors: int = 1) -> Call:
    """The call of an operator on these tensors, of which the first `num_key_tensors` have their shapes in its key."""
    given = [tensor for tensor in tensors if tensor is not None]
    first = given[0]
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    shapes = tuple(tensor.shape for tensor in given[:num_key_tensors])
    return Call(op, first.device, first.dtype, shapes, settings, _layout(first), training)


def _layout(x: Tensor) -> str:
    if under_transform():
        return "strided"  # vmap does not tell; what runs under transforms is not chosen by it
    if x.is_contiguous():
        return "contiguous"
    return "channels_last" if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else "strided"


def example_call(op: str, device: torch.device) -> Call:
    """A plain call of an operator in float32, to list what is available."""
    return Call(
        op, device, torch.float32, (torch.Size((1, 16, 8, 8)), torch.Size((32, 16, 3, 3))), (1,), "contiguous", True
    )


def forms(call: Call) -> dict[str, str | None]:
    """Every implementation of the call's operator by its full name, with why it cannot run for this call, or None."""
    return {name: _unavailable(call, name) for name in _names(call.op, None)}


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Inside this context `impl=None` means this `impl`, or this form of one, wherever it can run: for comparisons."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextmanager
def recorded() -> Iterator[list[tuple[Call, str]]]:
    """The calls inside this context in order, each with the name of the implementation that ran."""
    global _choices
    before, _choices = _choices, []
    try:
        yield _choices
    finally:
        _choices = before


def run(call: Call, impl: str | None, arguments: tuple[Any, ...]) -> Any:
    """What the implementation that `select` chooses makes of the arguments.

    They have been cast for autocast already, which inside would round again what is widened there.
    """
    chosen = select(call, impl, arguments)
    with autocast_disabled(call.device):
        return chosen(*arguments)


def select(call: Call, impl: str | None, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """The implementation to run for a call: the fastest that was timed, else the heuristic's choice.

    Raises:
        ValueError: there is no such implementation.
        RuntimeError: it cannot run for this call, or gave wrong results when it was to be timed; or this call is to be
            timed while a CUDA graph is being captured.
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
    if not is_tuning() and not torch.compiler.is_compiling() and not _has_times(call):
        # Whether the others could run is not asked, which would take longer than some calls.
        for preferred in operator.prefer(call):
            if impl in _impl_values(preferred) and _unavailable(call, preferred) is None:
                return preferred
    reasons = {name: _unavailable(call, name) for name in _names(call.op, impl)}
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        assert impl is not None  # the reference runs everywhere
        reason = next(iter(reasons.values()), None) or _missing(call, impl)
        raise RuntimeError(f"{call.op}: impl={impl!r} cannot run: {reason}")
    if len(names) > 1 and is_tuning() and call.shapes[0].numel():
        key = call.key()
        if not set(names) <= set(times_of(call.device).get(key, {})):
            candidates = {name: operator.implementations[name].run for name in names}
            reference = operator.implementations["reference"].run
            measure(call.device, key, call.training, candidates, reference, arguments, operator.per_sample)
    name = _fastest(call, tuple(names), operator.prefer(call))
    if name is None:
        raise RuntimeError(
            f"{call.op}: impl={impl!r} cannot run: all of it was left out when times were taken, being wrong or failing"
        )
    return name


def _has_times(call: Call) -> bool:
    """Whether the call has times; most caches are empty, and then its key need not be made."""
    times = times_of(call.device)
    return bool(times) and call.key() in times


def _fastest(call: Call, names: tuple[str, ...], preferred: tuple[str, ...]) -> str | None:
    if not torch.compiler.is_compiling():
        return fastest(call.device, call.key(), names, preferred)
    from fastt2i.ops.dispatch.compile_constants import fastest_when_traced

    return fastest_when_traced(call.device, call.key() if _has_static_shapes(call) else "", names, preferred)


def _has_static_shapes(call: Call) -> bool:
    """Whether all sizes are static under the tracer; to read a dynamic one would specialise the compiled code on it."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    sizes = [size for shape in call.shapes for size in shape]
    return all(map(has_static_value, sizes))


def _names(op: str, impl: str | None) -> list[str]:
    return [name for name in _REGISTRY[op].implementations if impl in _impl_values(name)]


def _impl_values(name: str) -> tuple[str | None, ...]:
    """Every value of `impl` that admits this implementation."""
    return None, name, name.split("/")[0]


def _unavailable(call: Call, name: str) -> str | None:
    return _REGISTRY[call.op].implementations[name].unavailable(call)


def _missing(call: Call, impl: str) -> str:
    if impl == "triton":
        return unavailable_reason(call.device.type) or f"this version has no Triton kernel for {call.op}"
    return f"this version has no PyTorch implementation of {call.op} other than the reference"
