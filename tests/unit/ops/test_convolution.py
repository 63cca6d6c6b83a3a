"""The convolution whose input's gradient is differentiated by convolutions of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastt2i.ops import gated_conv2d, upsample_gated_conv2d
from fastt2i.ops.convolution import Steps, conv2d, only_input_gradients, parameters_want_gradients
from fastt2i.ops.dispatch.registry import forced

#: Height and width, kernel, and how it steps: what a stride leaves over at the edge, and what it does not.
CASES = [
    ((5, 4), 3, Steps(padding=(1, 1))),
    ((6, 8), 4, Steps((2, 2), (1, 1))),
    ((7, 5), 4, Steps((2, 2), (1, 1))),
    ((4, 3), 1, Steps()),
    ((8, 7), 3, Steps((3, 2), (0, 2))),
    ((9, 8), 3, Steps((1, 1), (2, 0), (2, 3))),
    ((9, 8), 3, Steps((2, 3), (1, 2), (3, 2), 2)),
    ((4, 5), 3, Steps((1, 1), (1, 1), (1, 1), 4)),
]


def inputs(size: tuple[int, int], kernel: int, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Of two images with four channels, so that a batch is not taken for channels."""
    random = torch.Generator().manual_seed(0)
    shapes = (2, 4, *size), (8, 4 // groups, kernel, kernel), (8,)
    x, weight, bias = (torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize(("size", "kernel", "steps"), CASES)
def test_it_differentiates_as_torchs(size: Any, kernel: int, steps: Steps) -> None:
    """Three times: the gradients, those of their squares, and those of the squares of those."""
    given = inputs(size, kernel, steps.groups)
    found = []
    for run in (conv2d, lambda x, w, b, steps: F.conv2d(x, w, b, *steps)):
        values = [run(*given, steps)]
        for _ in range(3):
            total = sum(value.square().sum() for value in values[-3:])
            values += torch.autograd.grad(total, given, create_graph=True)
        found.append([value.detach() for value in values])
    torch.testing.assert_close(*found)


def narrow(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().bfloat16().requires_grad_() for tensor in tensors)


class Kernels(TorchDispatchMode):
    """The shapes of the kernels of all convolutions that torch runs inside, in either direction."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        if "convolution" in name:
            self.shapes.add(arguments[2 if name == "convolution_backward" else 1].shape)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("steps", [steps for _, kernel, steps in CASES if kernel == 3])
def test_second_derivatives_of_a_gated_convolution_are_convolutions_by_its_kernel(steps: Steps) -> None:
    """torch's own are convolutions by kernels with as many channels as there are images, which some processors compute
    wrongly in bfloat16."""
    given = narrow(inputs((9, 8), 3, steps.groups))
    assert found(lambda: gated_conv2d(*given, **steps._asdict(), impl="torch"), given) == {given[1].shape}
    torchs = found(lambda: gated_conv2d(*given, **steps._asdict(), impl="reference"), given)
    assert any(shape[1] == 2 for shape in torchs)  # or the test would see nothing


@pytest.mark.parametrize(("form", "sides"), [("torch/phases", 2), ("torch/plain", 3)])
def test_second_derivatives_of_upsampling_are_convolutions_by_its_kernels(form: str, sides: int) -> None:
    given = narrow(inputs((5, 6), 3))
    with forced(form):
        assert found(lambda: upsample_gated_conv2d(*given), given) == {torch.Size((8, 4, sides, sides))}


def found(run: Callable[[], Tensor], given: tuple[Tensor, ...]) -> set[torch.Size]:
    """The kernels of an operator, of its gradients and of theirs."""
    with Kernels() as kernels:
        first = torch.autograd.grad(run().square().sum(), given, create_graph=True)
        torch.autograd.grad(sum(gradient.square().sum() for gradient in first), given)
    return kernels.shapes


def test_only_what_is_asked_for_is_computed() -> None:
    x, weight, bias = inputs((5, 4), 3)
    frozen = weight.detach()
    assert conv2d(x.detach(), weight).sum().backward() is None and x.grad is None
    (first,) = torch.autograd.grad(conv2d(x, frozen).sum(), x)
    with only_input_gradients():
        assert not parameters_want_gradients()
        second, *none = torch.autograd.grad(conv2d(x, weight, bias).sum(), (x, weight, bias), allow_unused=True)
    assert parameters_want_gradients() and none == [None, None]
    torch.testing.assert_close(first, second)


def test_a_penalty_is_differentiated_by_usual_convolutions() -> None:
    """torch's own derivative of the derivative has a convolution by the whole image, and copies."""
    names: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            names.append(function._schema.name.partition("::")[2])
            return function(*arguments, **(options or {}))

    x, weight, _ = inputs((6, 8), 4)
    with only_input_gradients():
        y = conv2d(x, weight, None, Steps((2, 2), (1, 1)))
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    total = gradient.square().sum()
    with Names():
        total.backward()
    convolutions = [name for name in names if "convolution" in name]
    # Of the transposed one both gradients at once, and of the first one that of the weight.
    assert convolutions == ["convolution_backward"] * 2 and "clone" not in names


def test_transforms_take_torchs_own() -> None:
    x, weight, _ = inputs((5, 4), 3)
    steps = Steps(padding=(1, 1))
    each = torch.func.vmap(lambda image: conv2d(image[None], weight.detach(), None, steps)[0])(x.detach())
    torch.testing.assert_close(each, F.conv2d(x, weight, padding=1).detach())
