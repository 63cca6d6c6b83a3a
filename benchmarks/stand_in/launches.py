"""Launches of Triton kernels that are looked at or compiled, and never run; operators that go through their bodies.

Works with the stand-in, and where there is a GPU, whose driver then names the architecture.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from benchmarks.stand_in.answers import SHARED_MEMORY
from benchmarks.stand_in.device import is_real

#: Where fake memory begins: at an address that every alignment divides.
ADDRESS = 1 << 40


class Launch(NamedTuple):
    """A call of a kernel, with what it was given by the parameters' names."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The file and the function."""
        return f"{self.kernel.fn.__module__.rpartition('.')[2]}.{self.kernel.fn.__name__}"

    @property
    def key(self) -> Any:
        """What Triton compiles a program of its own for: dtypes, alignments, constants, and which numbers are 1."""
        constants = {p.name for p in self.kernel.params if p.is_constexpr}
        told = [(n, a if n in constants else _specialised(a)) for n, a in sorted(self.arguments.items())]
        return self.name, *told, *sorted(self.options.items())

    @property
    def stored(self) -> list[str]:
        """The parameters that its code stores to."""
        return [name for name in self.kernel.arg_names if name in _flow(self.kernel).stored]

    def compiled(self, architecture: int | None = None) -> Any:
        """The program that Triton compiles for this call: for a compute capability (times ten) that need not be there,
        or for the device that there is or is stood in for."""
        given = {name: _Pointer(a) if isinstance(a, Tensor) else a for name, a in self.arguments.items()}
        before = driver._active
        try:
            if architecture is not None:
                driver.set_active(_Driver(architecture))
            return _run(self.kernel, **given, **self.options, grid=(1,), warmup=True)
        finally:
            driver._active = before


class _Flow(NamedTuple):
    """The parameters through which a function stores, and those that its results come from."""

    stored: set[str]
    returned: set[str]


@cache
def _flow(function: JITFunction) -> _Flow:
    """Names are followed through assignments and calls; what is loaded is a number, and leads no further."""
    leads_to: dict[str, set[str]] = {name: {name} for name in function.arg_names}
    flow = _Flow(set(), set())

    def given(call: ast.Call, names: Callable[[_Flow], set[str]]) -> list[ast.expr]:
        """The arguments of a call of a kernel's function whose parameters are among these names."""
        called = function.fn.__globals__.get(ast.unparse(call.func))
        if not isinstance(called, JITFunction):
            return []
        return [argument for name, argument in zip(called.arg_names, call.args, strict=False)
                if name in names(_flow(called))]  # fmt: skip

    def parameters(node: ast.AST) -> set[str]:
        parts = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "tl.load":
                return set()
            if isinstance(function.fn.__globals__.get(name), JITFunction):
                parts = list(given(node, lambda called: called.returned))
        own = leads_to.get(node.id, set()) if isinstance(node, ast.Name) else set()
        return own.union(*map(parameters, parts))

    def follow(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            follow(child)
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)):
                leads_to[name] = leads_to.get(name, set()) | parameters(node.value)
        elif isinstance(node, ast.Return) and node.value:
            flow.returned.update(parameters(node.value))
        elif isinstance(node, ast.Call):
            stored = given(node, lambda called: called.stored)
            if ast.unparse(node.func) == "tl.store":
                stored = node.args[:1]
            flow.stored.update(*map(parameters, stored))

    follow(ast.parse(function.src))
    return flow


class _Pointer:
    """What a launch is given in the place of a fake tensor: its dtype, and an address aligned as its own would be."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = ADDRESS + tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return 0


def _specialised(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.dtype, argument.storage_offset() * argument.element_size() % 16 == 0
    if isinstance(argument, int) and not isinstance(argument, bool):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument)


_run = JITFunction.run


@contextmanager
def watched(see: Callable[[Launch], None], device_type: str = "cuda") -> Iterator[None]:
    """Inside, every launch of a Triton kernel, with tensors of this device, goes to `see` in place of the GPU."""

    def launch(kernel: JITFunction, *positional: Any, grid: Any, warmup: bool, **options: Any) -> None:
        named = kernel.signature.bind_partial(
            *positional, **{name: options.pop(name) for name in list(options) if name in kernel.arg_names}
        )
        tensors = [a for a in named.arguments.values() if isinstance(a, Tensor)]
        others = {t.device.type for t in tensors} - {device_type}
        assert not others, f"{kernel.fn.__name__} is given a tensor of {others}"
        see(Launch(kernel, named.arguments, options))

    JITFunction.run = launch
    try:
        if not is_real():
            driver.set_active(_Driver(90))
        yield
    finally:
        JITFunction.run = _run


class _Driver:
    """As much of a driver as compiling asks for."""

    utils = SimpleNamespace(get_device_properties=lambda index: {"max_shared_mem": SHARED_MEMORY})

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        """By which a kernel tells its programs apart."""
        return self._architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@contextmanager
def through_bodies(around: Callable[[], Any], differences: list[str] | None = None) -> Iterator[None]:
    """Inside, our operators do with fake tensors what they do with real ones, their launches included.

    Args:
        around: makes the context in which a body runs.
        differences: takes a line for each result whose shape, strides, dtype or device is not what the operator
            declares to torch.
    """
    declared = {op: op._abstract_fn for op in OPDEFS.values() if op._namespace == "fastt2i" and op._abstract_fn}
    for op, fake in declared.items():

        def body(*arguments: Any, op: Any = op, fake: Any = fake, **options: Any) -> Any:
            with around():
                made = op._init_fn(*arguments, **options)
            if differences is not None:
                pairs = zip(tree_leaves(made), tree_leaves(fake(*arguments, **options)), strict=True)
                told = [(_layout(a), _layout(b)) for a, b in pairs if _layout(a) != _layout(b)]
                differences.extend(f"{op._qualname}: {a}, declared {b}" for a, b in told)
            return made

        op._abstract_fn = body
    try:
        yield
    finally:
        for op, fake in declared.items():
            op._abstract_fn = fake


def _layout(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return tuple(x.shape), x.stride() if x.numel() else (), x.dtype, x.device
