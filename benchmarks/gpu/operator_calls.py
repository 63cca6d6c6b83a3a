"""The operators that the suite checks and times, with what training gives them in the 256 px preset."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastt2i.ops import (
    gate,
    gated_conv2d,
    global_match_loss,
    leaky_conv2d,
    modulated_gated_block,
    modulated_gated_conv2d,
    modulated_upsample_gated_conv2d,
    numerics,
    region_keyword_loss,
    upsample_gated_conv2d,
)
from fastt2i.ops.gated_block.functional import ModulatedConv
from fastt2i.ops.leaky_conv.functional import Shortcut

GAIN = math.sqrt(0.5)
#: Images of a training step.
BATCH = 32
#: Width and height of the largest layer's images, half of training's; and of a tiny one's.
SIDE, TINY_SIDE = 128, 8
#: An operator, which takes `impl` too, and its arguments.
OperatorCall = tuple[Callable[..., Any], tuple[Any, ...]]


def operator_calls(device: torch.device, dtype: torch.dtype, batch: int, tiny: bool) -> dict[str, OperatorCall]:
    """By name; smaller ones where `tiny`."""
    side, batch = (TINY_SIDE, 2) if tiny else (SIDE, batch)
    random = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = dtype, scale: float = 1.0) -> Tensor:
        x = (scale * torch.randn(shape, generator=random)).to(device, dtype)
        return (x.to(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_()

    def images(channels: int, side: int = side) -> Tensor:
        return make(batch, channels, side, side)

    def filters(outputs: int, inputs: int, taps: int = 3) -> tuple[Tensor, Tensor]:
        return make(outputs, inputs, taps, taps, scale=(inputs * taps**2) ** -0.5), make(outputs)

    mask, half = torch.ones(batch, 8, dtype=torch.bool, device=device), side // 2
    modulation, second_modulation = ((make(batch, 24), make(batch, 24)) for _ in range(2))
    globals_, sentences = (make(batch, 256, dtype=torch.float32) for _ in range(2))
    shortcut = images(24, half), *filters(48, 24, 1)
    calls: dict[str, OperatorCall] = {
        f"region_keyword_loss {each}": (
            partial(region_keyword_loss, keyword_mask=mask),
            tuple(make(batch, rows, 256, dtype=each, scale=0.25) for rows in (256, 8)),
        )
        for each in dict.fromkeys((torch.float32, dtype))
    }
    return calls | {
        "global_match_loss": (_global_match_loss, (globals_, sentences)),
        "upsample_gated_conv2d 48 to 24": (upsample_gated_conv2d, (images(48), *filters(48, 48))),
        "upsample_gated_conv2d 96 to 48": (upsample_gated_conv2d, (images(96), *filters(96, 96))),
        "gated_conv2d 24": (partial(gated_conv2d, padding=1), (images(24), *filters(48, 24))),
        "gated_conv2d 64": (partial(gated_conv2d, padding=1), (images(64), *filters(128, 64))),
        "gate 24": (gate, (images(48),)),
        "gate 64": (gate, (images(128),)),
        # Both of the generator's last block.
        "modulated_upsample_gated_conv2d 48 to 24": (
            modulated_upsample_gated_conv2d, (images(48, half), *filters(48, 48), *modulation)
        ),
        "modulated_gated_conv2d 24": (_with_residual, (images(24), *filters(48, 24), *modulation, images(24))),
        "modulated_gated_block 48 to 24": (
            _block, (images(48, half), *filters(48, 48), *modulation, *filters(48, 24), *second_modulation)
        ),
        # Both of the discriminator's first block.
        "leaky_conv2d 24 to 48, strided": (partial(_leaky_conv2d, stride=2), (images(24), *filters(48, 24, 4))),
        "leaky_conv2d 48, shortcut and pooling": (
            partial(_leaky_conv2d, gain=GAIN, pool=True), (images(48, half), *filters(48, 48), *shortcut)
        ),
    }  # fmt: skip


def _global_match_loss(images: Tensor, sentences: Tensor, impl: str | None = None) -> Tensor:
    if impl != "reference":
        return global_match_loss(images, sentences)
    cosines = numerics.l2_normalize(images) @ numerics.l2_normalize(sentences).T
    return numerics.symmetric_cross_entropy(cosines / 0.1, None)


def _with_residual(*tensors: Tensor, impl: str | None = None) -> Tensor:
    *own, residual = tensors
    return modulated_gated_conv2d(*own, residual=residual, gain=GAIN, padding=1, impl=impl)


def _block(x: Tensor, *convolutions: Tensor, impl: str | None = None) -> Tensor:
    """The generator's last one, with its leaky ReLU."""
    pair = ModulatedConv(*convolutions[:4]), ModulatedConv(*convolutions[4:])
    return modulated_gated_block(x, *pair, gain=GAIN, output_slope=0.2, impl=impl)


def _leaky_conv2d(x: Tensor, weight: Tensor, bias: Tensor, *shortcut: Tensor, **settings: Any) -> tuple[Tensor, ...]:
    """Of what it returns, what is there."""
    found = leaky_conv2d(x, weight, bias, padding=1, shortcut=Shortcut(*shortcut) if shortcut else None, **settings)
    return tuple(y for y in found if y is not None)
