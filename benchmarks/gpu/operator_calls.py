"""The operators that the suite checks and times, with what training gives them in the 256 px preset."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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


class OperatorCall(NamedTuple):
    """An operator and its arguments.

    op: takes them and `impl`; per_sample: places of those that have a row for each image, none where images depend on
    each other.
    """

    op: Callable[..., Any]
    arguments: tuple[Any, ...]
    per_sample: tuple[int, ...] = (0,)


def operator_calls(device: torch.device, dtype: torch.dtype, batch: int, tiny: bool) -> dict[str, OperatorCall]:
    """By name; smaller ones where `tiny`."""
    side, batch = (TINY_SIDE, 2) if tiny else (SIDE, batch)
    make = partial(_random, device, dtype)

    def images(channels: int, side: int = side) -> Tensor:
        return make(batch, channels, side, side)

    def filters(outputs: int, inputs: int, taps: int = 3) -> tuple[Tensor, Tensor]:
        return make(outputs, inputs, taps, taps), make(outputs)

    mask, half = torch.ones(batch, 8, dtype=torch.bool, device=device), side // 2
    modulation, second_modulation = ((make(batch, 24), make(batch, 24)) for _ in range(2))
    # Of two shapes, whose numbers differ.
    globals_, sentences = (
        _random(device, torch.float32, batch, n)[:, :256].detach().requires_grad_() for n in (256, 257)
    )
    shortcut = images(24, half), *filters(48, 24, 1)
    return {
        **{
            f"region_keyword_loss {each}": OperatorCall(
                partial(_region_keyword_loss, keyword_mask=mask),
                (_random(device, each, batch, 256, 256), _random(device, each, batch, 8, 256)),
                (),
            )
            for each in dict.fromkeys((torch.float32, dtype))
        },
        "global_match_loss": OperatorCall(_global_match_loss, (globals_, sentences), ()),
        **{
            f"upsample_gated_conv2d {inner} to {outer}": OperatorCall(
                upsample_gated_conv2d, (images(inner), *filters(2 * outer, inner))
            )
            for inner, outer in ((48, 24), (96, 48))
        },
        **{
            f"gated_conv2d {channels}": OperatorCall(
                partial(gated_conv2d, padding=1), (images(channels), *filters(2 * channels, channels))
            )
            for channels in (24, 64)
        },
        **{f"gate {channels}": OperatorCall(gate, (images(2 * channels),)) for channels in (24, 64)},
        # Both of the generator's last block.
        "modulated_upsample_gated_conv2d 48 to 24": OperatorCall(
            modulated_upsample_gated_conv2d, (images(48, half), *filters(48, 48), *modulation), (0, 3, 4)
        ),
        "modulated_gated_conv2d 24": OperatorCall(
            _with_residual, (images(24), *filters(48, 24), *modulation, images(24)), (0, 3, 4, 5)
        ),
        "modulated_gated_block 48 to 24": OperatorCall(
            _block,
            (images(48, half), *filters(48, 48), *modulation, *filters(48, 24), *second_modulation),
            (0, 3, 4, 7, 8),
        ),
        # Both of the discriminator's first block.
        "leaky_conv2d 24 to 48, strided": OperatorCall(_strided, (images(24), *filters(48, 24, 4))),
        "leaky_conv2d 48, shortcut and pooling": OperatorCall(
            _with_shortcut, (images(48, half), *filters(48, 48), *shortcut), (0, 3)
        ),
    }


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)
    scaled = x * (shape[1] * 9) ** -0.5 if shape[-2:] == (3, 3) else x
    return (scaled.to(memory_format=torch.channels_last) if x.ndim == 4 else scaled).requires_grad_()


def _region_keyword_loss(regions: Tensor, keywords: Tensor, keyword_mask: Tensor, impl: str | None = None) -> Tensor:
    return region_keyword_loss(regions * 0.25, keywords * 0.25, keyword_mask, impl=impl)


def _global_match_loss(images: Tensor, sentences: Tensor, impl: str | None = None) -> Tensor:
    if impl != "reference":
        return global_match_loss(images, sentences)
    cosines = numerics.l2_normalize(images) @ numerics.l2_normalize(sentences).T
    return numerics.symmetric_cross_entropy(cosines / 0.1, None)


def _with_residual(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, residual: Tensor, impl: str | None = None
) -> Tensor:
    settings: dict[str, Any] = {"residual": residual, "gain": GAIN, "padding": 1, "impl": impl}
    return modulated_gated_conv2d(x, weight, bias, scale, shift, **settings)


def _block(x: Tensor, *convolutions: Tensor, impl: str | None = None) -> Tensor:
    """The generator's last one, with its leaky ReLU."""
    pair = ModulatedConv(*convolutions[:4]), ModulatedConv(*convolutions[4:])
    return modulated_gated_block(x, *pair, gain=GAIN, output_slope=0.2, impl=impl)


def _strided(x: Tensor, weight: Tensor, bias: Tensor, impl: str | None = None) -> Tensor:
    y, _ = leaky_conv2d(x, weight, bias, stride=2, padding=1, impl=impl)
    return y


def _with_shortcut(
    x: Tensor, weight: Tensor, bias: Tensor, *shortcut: Tensor, impl: str | None = None
) -> tuple[Tensor, ...]:
    return tuple(
        leaky_conv2d(x, weight, bias, padding=1, shortcut=Shortcut(*shortcut), gain=GAIN, pool=True, impl=impl)
    )
