"""A convolution whose gradients are differentiated as fast as the convolution itself.

torch differentiates a convolution's derivative by convolutions whose kernels are as large as the image and have as many
channels as there are images, of operands that are copied and transposed before. Here the gradient of the input is a
transposed convolution, and that of the weight has a derivative of its own: none but the usual convolutions are left in
second derivatives (as in the code of StyleGAN2-ADA, Karras et al. 2020, `conv2d_gradfix`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops.transforms import under_transform

Pair = tuple[int, int]


class Steps(NamedTuple):
    """How a convolution steps over its input."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


PIXEL_BY_PIXEL = Steps()

# Of the process and not of a thread: on a GPU autograd computes derivatives in threads of its own.
_only_inputs = False


@contextmanager
def only_input_gradients() -> Iterator[None]:
    """In this block derivatives of operators of ours give no gradients of weights and biases, which the gradient of an
    image does not need: torch tells them of all that could be asked for, not of what is."""
    global _only_inputs
    before, _only_inputs = _only_inputs, True
    try:
        yield
    finally:
        _only_inputs = before


def parameters_want_gradients() -> bool:
    """False in `only_input_gradients`."""
    return not _only_inputs


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, steps: Steps = PIXEL_BY_PIXEL) -> Tensor:
    """`torch.nn.functional.conv2d` of x (B, Cin, H, W), weight (Cout, Cin / groups, kh, kw) and bias (Cout,).

    It is differentiable any number of times.
    """
    # A compiler differentiates by itself, and so do transforms.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or under_transform():
        return F.conv2d(x, weight, bias, *steps)
    return _Convolution.apply(x, weight, bias, steps)


def conv2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, steps: Steps, wanted: Sequence[bool]
) -> tuple[Any, Any, Any]:
    """The gradients of x, the weight and a bias, each a tensor if it is wanted, else None; they are differentiated by
    usual convolutions."""
    of_x, of_weight, of_bias = wanted
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return torch.ops.aten.convolution_backward(
            dy, x, weight, [len(weight)], *steps[:3], False, (0, 0), steps.groups, (of_x, of_weight, of_bias)
        )
    return (
        _input_gradient(dy, x, weight, steps) if of_x else None,
        _WeightGradient.apply(dy, x, weight, steps) if of_weight else None,
        dy.sum(dim=(0, 2, 3)) if of_bias else None,
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return F.conv2d(x, weight, bias, *steps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, *of_parameters, _ = ctx.needs_input_grad
        wanted = [of_x, *(needed and parameters_want_gradients() for needed in of_parameters)]
        return *conv2d_backward(dy, x, weight, ctx.steps, wanted), None


class _WeightGradient(torch.autograd.Function):
    """Of the weight only the shape is read."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, steps: Steps) -> Tensor:
        ctx.save_for_backward(dy, x)
        ctx.steps = steps
        return conv2d_backward(dy, x, weight, steps, (False, True, False))[1]

    @staticmethod
    def backward(ctx: Any, ddweight: Tensor) -> tuple[Tensor | None, ...]:
        dy, x = ctx.saved_tensors
        ddy = conv2d(x, ddweight, None, ctx.steps) if ctx.needs_input_grad[0] else None
        dx = _input_gradient(dy, x, ddweight, ctx.steps) if ctx.needs_input_grad[1] else None
        return ddy, dx, None, None


def _input_gradient(dy: Tensor, x: Tensor, weight: Tensor, steps: Steps) -> Tensor:
    """As a transposed convolution."""
    stride, padding, dilation, groups = steps
    reached = (
        (dy.shape[2 + k] - 1) * stride[k] - 2 * padding[k] + dilation[k] * (weight.shape[2 + k] - 1) + 1
        for k in range(2)
    )
    beyond = [size - given for size, given in zip(x.shape[2:], reached, strict=True)]
    return F.conv_transpose2d(dy, weight, None, stride, padding, beyond, groups, dilation)
