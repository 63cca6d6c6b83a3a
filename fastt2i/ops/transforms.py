"""Function transforms of torch, which custom operators and autograd functions of ours do not support."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

#: Why an implementation that is not made of torch's own differentiable operators cannot run under a transform.
NOT_TRANSFORMABLE = "under torch.func and in forward mode the reference runs, whose derivatives torch knows"


def under_transform() -> bool:
    """Whether a torch.func transform (grad, vmap, jvp, ...) or forward-mode differentiation is active.

    False under torch.compile, which traces transforms itself.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
