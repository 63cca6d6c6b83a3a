"""The public operators follow `__torch_function__`, as torch's own functions do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastt2i import ops
from fastt2i.ops.leaky_conv.functional import Shortcut

OPERATORS = sorted(set(ops.__all__) - {"tuning"})
X = torch.randn(1, 4, 4, 4)


class Answers(Tensor):
    """Answers with the function that is called, and what it is called with."""

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func, types, args, kwargs or {}


class Seen(TorchFunctionMode):
    """Notes the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Callable[..., Any]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_subclass_decides_what_an_operator_does(name: str) -> None:
    operator, x = getattr(ops, name), X.as_subclass(Answers)
    assert operator(x, "a setting", impl="torch") == (operator, (Answers,), (x, "a setting"), {"impl": "torch"})
    assert operator(X, x)[0] is operator, "in the second place it is not seen"
    assert operator(X, weight=x)[3] == {"weight": x}, "by its name it is not seen"


def test_a_convolution_among_the_arguments_is_looked_into() -> None:
    beside = Shortcut(X, torch.randn(2, 4, 1, 1).as_subclass(Answers))
    assert ops.leaky_conv2d(X, torch.randn(2, 4, 1, 1), shortcut=beside)[0] is ops.leaky_conv2d  # type: ignore[comparison-overlap]


def test_a_mode_sees_the_operator_and_gets_its_result() -> None:
    with Seen() as seen:
        y = ops.gate(X)
    assert seen.functions[0] is ops.gate
    torch.testing.assert_close(y, ops.gate(X))


def test_results_have_the_subclass_of_the_inputs() -> None:
    class Named(Tensor):
        pass

    y = ops.gate(X.as_subclass(Named))
    assert type(y) is Named
    torch.testing.assert_close(y.as_subclass(Tensor), ops.gate(X))
    y, pooled = ops.leaky_conv2d(X.as_subclass(Named), torch.randn(2, 4, 1, 1), pool=True)
    assert type(y) is type(pooled) is Named
