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
    modulated_gated_conv2d,
    modulated_upsample_gated_conv2d,
    numerics,
    region_keyword_loss,
    upsample_gated_conv2d,
)
from fastt2i.ops.leaky_conv.functional import Shortcut

GAIN = math.sqrt(0.5)
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
    return (
        _losses(device, dtype, batch)
        | _gated_convolutions(make, batch, side)
        | _modulated_convolutions(make, batch, side)
        | _discriminators_convolutions(make, batch, side)
    )


def _losses(device: torch.device, dtype: torch.dtype, batch: int) -> dict[str, OperatorCall]:
    mask = torch.ones(batch, 8, dtype=torch.bool, device=device)
    calls = {
        f"region_keyword_loss {each}": OperatorCall(
            partial(_region_keyword_loss, keyword_mask=mask),
            (_random(device, each, batch, 256, 256), _random(device, each, batch, 8, 256)),
            (),
        )
        for each in {torch.float32: 0, dtype: 0}
    }
    # Of two shapes, whose numbers differ.
    images, sentences = (
        _random(device, torch.float32, batch, n)[:, :256].detach().requires_grad_() for n in (256, 257)
    )
    return calls | {"global_match_loss": OperatorCall(_global_match_loss, (images, sentences), ())}


def _gated_convolutions(make: Callable[..., Tensor], batch: int, side: int) -> dict[str, OperatorCall]:
    calls = {}
    for inner, outer in ((48, 24), (96, 48)):
        arguments = make(batch, inner, side, side), make(2 * outer, inner, 3, 3), make(2 * outer)
        calls[f"upsample_gated_conv2d {inner} to {outer}"] = OperatorCall(upsample_gated_conv2d, arguments)
    for channels in (24, 64):
        arguments = make(batch, channels, side, side), make(2 * channels, channels, 3, 3), make(2 * channels)
        calls[f"gated_conv2d {channels}"] = OperatorCall(partial(gated_conv2d, padding=1), arguments)
        calls[f"gate {channels}"] = OperatorCall(gate, (make(batch, 2 * channels, side, side),))
    return calls


def _modulated_convolutions(make: Callable[..., Tensor], batch: int, side: int) -> dict[str, OperatorCall]:
    """Both of the generator's last block."""
    scale, shift = make(batch, 24), make(batch, 24)
    up = make(batch, 48, side // 2, side // 2), make(48, 48, 3, 3), make(48), scale, shift
    residual = make(batch, 24, side, side), make(48, 24, 3, 3), make(48), scale, shift, make(batch, 24, side, side)
    return {
        "modulated_upsample_gated_conv2d 48 to 24": OperatorCall(modulated_upsample_gated_conv2d, up, (0, 3, 4)),
        "modulated_gated_conv2d 24": OperatorCall(_with_residual, residual, (0, 3, 4, 5)),
    }


def _discriminators_convolutions(make: Callable[..., Tensor], batch: int, side: int) -> dict[str, OperatorCall]:
    """Both of the discriminator's first block."""
    down = make(batch, 24, side, side), make(48, 24, 4, 4), make(48)
    convolved = make(batch, 48, side // 2, side // 2), make(48, 48, 3, 3), make(48)
    beside = make(batch, 24, side // 2, side // 2), make(48, 24, 1, 1), make(48)
    return {
        "leaky_conv2d 24 to 48, strided": OperatorCall(_strided, down),
        "leaky_conv2d 48, shortcut and pooling": OperatorCall(_with_shortcut, (*convolved, *beside), (0, 3)),
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


def _strided(x: Tensor, weight: Tensor, bias: Tensor, impl: str | None = None) -> Tensor:
    return leaky_conv2d(x, weight, bias, stride=2, padding=1, impl=impl).y


def _with_shortcut(
    x: Tensor, weight: Tensor, bias: Tensor, *shortcut: Tensor, impl: str | None = None
) -> tuple[Tensor, ...]:
    return tuple(
        leaky_conv2d(x, weight, bias, padding=1, shortcut=Shortcut(*shortcut), gain=GAIN, pool=True, impl=impl)
    )
