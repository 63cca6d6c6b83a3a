"""Layers that are gates, and convolutions before them in a Sequential."""

from __future__ import annotations

import inspect
import re
from collections import Counter

import torch
from torch import nn

from fastt2i.nn.conv_parameters import check_convs
from fastt2i.nn.gated_conv import Gate, GatedConv2d, UpsampleGatedConv2d
from fastt2i.ops.gate.reference import ACTIVATIONS
from fastt2i.ops.gate.reference import gate as reference_gate

#: Inputs that a layer is asked about to see whether it is a gate: images, and what other layers may hand it.
PROBES = ((2, 4, 3, 5), (1, 6, 2, 2), (3, 8, 7), (3, 8))


def gate_like(module: nn.Module) -> Gate | None:
    """The `Gate` that computes what a layer does; None where it is no gate over channels."""
    if _has_hooks(module) or any(module.children()) or any(True for _ in module.parameters()):
        return None
    if isinstance(module, nn.GLU):
        return Gate("identity").train(module.training) if module.dim in (1, -3) else None
    if type(module).__module__.startswith(("torch.nn.", "fastt2i.")) or any(True for _ in module.buffers()):
        return None
    if not mentions_gate(module):
        return None
    slopes = [(name, slope) for name in ACTIVATIONS for slope in ((0.2, 0.01, 0.1) if name == "leaky_relu" else (0.2,))]
    return next((Gate(*each).train(module.training) for each in slopes if _computes(module, *each)), None)


def mentions_gate(module: nn.Module) -> bool:
    """Whether the source of a module's forward has a sigmoid or a GLU."""
    try:
        source = inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return False
    return re.search("sigmoid|glu", source, re.IGNORECASE) is not None


def _computes(module: nn.Module, activation: str, slope: float) -> bool:
    """Whether its outputs are a gate's, in both modes, for all inputs that it takes; images it has to take."""
    was_training = module.training
    random = torch.Generator().manual_seed(0)
    try:
        for number, shape in enumerate(PROBES):
            x = torch.randn(shape, dtype=torch.float64, generator=random, device="cpu")
            for training in (True, False):
                try:
                    y = module.train(training)(x.clone())
                except Exception:  # a layer raises what it likes for what it does not take
                    if number == 0:
                        return False
                    continue
                expected = reference_gate(x, activation, slope)
                if not isinstance(y, torch.Tensor) or y.shape != expected.shape or not torch.allclose(y, expected):
                    return False
        return True
    finally:
        module.train(was_training)


def merge_sequence(sequence: nn.Sequential, shared: set[int]) -> Counter[str]:
    """Merge convolutions and upsamplings into the gates behind them; what is left empty becomes `nn.Identity`.

    Every layer keeps its place, so that the names of parameters do.
    """
    done: Counter[str] = Counter()
    for place in range(1, len(sequence)):
        gate, conv = sequence[place], sequence[place - 1]
        if type(gate) is not Gate or _has_hooks(gate) or shared & {id(gate), id(conv), id(sequence)}:
            continue
        before = sequence[place - 2] if place > 1 else None
        layer = merged(conv, gate.activation, gate.negative_slope, after=before)
        if layer is None:
            continue
        sequence[place - 1], sequence[place] = layer, nn.Identity()
        done["Gate"] -= 1
        if isinstance(layer, UpsampleGatedConv2d):
            sequence[place - 2] = nn.Identity()
        done[type(layer).__name__] += 1
    return done


def merged(conv: nn.Module, activation: str, slope: float, after: nn.Module | None = None) -> GatedConv2d | None:
    """A layer for a convolution and its gate, with the convolution's own parameters; with the upsampling that it comes
    after, where that fits. None where the convolution does more than convolve."""
    if not isinstance(conv, nn.Conv2d):
        return None
    try:
        check_convs(conv, None)
    except (TypeError, ValueError):
        return None
    if not isinstance(conv._parameters.get("weight"), nn.Parameter) or torch.nn.utils.parametrize.is_parametrized(conv):
        return None
    kinds: tuple[type[GatedConv2d], ...] = (GatedConv2d,)
    if after is not None and doubles(after):
        kinds = (UpsampleGatedConv2d, GatedConv2d)
    for kind in kinds:
        try:
            layer = kind.from_conv(conv, activation=activation, negative_slope=slope)
        except ValueError:  # a shape that the upsampling one does not have
            continue
        layer._parameters.update(weight=conv._parameters["weight"], bias=conv._parameters["bias"])
        return layer
    return None


def doubles(layer: nn.Module) -> bool:
    """Whether a layer is a nearest-neighbour 2x upsampling and nothing else."""
    factor = getattr(layer, "scale_factor", None)
    return (
        isinstance(layer, nn.Upsample) and layer.mode == "nearest" and factor in (2, (2, 2)) and not _has_hooks(layer)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
