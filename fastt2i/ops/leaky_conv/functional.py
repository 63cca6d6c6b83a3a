"""A convolution with a leaky ReLU, a shortcut and an average pooling: the public function."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

import fastt2i.ops.leaky_conv.implementations  # noqa: F401  registers them
from fastt2i.ops.autocast import cast_for_autocast
from fastt2i.ops.checks import check_constants, check_tensors
from fastt2i.ops.dispatch.registry import make_call, run
from fastt2i.ops.gated_conv.functional import bias_key, resolve_convolution
from fastt2i.ops.leaky_conv.checks import OP, check_leaky_conv2d, check_shortcut
from fastt2i.ops.overrides import overridable


class Shortcut(NamedTuple):
    """A 1x1 convolution beside another one: x (B, C, H', W'), weight (Cout, C, 1, 1), bias (Cout,) or None."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None


@overridable
def leaky_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    negative_slope: float = 0.2,
    shortcut: Shortcut | None = None,
    gain: float = 1.0,
    pool: bool = False,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A convolution, its leaky ReLU, and what a residual block of a discriminator has behind it.

        y = gain * (leaky_relu(conv2d(x, weight, bias)) + conv2d(shortcut.x, shortcut.weight, shortcut.bias))

    On a GPU biases, leaky ReLU, sum, gain and pooling are one pass over the convolutions' outputs, and one in the
    backward. Under autocast the inputs are cast to the region's dtype.

    Args:
        x: (B, Cin, H, W) floating point, in any memory format; channels-last is the fast one.
        weight: (Cout, Cin, kh, kw).
        bias: (Cout,) or None.
        stride, padding: as of `torch.nn.functional.conv2d`.
        negative_slope: of the leaky ReLU; positive.
        shortcut: what is added to it, or None for nothing.
        gain: a positive number.
        pool: whether to return an average pooling of y too, which must have an even height and width then.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        y (B, Cout, H', W'), and its average pooling by 2, (B, Cout, H' / 2, W' / 2) or None where not asked for; of x's
        dtype (the region's under autocast), differentiable any number of times.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    beside = shortcut or (None, None, None)
    check_tensors(OP, x=x, weight=weight, bias=bias)
    check_tensors(f"{OP}: the shortcut", x=beside[0], weight=beside[1], bias=beside[2])
    x, weight, bias, *added = cast_for_autocast(x, weight, bias, *beside)
    check_constants(OP, impl, negative_slope=negative_slope, gain=gain)
    check_leaky_conv2d(x, weight, bias, negative_slope, gain)
    x, stride, padding, _ = resolve_convolution(OP, x, weight, stride, padding, 1)
    height, width = ((x.shape[2 + k] + 2 * padding[k] - weight.shape[2 + k]) // stride[k] + 1 for k in range(2))
    if shortcut is not None:
        check_shortcut(weight, (x.shape[0], weight.shape[0], height, width), *added)
    if pool and (height % 2 or width % 2):
        raise ValueError(f"{OP}: the output has {height}x{width} pixels; with pool=True both numbers must be even")
    arguments = (x, weight, bias, *added, gain, stride, padding, negative_slope, pool)
    beside_key = "plain" if shortcut is None else "shortcut"
    settings = (bias_key(bias), beside_key, "pooled" if pool else "whole", *stride, *padding)
    call = make_call(OP, x, weight, bias, *added, settings=settings, num_key_tensors=2)
    y, *pooled = run(call, impl, arguments)
    return y, pooled[0] if pool else None
