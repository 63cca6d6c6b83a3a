"""The gate in PyTorch, arranged so that what the backward needs takes the memory of pre = [f, g] alone.

That is sigmoid(g) and act(f), or f where the derivative cannot be told from the value; the definition keeps more. And
the backward writes the gradients of f and g where they belong, instead of joining them in a pass of its own.

Where half a row of channels is too short for a CPU's vector units, halves are copied before anything is computed from
them, and gradients after: a dense copy is not as slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fastt2i.devices.capabilities import VECTOR_REGISTER
from fastt2i.ops import reference

aten = torch.ops.aten

#: Activations without a parameter that can take the place of their argument: their derivative follows from their value.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu_, "elu": F.elu_, "tanh": torch.tanh_}


def gate(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f) * sigmoid(g) of pre (B, 2C, *) = [f, g], differentiable any number of times."""
    # A compiler fuses the definition, and chooses itself what to keep; and transforms take no function of ours.
    if torch.compiler.is_compiling() or _is_transformed():
        return reference.gate(pre, activation, negative_slope)
    return _Gate.apply(pre, activation, negative_slope)[0]


def _is_transformed() -> bool:
    """Whether torch.func is at work, or forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def short_rows(pre: Tensor) -> bool:
    """Whether half the channels, where these lie side by side, fill less than the two registers torch's loops take."""
    return _in_rows(pre) and is_short(pre.shape[1], pre.element_size())


def is_short(channels: int, item_bytes: int) -> bool:
    """Whether a row of half of these channels is."""
    return channels // 2 * item_bytes < 2 * VECTOR_REGISTER


def _in_rows(pre: Tensor) -> bool:
    return pre.ndim > 2 and pre.stride(1) == 1


class _Gate(torch.autograd.Function):
    """The gate, and the two (B, C, *) that it keeps: as outputs, so that a second derivative finds its way to pre."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor, Tensor]:
        feature, gate = pre.chunk(2, dim=1)
        short = short_rows(pre)
        gate = gate.clone().sigmoid_() if short else gate.sigmoid()
        if _needs_argument(activation, negative_slope):
            kept = feature.clone()
            y = _value(kept, activation, negative_slope).mul_(gate)
        else:
            # Rows are read faster by a copy than by an activation; and no output may be a view of pre.
            if _in_rows(pre) or activation == "identity":
                kept = _activate_(feature.clone(), activation, negative_slope)
            else:
                kept = reference.activate(feature, activation, negative_slope)
            y = kept * gate
        ctx.setting, ctx.short_rows = (activation, negative_slope), short
        ctx.shape, ctx.strides = pre.shape, pre.stride()
        ctx.save_for_backward(kept, gate)
        ctx.set_materialize_grads(False)
        return y, kept, gate

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dkept: Tensor | None, dgate: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, gate = ctx.saved_tensors
        activation, negative_slope = ctx.setting
        if torch.is_grad_enabled() or dkept is not None or dgate is not None:
            return _differentiable_backward(kept, gate, dy, dkept, dgate, activation, negative_slope), None, None
        if dy is None:
            return None, None, None
        order = sorted(range(len(ctx.shape)), key=ctx.strides.__getitem__, reverse=True)
        dpre = torch.empty_permuted(ctx.shape, order, dtype=gate.dtype, device=gate.device)
        df, dg = dpre.chunk(2, dim=1)
        received = dy * gate
        if ctx.short_rows:
            df.copy_(_through(received, kept, activation, negative_slope))
        else:
            _through(received, kept, activation, negative_slope, out=df)
        torch.mul(dy, _value(kept, activation, negative_slope), out=received)
        aten.sigmoid_backward(received, gate, grad_input=dg)
        return dpre, None, None


def _differentiable_backward(
    kept: Tensor,
    gate: Tensor,
    dy: Tensor | None,
    dkept: Tensor | None,
    dgate: Tensor | None,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """The gradient of pre, given those of all outputs, None being zero. So many products are rounded once, not each."""
    dtype = gate.dtype
    kept, gate = reference.accumulating(kept), reference.accumulating(gate)
    dkept, dgate = (torch.zeros_like(gate) if d is None else reference.accumulating(d) for d in (dkept, dgate))
    dact = torch.zeros_like(gate)
    if dy is not None:
        dy = reference.accumulating(dy)
        dact, dgate = dy * gate, dgate + dy * _value(kept, activation, negative_slope)
    if _needs_argument(activation, negative_slope):
        df = dkept + _through(dact, kept, activation, negative_slope)
    else:
        df = _through(dkept + dact, kept, activation, negative_slope)
    return torch.cat((df, aten.sigmoid_backward(dgate, gate)), dim=1).to(dtype)


def _value(kept: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f)."""
    needs_argument = _needs_argument(activation, negative_slope)
    return reference.activate(kept, activation, negative_slope) if needs_argument else kept


def _needs_argument(activation: str, negative_slope: float) -> bool:
    """Whether the derivative cannot be told from the value: two arguments have the same."""
    return activation == "silu" or (activation == "leaky_relu" and negative_slope < 0)


def _activate_(x: Tensor, activation: str, negative_slope: float) -> Tensor:
    """In place."""
    if activation == "identity":
        return x
    return F.leaky_relu_(x, negative_slope) if activation == "leaky_relu" else IN_PLACE[activation](x)


def _through(dact: Tensor, kept: Tensor, activation: str, negative_slope: float, out: Tensor | None = None) -> Tensor:
    """The feature half's gradient, given that of its activation; by PyTorch's backwards, differentiable in turn."""
    into = {} if out is None else {"grad_input": out}
    match activation:
        case "identity":
            return dact if out is None else out.copy_(dact)
        case "leaky_relu":
            return aten.leaky_relu_backward(dact, kept, negative_slope, negative_slope >= 0, **into)
        case "relu":
            return aten.threshold_backward(dact, kept, 0, **into)
        case "elu":
            return aten.elu_backward(dact, 1, 1, 1, True, kept, **into)
        case "tanh":
            return aten.tanh_backward(dact, kept, **into)
        case _ if out is not None:
            return aten.silu_backward(dact, kept, **into)
        case _:  # PyTorch's backward of SiLU is the one that cannot be differentiated
            slope = kept.sigmoid()
            return dact * slope * (1 + kept * (1 - slope))
