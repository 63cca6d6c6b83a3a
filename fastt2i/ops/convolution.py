"""A convolution whose gradient of the input is differentiated as fast as the convolution itself.

torch differentiates a convolution's derivative by a convolution whose kernel is as large as the image, of operands that
are copied and transposed before. Here the gradient of the input is a transposed convolution, with a derivative of its
own: none but the usual convolutions are left in a gradient penalty (as in the code of StyleGAN2-ADA, Karras et al.
2020, `conv2d_gradfix`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops.transforms import under_transform

Pair = tuple[int, int]

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


def conv2d(x: Tensor, weight: Tensor, stride: Pair = (1, 1), padding: Pair = (0, 0)) -> Tensor:
    """`torch.nn.functional.conv2d` without a bias, of x (B, Cin, H, W) and weight (Cout, Cin, kh, kw).

    It is differentiable any number of times.
    """
    # A compiler differentiates by itself, and so do transforms.
    if torch.compiler.is_compiling() or under_transform():
        return F.conv2d(x, weight, None, stride, padding)
    return _Convolution.apply(x, weight, stride, padding)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and parameters_want_gradients()
        dx = None
        if of_x and torch.is_grad_enabled():
            dx, of_x = _input_gradient(dy, x, weight, ctx.stride, ctx.padding), False
        found, dweight = None, None
        if of_x or of_weight:
            found, dweight, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (of_x, of_weight, False)
            )
        return found if dx is None else dx, dweight, None, None


def _input_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """As a transposed convolution."""
    reached = ((dy.shape[2 + k] - 1) * stride[k] - 2 * padding[k] + weight.shape[2 + k] for k in range(2))
    beyond = [size - given for size, given in zip(x.shape[2:], reached, strict=True)]
    return F.conv_transpose2d(dy, weight, None, stride, padding, beyond)
