"""The convolution whose input's gradient is differentiated by convolutions of the same kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastt2i.ops.convolution import conv2d, only_input_gradients, parameters_want_gradients

#: Height and width, kernel, stride, padding: what a stride leaves over at the edge, and what it does not.
CASES = [
    ((5, 4), 3, (1, 1), (1, 1)),
    ((6, 8), 4, (2, 2), (1, 1)),
    ((7, 5), 4, (2, 2), (1, 1)),
    ((4, 3), 1, (1, 1), (0, 0)),
    ((8, 7), 3, (3, 2), (0, 2)),
]


def inputs(size: tuple[int, int], kernel: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = (2, 3, *size), (4, 3, kernel, kernel)
    x, weight = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    return x.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_it_differentiates_as_torchs(size: Any, kernel: int, stride: Any, padding: Any) -> None:
    """Three times: the gradients, those of their squares, and those of the squares of those."""
    x, weight = inputs(size, kernel)
    found = []
    for run in (conv2d, lambda x, w, s, p: F.conv2d(x, w, None, s, p)):
        values = [run(x, weight, stride, padding)]
        for _ in range(3):
            total = sum(value.square().sum() for value in values[-2:])
            values += torch.autograd.grad(total, (x, weight), create_graph=True)
        found.append([value.detach() for value in values])
    torch.testing.assert_close(*found)


def test_only_what_is_asked_for_is_computed() -> None:
    x, weight = inputs((5, 4), 3)
    frozen = weight.detach()
    assert conv2d(x.detach(), weight).sum().backward() is None and x.grad is None
    (first,) = torch.autograd.grad(conv2d(x, frozen).sum(), x)
    with only_input_gradients():
        assert not parameters_want_gradients()
        second, none = torch.autograd.grad(conv2d(x, weight).sum(), (x, weight), allow_unused=True)
    assert parameters_want_gradients() and none is None
    torch.testing.assert_close(first, second)


def test_a_penalty_is_differentiated_by_usual_convolutions() -> None:
    """torch's own derivative of the derivative has a convolution by the whole image, and copies."""
    names: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            names.append(function._schema.name.partition("::")[2])
            return function(*arguments, **(options or {}))

    x, weight = inputs((6, 8), 4)
    with only_input_gradients():
        (gradient,) = torch.autograd.grad(conv2d(x, weight, (2, 2), (1, 1)).square().sum(), x, create_graph=True)
    total = gradient.square().sum()
    with Names():
        total.backward()
    convolutions = [name for name in names if "convolution" in name]
    # Of the transposed one both gradients at once, and of the first one that of the weight.
    assert convolutions == ["convolution_backward"] * 2 and "clone" not in names


def test_transforms_take_torchs_own() -> None:
    x, weight = inputs((5, 4), 3)
    each = torch.func.vmap(lambda image: conv2d(image[None], weight.detach(), padding=(1, 1))[0])(x.detach())
    torch.testing.assert_close(each, F.conv2d(x, weight, padding=1).detach())
