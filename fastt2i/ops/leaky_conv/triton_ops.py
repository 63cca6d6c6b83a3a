"""Custom operators of what stands behind a convolution, on Triton kernels, with derivatives of every order.

With its signs given the operator is linear: `leaky_shortcut_tangent` is its derivative and `leaky_shortcut_backward`
the adjoint of that, and each of the two is the derivative of the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastt2i.kernels import leaky_shortcut as kernels
from fastt2i.kernels.gate import with_one_position_stride
from fastt2i.kernels.signs import signs_like
from fastt2i.ops.convolution import parameters_want_gradients


@torch.library.custom_op("fastt2i::leaky_shortcut", mutates_args=())
def leaky_shortcut(
    pre: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    gain: float,
    negative_slope: float,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """gain * (leaky_relu(pre + bias) + shortcut + shortcut_bias), (B, C, H, W); its pooling, empty without one; and the
    signs of pre + bias, eight channels in a byte."""
    given = with_one_position_stride(pre), _dense(bias), _walkable(shortcut), _dense(shortcut_bias)
    return kernels.forward(*given, gain, negative_slope, pool)


@torch.library.custom_op("fastt2i::leaky_shortcut_tangent", mutates_args=())
def leaky_shortcut_tangent(
    pre: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    signs: Tensor,
    gain: float,
    negative_slope: float,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    """The first two of these with the leaky ReLU steep where the signs say so; None stands for zeros."""
    given = _walkable(pre), _dense(bias), _walkable(shortcut), _dense(shortcut_bias)
    return kernels.tangent(*given, signs, gain, negative_slope, pool)


@torch.library.custom_op("fastt2i::leaky_shortcut_backward", mutates_args=())
def leaky_shortcut_backward(
    dy: Tensor | None,
    dpooled: Tensor | None,
    signs: Tensor,
    has_shortcut: bool,
    with_sums: bool,
    gain: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of pre and of the shortcut (empty without one), and of both biases (empty without sums)."""
    return kernels.backward(_walkable(dy), _walkable(dpooled), signs, has_shortcut, with_sums, gain, negative_slope)


@leaky_shortcut.register_fake
def _(
    pre: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    gain: float,
    negative_slope: float,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    signs = signs_like(with_one_position_stride(pre), pre.shape[1])
    return *kernels.outputs(pre, bias, shortcut, shortcut_bias, signs, pool), signs


@leaky_shortcut_tangent.register_fake
def _(
    pre: Tensor | None,
    bias: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    signs: Tensor,
    gain: float,
    negative_slope: float,
    pool: bool,
) -> tuple[Tensor, Tensor]:
    return kernels.outputs(pre, bias, shortcut, shortcut_bias, signs, pool)


@leaky_shortcut_backward.register_fake
def _(
    dy: Tensor | None,
    dpooled: Tensor | None,
    signs: Tensor,
    has_shortcut: bool,
    with_sums: bool,
    gain: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return kernels.gradients(dy, dpooled, signs, has_shortcut, with_sums)


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    pre, bias, shortcut, shortcut_bias, ctx.gain, ctx.negative_slope, ctx.pool = inputs
    ctx.set_materialize_grads(False)
    ctx.given = [x is not None for x in (pre, bias, shortcut, shortcut_bias)]
    ctx.save_for_backward(output[2])


def _setup_tangent(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    pre, bias, shortcut, shortcut_bias, signs, ctx.gain, ctx.negative_slope, ctx.pool = inputs
    ctx.set_materialize_grads(False)
    ctx.given = [x is not None for x in (pre, bias, shortcut, shortcut_bias)]
    ctx.save_for_backward(signs)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, dpooled, signs, ctx.has_shortcut, ctx.with_sums, ctx.gain, ctx.negative_slope = inputs
    ctx.set_materialize_grads(False)
    ctx.has_dy, ctx.pool = dy is not None, dpooled is not None
    ctx.save_for_backward(signs)


def _adjoint(ctx: Any, dy: Tensor | None, dpooled: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of pre, bias, shortcut and its bias, as far as they were given."""
    dpooled = dpooled if ctx.pool else None
    if dy is None and dpooled is None:
        return None, None, None, None
    (signs,) = ctx.saved_tensors
    wanted = [there and asked for there, asked in zip(ctx.given, ctx.needs_input_grad[:4], strict=True)]
    wanted[1::2] = [asked and parameters_want_gradients() for asked in wanted[1::2]]
    with_sums, with_shortcut = wanted[1] or wanted[3], wanted[2] or wanted[3]
    dpre, dshortcut, dbias, dshortcut_bias = leaky_shortcut_backward(
        dy, dpooled, signs, with_shortcut, with_sums, ctx.gain, ctx.negative_slope
    )
    found = dpre, dbias, dshortcut, dshortcut_bias
    return tuple(gradient if asked else None for gradient, asked in zip(found, wanted, strict=True))


def _forward_autograd(ctx: Any, dy: Tensor | None, dpooled: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return *_adjoint(ctx, dy, dpooled), *[None] * 3


def _tangent_autograd(ctx: Any, dy: Tensor | None, dpooled: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_adjoint(ctx, dy, dpooled), *[None] * 4


def _backward_autograd(
    ctx: Any, pre: Tensor | None, shortcut: Tensor | None, bias: Tensor | None, shortcut_bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.has_shortcut:
        shortcut = shortcut_bias = None
    if not ctx.with_sums:
        bias = shortcut_bias = None
    if all(x is None for x in (pre, shortcut, bias, shortcut_bias)):
        return (None,) * 7
    (signs,) = ctx.saved_tensors
    ddy, ddpooled = leaky_shortcut_tangent(
        pre, bias, shortcut, shortcut_bias, signs, ctx.gain, ctx.negative_slope, ctx.pool
    )
    return ddy if ctx.has_dy else None, ddpooled if ctx.pool else None, *[None] * 5


leaky_shortcut.register_autograd(_forward_autograd, setup_context=_setup_forward)
leaky_shortcut_tangent.register_autograd(_tangent_autograd, setup_context=_setup_tangent)
leaky_shortcut_backward.register_autograd(_backward_autograd, setup_context=_setup_backward)


def _walkable(x: Tensor | None) -> Tensor | None:
    return None if x is None else with_one_position_stride(x)


def _dense(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()
