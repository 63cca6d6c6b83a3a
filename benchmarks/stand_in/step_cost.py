"""What a training step asks of a GPU, counted on fake tensors: launches, bytes, operations, and what no graph can hold.

A launch is a call of an aten operator that computes or copies, or of a Triton kernel; our own operators are counted by
what their bodies launch. An operator of aten may be several kernels on the device, so the number is a lower bound, as
are the bytes: every tensor is read once and written once, whatever caches do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operators that are there before a step are gone through, and have formulas.
import fastt2i.ops.contrastive_triton
import fastt2i.ops.flops  # noqa: F401
from benchmarks.stand_in.fake_step import CUDA, fake_step
from benchmarks.stand_in.launches import Launch, through_bodies, watched
from fastt2i.config import Config

#: Operators that wait for the device, or whose results' shapes depend on values.
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2",
           "unique_dim", "unique_consecutive", "repeat_interleave", "bincount"}  # fmt: skip
#: Operators that launch nothing: they give another view of a tensor, or memory.
FREE = {"_unsafe_view", "_reshape_alias", "lift_fresh", "empty", "empty_like", "empty_strided", "empty_permuted",
        "new_empty", "new_empty_strided", "resize_", "set_", "record_stream"}  # fmt: skip
#: Operators that do not read what they are given first: they overwrite it, or take only its shape.
UNREAD = {"copy_", "_foreach_copy_", "fill_", "zero_", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
          "new_full"}  # fmt: skip


@dataclass
class Cost:
    """Of a part of a step, or of one operator in it."""

    launches: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    flops: int = 0

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    def add(self, other: Cost) -> None:
        self.launches += other.launches
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written
        self.flops += other.flops


@dataclass
class Part:
    """A named part of the step.

    Attributes:
        operators: what was launched, by the operator's or kernel's name.
        dtypes: of tensors that go into each operator and come out, with how often; our own operators are here too.
    """

    total: Cost = field(default_factory=Cost)
    operators: dict[str, Cost] = field(default_factory=dict)
    dtypes: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass
class StepCost:
    """Of a whole step.

    Attributes:
        parts: by name, in the step's order.
        launches: each one's cost with the dtype that it multiplies in.
        forbidden: what a captured step must not do, with how often.
        region_dtypes: that the region-keyword operator is given its regions in.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    launches: list[tuple[Cost, torch.dtype]] = field(default_factory=list)
    forbidden: Counter[str] = field(default_factory=Counter)
    region_dtypes: set[str] = field(default_factory=set)

    @property
    def total(self) -> Cost:
        total = Cost()
        for part in self.parts.values():
            total.add(part.total)
        return total


def cost_of_step(
    config: Config,
    with_penalty: bool,
    see: Callable[[Launch], None] = lambda launch: None,
    differences: list[str] | None = None,
) -> StepCost:
    """Of one step of a configuration, without a penalty or with it; what cannot be traced further ends it early.

    Args:
        see: is given each launch of a Triton kernel too.
        differences: see `through_bodies`.
    """
    mode = FakeTensorMode()
    step, inputs = fake_step(config, mode)
    counter = _Counter(see)
    with mode, through_bodies(lambda: counter, differences), watched(counter.see_kernel):
        weight = torch.empty((), device=CUDA)
        try:
            with counter:
                step(inputs, weight, with_penalty)
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            counter.cost.forbidden[f"shape or value that depends on data: {error.func}"] += 1
    return counter.cost


