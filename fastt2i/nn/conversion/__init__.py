"""Fused layers in a model that exists: `convert(model)`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from fastt2i.nn.conversion.gate_forwards import Left, fuse_forward
from fastt2i.nn.conversion.glu_layers import gate_like, merge_sequence


def convert(model: nn.Module, report: Callable[[str], None] | None = print) -> nn.Module:
    """Replace the gates of a model of images (B, C, H, W) by fused layers with equal outputs, and say what was done.

    What is replaced, wherever it stands in the model:
    - `nn.GLU` over channels, and layers without parameters that compute a gate, by `Gate`;
    - in a `nn.Sequential`, a convolution before a gate by `GatedConv2d`, and a nearest 2x upsampling with a 3x3
      convolution before one by `UpsampleGatedConv2d`;
    - in a `forward` of the model's own, `act(f) * sigmoid(g)` of two halves of a tensor's channels by the fused gate,
      with the convolution and upsampling before it where they are used for nothing else; and of two convolutions of
      one tensor by one `GatedConv2d`. Such a forward is traced by torch.fx; it is left as it is, with the reason in the
      report, where that fails or where it would freeze what may change: training mode, random numbers, floats of its
      own. What it reads of its own bools, whole numbers and strings is settled from then on.

    The model's parameters stay the ones that they are, with their names, so that optimizers and checkpoints go on;
    except for two convolutions that become one, whose parameters are new. Of convolutions with hooks, normalised
    weights or of other classes the gate alone is fused.

    Args:
        model: changed in place; one that was converted before stays what it is.
        report: takes the line that says what was done; None for silence.

    Returns:
        the model; another one only where it is a gate itself.
    """
    replaced: Counter[str] = Counter()
    left: list[str] = []
    shared = _shared(model)
    model = _replace_gates(model, replaced)
    for sequence in [m for m in model.modules() if type(m) is nn.Sequential]:
        replaced.update(merge_sequence(sequence, shared))
    for name, module in list(model.named_modules()):
        if type(module).__module__.startswith(("torch.nn.", "fastt2i.")) or isinstance(module, torch.jit.ScriptModule):
            continue
        try:
            replaced.update(fuse_forward(module, shared))
        except Left as reason:
            left.append(f"{name or 'the model'} ({type(module).__name__}): {reason}")
    if report is not None:
        done = ", ".join(f"{count} {kind}" for kind, count in sorted(replaced.items()) if count) or "nothing"
        kept = f"; left as they are: {'; '.join(left)}" if left else ""
        report(f"fastt2i.nn.convert: {done} put in{kept}")
    return model


def _replace_gates(model: nn.Module, replaced: Counter[str]) -> nn.Module:
    gates: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        if (gate := gate_like(module)) is not None:
            gates[id(module)] = gate
            replaced["Gate"] += 1
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if id(child) in gates:
                module._modules[name] = gates[id(child)]
    return gates.get(id(model), model)


def _shared(model: nn.Module) -> set[int]:
    """Modules that stand in more than one place: what one place needs of them the other may not."""
    places = Counter(id(child) for module in model.modules() for child in module._modules.values())
    return {module for module, count in places.items() if count > 1}
