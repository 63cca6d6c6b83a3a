"""The gate in PyTorch, arranged so that what the backward needs takes the memory of pre = [f, g] alone.

That is act(f) and sigmoid(g), or f and g, of which the definition keeps more than one pair.
And where half a row of channels is too short for a CPU's vector units, halves are copied before anything is computed
from them: a dense copy is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops.reference import accumulating

#: Activations whose derivative can be told from their value, which may therefore take the place of their argument.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu_, "elu": F.elu_, "tanh": torch.tanh_}

#: Bytes of two AVX-512 registers.
VECTORS = 128


def gate(pre: Tensor, activation: str, negative_slope: float) -> Tensor:
    """act(f) * sigmoid(g) of pre (B, 2C, *) = [f, g], differentiable any number of times."""
    feature, gate = pre.chunk(2, dim=1)
    if activation == "silu":
        return _SiluGate.apply(feature, gate)
    gate = gate.clone().sigmoid_() if short_rows(pre) else gate.sigmoid()
    return _activate_(feature.clone(), activation, negative_slope) * gate


def short_rows(pre: Tensor) -> bool:
    """Whether half the channels, where these lie side by side, fill less than the two registers torch's loops take."""
    return pre.ndim > 2 and pre.stride(1) == 1 and pre.shape[1] // 2 * pre.element_size() < VECTORS


def _activate_(x: Tensor, activation: str, negative_slope: float) -> Tensor:
    if activation == "identity":
        return x
    if activation == "leaky_relu":
        # A slope below zero folds two arguments onto one value, and which one it was cannot be told.
        return F.leaky_relu_(x, negative_slope) if negative_slope >= 0 else F.leaky_relu(x, negative_slope)
    return IN_PLACE[activation](x)


class _SiluGate(torch.autograd.Function):
    """silu(f) * sigmoid(g), for which f and g are kept, as views: SiLU's derivative cannot be told from its value.

    The backward can be differentiated, and is computed in float32: so many products are rounded once, not one by one.
    """

    @staticmethod
    def forward(ctx: Any, feature: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(feature, gate)
        return F.silu(feature).mul_(gate.sigmoid())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        dtype = dy.dtype
        feature, gate, dy = (accumulating(t) for t in (*ctx.saved_tensors, dy))
        slope, gate = feature.sigmoid(), gate.sigmoid()
        act = feature * slope
        return (dy * gate * (slope + act * (1 - slope))).to(dtype), (dy * act * gate * (1 - gate)).to(dtype)
