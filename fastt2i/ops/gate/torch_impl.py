"""The gate in PyTorch: what it saves for the backward takes the memory of pre = [f, g] alone.

Saved are sigmoid(g) and act(f), or f where the derivative does not follow from the value; autograd of the definition
saves more. And the backward writes the gradients of f and g into the halves of one tensor, without a concatenation.

Where half a row of channels is too short for a CPU's vector units, halves are copied before anything is computed from
them, and gradients after: a dense copy is not as slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.devices.capabilities import VECTOR_REGISTER
from fastt2i.ops.gate.reference import activate
from fastt2i.ops.gate.reference import gate as reference_gate
from fastt2i.ops.numerics import upcast
from fastt2i.ops.transforms import under_transform

aten = torch.ops.aten

#: Activations without a parameter that can run in place: their derivative follows from their value.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu_, "elu": F.elu_, "tanh": torch.tanh_}


def gate(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f) * sigmoid(g) of pre (B, 2C, *) = [f, g], differentiable any number of times."""
    # A compiler fuses the definition and chooses itself what to save; torch.func does not take this autograd function.
    if torch.compiler.is_compiling() or under_transform():
        return reference_gate(pre, activation, negative_slope)
    return _Gate.apply(pre, activation, negative_slope)[0]


def has_short_rows(pre: Tensor) -> bool:
    """Whether pre is channels-last and half its channels fill less than the two vector registers that torch's loops
    process at once."""
    return _is_channels_last(pre) and is_short_row(pre.shape[1], pre.element_size())


def is_short_row(channels: int, item_bytes: int) -> bool:
    """Whether half of these channels fill less than two vector registers."""
    return channels // 2 * item_bytes < 2 * VECTOR_REGISTER


def _is_channels_last(pre: Tensor) -> bool:
    return pre.ndim > 2 and pre.stride(1) == 1


class _Gate(torch.autograd.Function):
    """The gate, and the two (B, C, *) tensors that it saves: outputs too, so that second derivatives reach pre."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, activation: str, negative_slope: float) -> tuple[Tensor, Tensor, Tensor]:
        feature, gate = pre.chunk(2, dim=1)
        short = has_short_rows(pre)
        gate = gate.clone().sigmoid_() if short else gate.sigmoid()
        if _backward_needs_input(activation, negative_slope):
            saved = feature.clone()
            y = _activation_value(saved, activation, negative_slope).mul_(gate)
        else:
            # Rows are read faster by a copy than by an activation; and no output may be a view of pre.
            if _is_channels_last(pre) or activation == "identity":
                saved = _activate_(feature.clone(), activation, negative_slope)
            else:
                saved = activate(feature, activation, negative_slope)
            y = saved * gate
        ctx.setting, ctx.has_short_rows = (activation, negative_slope), short
        ctx.shape, ctx.strides = pre.shape, pre.stride()
        ctx.save_for_backward(saved, gate)
        ctx.set_materialize_grads(False)
        return y, saved, gate

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dsaved: Tensor | None, dgate: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, gate = ctx.saved_tensors
        activation, negative_slope = ctx.setting
        if torch.is_grad_enabled() or dsaved is not None or dgate is not None:
            return _differentiable_backward(saved, gate, dy, dsaved, dgate, activation, negative_slope), None, None
        if dy is None:
            return None, None, None
        order = sorted(range(len(ctx.shape)), key=ctx.strides.__getitem__, reverse=True)
        dpre = torch.empty_permuted(ctx.shape, order, dtype=gate.dtype, device=gate.device)
        df, dg = dpre.chunk(2, dim=1)
        product = dy * gate
        if ctx.has_short_rows:
            df.copy_(_activation_backward(product, saved, activation, negative_slope))
        else:
            _activation_backward(product, saved, activation, negative_slope, out=df)
        torch.mul(dy, _activation_value(saved, activation, negative_slope), out=product)
        aten.sigmoid_backward(product, gate, grad_input=dg)
        return dpre, None, None


def _differentiable_backward(
    saved: Tensor,
    gate: Tensor,
    dy: Tensor | None,
    dsaved: Tensor | None,
    dgate: Tensor | None,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """The gradient of pre, given those of all outputs, None being zero; computed upcast, so that it is rounded once."""
    dtype = gate.dtype
    saved, gate = upcast(saved), upcast(gate)
    dsaved, dgate = (torch.zeros_like(gate) if d is None else upcast(d) for d in (dsaved, dgate))
    dact = torch.zeros_like(gate)
    if dy is not None:
        dy = upcast(dy)
        dact, dgate = dy * gate, dgate + dy * _activation_value(saved, activation, negative_slope)
    if _backward_needs_input(activation, negative_slope):
        df = dsaved + _activation_backward(dact, saved, activation, negative_slope)
    else:
        df = _activation_backward(dsaved + dact, saved, activation, negative_slope)
    return torch.cat((df, aten.sigmoid_backward(dgate, gate)), dim=1).to(dtype)


def _activation_value(saved: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f)."""
    needs_input = _backward_needs_input(activation, negative_slope)
    return activate(saved, activation, negative_slope) if needs_input else saved


def _backward_needs_input(activation: str, negative_slope: float) -> bool:
    """Whether the derivative needs the input f: it does not follow from the value where two inputs share one."""
    return activation == "silu" or (activation == "leaky_relu" and negative_slope < 0)


def _activate_(x: Tensor, activation: str, negative_slope: float) -> Tensor:
    """In place."""
    if activation == "identity":
        return x
    return F.leaky_relu_(x, negative_slope) if activation == "leaky_relu" else IN_PLACE[activation](x)


def _activation_backward(
    dact: Tensor, saved: Tensor, activation: str, negative_slope: float, out: Tensor | None = None
) -> Tensor:
    """The feature half's gradient, given that of its activation; by PyTorch's backwards, differentiable in turn."""
    into = {} if out is None else {"grad_input": out}
    match activation:
        case "identity":
            return dact if out is None else out.copy_(dact)
        case "leaky_relu":
            return aten.leaky_relu_backward(dact, saved, negative_slope, negative_slope >= 0, **into)
        case "relu":
            return aten.threshold_backward(dact, saved, 0, **into)
        case "elu":
            return aten.elu_backward(dact, 1, 1, 1, True, saved, **into)
        case "tanh":
            return aten.tanh_backward(dact, saved, **into)
        case _ if out is not None:
            return aten.silu_backward(dact, saved, **into)
        case _:  # PyTorch's backward of SiLU is the one that cannot be differentiated
            slope = saved.sigmoid()
            return dact * slope * (1 + saved * (1 - slope))
