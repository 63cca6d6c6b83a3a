"""Custom operators of the Triton kernels of contrastive losses, with fake implementations and autograd formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastt2i.kernels import contrastive_loss as kernels
from fastt2i.ops import numerics
from fastt2i.ops.numerics import NORM_FLOOR


@torch.library.custom_op("fastt2i::symmetric_cross_entropy", mutates_args=())
def symmetric_cross_entropy(logits: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss of logits (B, B), B > 0, in float32, and the log-sum-exps (2, B) that its gradient needs."""
    return kernels.forward(logits.contiguous(), None if exclude is None else exclude.contiguous())


@torch.library.custom_op("fastt2i::symmetric_cross_entropy_backward", mutates_args=())
def symmetric_cross_entropy_backward(dloss: Tensor, logits: Tensor, exclude: Tensor | None, lse: Tensor) -> Tensor:
    """The gradient of the logits, contiguous."""
    return kernels.backward(dloss, logits.contiguous(), None if exclude is None else exclude.contiguous(), lse)


@torch.library.custom_op("fastt2i::l2_normalize", mutates_args=())
def l2_normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, D) in float32 over its rows' norms, and (2, N) that its gradient needs."""
    return kernels.normalize(x, NORM_FLOOR)


@torch.library.custom_op("fastt2i::l2_normalize_backward", mutates_args=())
def l2_normalize_backward(dy: Tensor, x: Tensor, y: Tensor, norms: Tensor) -> Tensor:
    """The gradient of x, which is there for second derivatives alone."""
    return kernels.normalize_backward(dy, y, norms)


@l2_normalize.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(2, x.shape[0])


@l2_normalize_backward.register_fake
def _(dy: Tensor, x: Tensor, y: Tensor, norms: Tensor) -> Tensor:
    return torch.empty_like(y)


@symmetric_cross_entropy.register_fake
def _(logits: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty(2, logits.shape[0])


@symmetric_cross_entropy_backward.register_fake
def _(dloss: Tensor, logits: Tensor, exclude: Tensor | None, lse: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _forward_autograd(ctx: Any, dloss: Tensor, unused: Any) -> tuple[Tensor, None]:
    return symmetric_cross_entropy_backward(dloss, *ctx.saved_tensors), None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward_autograd(ctx: Any, ddlogits: Tensor) -> tuple[Tensor | None, ...]:
    dloss, logits, exclude = ctx.saved_tensors
    return (
        *_second_derivatives(lambda x: numerics.symmetric_cross_entropy(x, exclude), logits, dloss, ddlogits),
        None,
        None,
    )


def _setup_normalize(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _normalize_autograd(ctx: Any, dy: Tensor, unused: Any) -> Tensor:
    return l2_normalize_backward(dy, *ctx.saved_tensors)


def _setup_normalize_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _normalize_backward_autograd(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    dy, x = ctx.saved_tensors
    return *_second_derivatives(numerics.l2_normalize, x, dy, ddx), None, None


def _second_derivatives(
    run: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor, dgradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Of upstream and x, given that of the gradient of x: few losses are differentiated twice, and torch does it."""
    with torch.enable_grad():
        x, upstream = x.detach().requires_grad_(), upstream.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(run(x), x, upstream, create_graph=True)
    of_upstream, of_x = torch.autograd.grad(gradient, (upstream, x), dgradient)
    return of_upstream, of_x


symmetric_cross_entropy.register_autograd(_forward_autograd, setup_context=_setup_forward)
symmetric_cross_entropy_backward.register_autograd(_backward_autograd, setup_context=_setup_backward)
l2_normalize.register_autograd(_normalize_autograd, setup_context=_setup_normalize)
l2_normalize_backward.register_autograd(_normalize_backward_autograd, setup_context=_setup_normalize_backward)