class _Counter(TorchDispatchMode):
    """Counts what is dispatched while it is on."""

    def __init__(self, see: Callable[[Launch], None]) -> None:
        super().__init__()
        self.cost = StepCost()
        self._see = see
        self._names: list[str] = []
        self._inside = False  # of an operator of ours that has a formula for its products

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "profiler":
            return self._follow(name, arguments)
        if name in WAITING:
            self.cost.forbidden[name] += 1
            if name in ("_local_scalar_dense", "item"):
                return 1.0
        if namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
            function.name(), "CompositeImplicitAutograd"
        ):
            with self:  # it is made of others, which count
                return function.decompose(*arguments, **options)
        if name.startswith("_fused_adam"):  # it has no fake, and gives nothing back
            out = None
        elif namespace == "fastt2i":
            with self._products_of(function):
                out = function(*arguments, **options)
        else:
            out = function(*arguments, **options)
        if namespace == "prim" or function.is_view or name in FREE:
            return out
        given, made = _tensors((arguments, options)), _tensors(out)
        if {t.device.type for t in (*given, *made) if t.ndim or name in ("copy_", "_to_copy")} == {"cpu", "cuda"}:
            self.cost.forbidden[f"{name} between host and device"] += 1
        if namespace == "fastt2i":
            self._note_dtypes(f"fastt2i.{name}", given, made)
            if name == "region_keyword":
                self.cost.region_dtypes.add(str(given[0].dtype).removeprefix("torch."))
            self._add(f"fastt2i.{name}", Cost(flops=self._flops(function, arguments, options, out)), given)
            return out
        written = _written(function, arguments, options) + made
        unread = {id(t) for t in _tensors(_unread(name, arguments))}
        read = [t for t in given if id(t) not in unread]
        flops = 0 if self._inside else self._flops(function, arguments, options, out)
        self._note_dtypes(name, given, made)
        self._add(name, Cost(1, _size(read), _size(written), flops), given)
        return out

    def see_kernel(self, launch: Launch) -> None:
        """A Triton kernel: it writes what its code stores to, and reads the other tensors that it is given."""
        self._see(launch)
        tensors, written = _tensors(launch.arguments), _tensors([launch.arguments.get(n) for n in launch.stored])
        self._note_dtypes(launch.name, tensors, written)
        self._add(launch.name, Cost(1, _size(tensors) - _size(written), _size(written)), tensors)

    def _follow(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Spans of the step, which torch's profiler is told of."""
        if "enter" in name:
            self._names.append(str(arguments[0]))
        elif self._names:
            self._names.pop()
        return torch.ops.profiler._record_function_enter_new("", None) if "enter" in name else None

    @contextmanager
    def _products_of(self, function: Any) -> Iterator[None]:
        before, self._inside = self._inside, self._inside or function._overloadpacket in flop_registry
        try:
            yield
        finally:
            self._inside = before

    def _flops(self, function: Any, arguments: Any, options: Any, out: Any) -> int:
        formula = flop_registry.get(function._overloadpacket)
        return int(formula(*arguments, **options, out_val=out)) if formula else 0

    def _part(self) -> Part:
        return self.cost.parts.setdefault(self._names[0] if self._names else "rest", Part())

    def _add(self, name: str, cost: Cost, given: list[Tensor]) -> None:
        part = self._part()
        part.total.add(cost)
        part.operators.setdefault(name, Cost()).add(cost)
        floats = [t.dtype for t in given if t.is_floating_point()]
        self.cost.launches.append((cost, floats[0] if floats else torch.float32))

    def _note_dtypes(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        told = " -> ".join(", ".join(str(t.dtype).removeprefix("torch.") for t in ts) or "-" for ts in (given, made))
        self._part().dtypes.setdefault(name, Counter())[told] += 1


def _tensors(tree: Any) -> list[Tensor]:
    """Each once."""
    return list({id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}.values())


def _unread(name: str, arguments: tuple[Any, ...]) -> Any:
    """What an operator is given and does not read: see `UNREAD`; and of a convolution's backward the input, where only
    its gradient is asked for, or the weight."""
    if name == "convolution_backward":
        of_input, of_weight, _ = arguments[10]
        return [x for x, needed in ((arguments[1], of_weight), (arguments[2], of_input)) if not needed]
    return arguments[:1] if name in UNREAD else ()


def _written(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Tensor]:
    """What an operator changes in place and does not return: lists of tensors, as those of an optimizer."""
    if function._schema.returns:
        return []
    named = zip(function._schema.arguments, (*arguments, *options.values()), strict=False)
    return _tensors([value for parameter, value in named if parameter.alias_info and parameter.alias_info.is_write])


def _size(tensors: list[Tensor]) -> int:
    """Bytes of memory, of what is expanded once."""
    total = 0
    for t in tensors:
        sizes = [size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or not size]
        count = 1
        for size in sizes:
            count *= size
        total += count * t.element_size()
    return total
