"""The gate: the public function."""

from __future__ import annotations

from torch import Tensor

import fastt2i.ops.gate.implementations  # noqa: F401  registers them
from fastt2i.ops.checks import check_constants, check_tensors
from fastt2i.ops.dispatch.registry import make_call, run
from fastt2i.ops.gate.checks import check_gate
from fastt2i.ops.overrides import overridable


@overridable
def gate(
    pre: Tensor, *, activation: str = "leaky_relu", negative_slope: float = 0.2, impl: str | None = None
) -> Tensor:
    """act(f) * sigmoid(g): the gated linear unit (Dauphin et al. 2017) with an activation on the feature half.

    With `activation="identity"` it is `torch.nn.functional.glu(pre, dim=1)`.

    Args:
        pre: (B, 2C, ...) floating point; channels [0, C) are the feature half f, [C, 2C) the gate half g.
        activation: of the feature half: `identity`, `leaky_relu`, `relu`, `elu`, `silu` or `tanh`.
        negative_slope: of `leaky_relu`.
        impl: None lets the dispatcher choose; `reference`, `torch` or `triton` force one.

    Returns:
        (B, C, ...) of pre's dtype, twice differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: the implementation asked for cannot run here.
    """
    check_tensors("gate", pre=pre)
    check_gate(pre, activation)
    check_constants("gate", impl, negative_slope=negative_slope)
    arguments = (pre, activation, negative_slope)
    return run(make_call("gate", pre, settings=(activation,)), impl, arguments)
