"""Calls of every kernel that are compiled ahead of time: launchers with tensors that have shapes and strides alone.

Sizes that a kernel does not know are no multiples of 16 where others would be told to the compiler; channels are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from fastt2i.kernels import contrastive_loss, gate, gated_conv, leaky_shortcut, modulated_gate, region_keyword
from fastt2i.kernels import transposed_weight as transposed
from fastt2i.kernels.tiles import CONFIGS, Config
from fastt2i.ops.gate.reference import ACTIVATIONS

#: Bytes of shared memory that one program may take, by compute capability times ten.
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
EVERYWHERE = tuple(SHARED_MEMORY)
#: Channels of the presets' largest layers, for kernels that are compiled for them.
WIDTHS = (24, 32, 48, 64, 96)


class Call(NamedTuple):
    """What launches kernels.

    label: tells it from the operator's other calls; run: takes a dtype, and what makes tensors on the device "meta".
    """

    label: str
    run: Callable[[torch.dtype], object]
    dtypes: tuple[str, ...] = ("bf16",)
    architectures: tuple[int, ...] = (90,)


def calls() -> Iterator[Call]:
    """Every kernel and every configuration of it."""
    yield from gate_calls()
    yield from gated_conv_calls()
    yield Call("", transposed_weight, ("bf16",), EVERYWHERE)
    yield Call("", transposed_weight, ("fp16", "fp32"))
    yield from region_keyword_calls()
    yield Call("", contrastive, ("fp32",), EVERYWHERE)
    yield from modulated_gate_calls()
    yield from leaky_shortcut_calls()


def images(dtype: torch.dtype, channels: int, side: int = 64, batch: int = 33, channels_last: bool = True) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(batch, channels, side, side, dtype=dtype, device="meta", memory_format=memory_format)


def gate_calls() -> Iterator[Call]:
    """All activations; each other dtype, architecture, width, layout and alignment with one."""

    def run(dtype: torch.dtype, channels: int = 64, activation: str = "silu", **layout: Any) -> None:
        pre, own = images(dtype, 2 * channels, **{"side": 1024, **layout}), (activation, 0.2)
        dy = gate.forward(pre, *own)
        gate.backward(dy, pre, *own)
        gate.backward_backward(pre, dy, pre, *own)

    for activation in ACTIVATIONS:
        yield Call(f"{activation} of 64 channels", partial(run, activation=activation))
    for channels in (24, 64):
        leaky = partial(run, channels=channels, activation="leaky_relu")
        yield Call(f"leaky_relu of {channels} channels", leaky, ("fp16", "fp32"))
        yield Call(f"silu of {channels} channels", partial(run, channels=channels), architectures=EVERYWHERE)
    for channels in (1, 9, 96):
        yield Call(f"silu of {channels} channels", partial(run, channels=channels))
    planar = {"NCHW": {}, "NCHW, unaligned": {"side": 255}, "NCHW, far apart": {"side": 4111, "batch": 3}}
    for label, layout in planar.items():
        yield Call(f"silu of 64 channels, {label}", partial(run, channels_last=False, **layout))


def gated_conv_calls() -> Iterator[Call]:
    """Every tile that fits, for every architecture; 3x3 with pre kept, upsampling, and 1x1 for inference.

    And every tile for sm_90 with all else that a call may ask for.
    """

    def run(
        dtype: torch.dtype,
        config: Config,
        taps: int = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: str = "leaky_relu",
        keep_pre: bool = True,
        precision: str = "tf32",
        channels: int = 64,
        **layout: Any,
    ) -> None:
        x, bias = images(dtype, channels, **layout), torch.empty(2 * channels, dtype=dtype, device="meta")
        weight = bias.new_empty(2 * channels, channels, taps, taps)
        strides, pads, dilations = ((n, n) for n in (stride, taps // 2 * dilation, dilation))
        with patch.object(gated_conv, "convolution_precision", lambda: precision):
            gated_conv.forward(x, weight, bias, strides, pads, dilations, activation, 0.2, config, keep_pre)

    def upsample(dtype: torch.dtype, config: Config, channels: int = 64) -> None:
        x, bias = images(dtype, channels), torch.empty(2 * channels, dtype=dtype, device="meta")
        packed = bias.new_empty(4, 2, 2, channels, channels, 2)
        gated_conv.upsample_forward(x, packed, bias, "leaky_relu", 0.2, config, True)

    for config in CONFIGS:
        tile, fits = partial(run, config=config), {}
        for dtype in ("bf16", "fp32"):
            needed = config.shared_memory(2 if dtype == "bf16" else 4)
            fits[dtype] = tuple(sm for sm, limit in SHARED_MEMORY.items() if needed <= limit)
            yield Call(f"3x3 {config.name}", tile, (dtype,), fits[dtype])
        yield Call(f"upsampling {config.name}", partial(upsample, config=config), architectures=EVERYWHERE)
        yield Call(f"upsampling {config.name} C=24", partial(upsample, config=config, channels=24))
        yield Call(f"1x1 inference {config.name}", partial(tile, taps=1, keep_pre=False), ("fp16",))
        for channels in WIDTHS:
            yield Call(f"3x3 {config.name} C={channels}", partial(tile, channels=channels))
        asked: dict[str, dict[str, Any]] = {
            "stride 2": {"stride": 2},
            "dilation 2": {"dilation": 2},
            "in 64 bits": {"side": 5808, "batch": 2},
            "odd sizes": {"side": 63},
        }
        if config.any_layout:
            asked |= {"NCHW": {"channels_last": False}, "NCHW, odd sizes": {"channels_last": False, "side": 63}}
            asked |= {"unaligned": {"channels": 63, "side": 63}}
            asked |= {activation: {"activation": activation} for activation in ACTIVATIONS}
        for label, changes in asked.items():
            yield Call(f"3x3 {label} {config.name}", partial(tile, **changes))
        if 90 in fits["fp32"]:
            yield Call(f"3x3 ieee {config.name}", partial(tile, precision="ieee"), ("fp32",))


def transposed_weight(dtype: torch.dtype) -> None:
    """At channels of which a tile is not full."""
    weight = torch.empty(48, 96, 3, 3, dtype=dtype, device="meta", memory_format=torch.channels_last)
    transposed.packed_phases(weight)
    transposed.backward(transposed.forward(weight), weight)


def region_keyword_calls() -> Iterator[Call]:
    """Both passes for feature sizes, captions, dtypes and architectures, of so many images that there are groups."""

    def run(dtype: torch.dtype, variant: str, words: int, features: int) -> None:
        # The rows of every tensor begin at multiples of 16 bytes, though their number is no multiple of 16.
        captions = 12
        count = region_keyword.WORKSPACE // (captions * words * features * dtype.itemsize) | 1
        regions = torch.empty(count, 65, features, dtype=dtype, device="meta")
        keywords, mask = regions.new_empty(captions, words, features), torch.empty(captions, words, device="meta")
        scores, statistics, given = region_keyword.forward(regions, keywords, mask.bool(), variant, 4.0, 5.0)
        given = (regions, keywords, scores, statistics, given)
        region_keyword.backward(scores, *given, variant, 4.0, 5.0, True, True)

    both: list[tuple[int, tuple[str, ...], tuple[int, ...]]] = [
        (32, ("bf16",), EVERYWHERE),
        (32, ("fp32",), (90,)),
        (256, ("bf16", "fp32"), EVERYWHERE),
        (256, ("fp16",), (90,)),
        (768, ("bf16",), EVERYWHERE),
    ]
    more = [(features, ("bf16",), (90,)) for features in (16, 128, 384)]
    for variant, words, asked in (("xmc", 13, [*both, *more, (768, ("fp16", "fp32"), (90,))]), ("damsm", 29, both)):
        for features, dtypes, architectures in asked:
            passes = partial(run, variant=variant, words=words, features=features)
            yield Call(f"{variant} D={features}", passes, dtypes, architectures)
    long = partial(run, variant="damsm", words=125, features=256)  # a tile of a long caption's own size
    yield Call("damsm D=256 captions of 128", long, ("bf16", "fp32"))


def contrastive(dtype: torch.dtype) -> None:
    """Of features and logits in float32."""
    x, logits = torch.empty(33, 256, dtype=dtype, device="meta"), torch.empty(33, 33, dtype=dtype, device="meta")
    y, norms = contrastive_loss.normalize(x, 1e-12)
    contrastive_loss.normalize_backward(y, y, norms)
    loss, lse = contrastive_loss.forward(logits, logits.bool())
    contrastive_loss.backward(loss, logits, logits.bool(), lse)


def by_width(run: Callable[..., object], label: str, **own: Any) -> Iterator[Call]:
    """A kernel that knows its channels: at every width in bfloat16; for other architectures and dtypes with one."""
    for width in WIDTHS:
        architectures = EVERYWHERE if width == 64 else (90,)
        yield Call(f"{label} C={width}", partial(run, width=width, **own), architectures=architectures)
    yield Call(f"{label} C=24", partial(run, width=24, **own), ("fp16", "fp32"))
    yield Call(f"{label} C=6", partial(run, width=6, **own))


def modulated_gate_calls() -> Iterator[Call]:
    """Both passes at every width, and all activations with one; and those of blocks, whose gates pass no gradient of a
    residual on, but add a second one."""

    def given(dtype: torch.dtype, width: int) -> tuple[Tensor, ...]:
        # Narrow layers have the largest images, of which a program takes more.
        pre, residual = (images(dtype, n * width, side=256 if width < 48 else 64) for n in (2, 1))
        # As one product for all blocks of a generator gives them.
        scale, shift = torch.empty(len(pre), 4 * width, dtype=dtype, device="meta").split([width, 3 * width], dim=1)
        return pre, scale.new_empty(2 * width), scale, shift[:, :width], residual

    def run(dtype: torch.dtype, width: int, activation: str) -> None:
        pre, bias, scale, shift, residual = given(dtype, width)
        own = 0.5, activation, 0.2
        dy, _ = modulated_gate.forward(pre, bias, scale, shift, residual, *own)
        modulated_gate.backward(dy, None, None, pre, bias, scale, True, *own)

    def block(dtype: torch.dtype, width: int, output_slope: float) -> None:
        pre, bias, scale, shift, residual = given(dtype, width)
        own = 0.5, "leaky_relu", 0.2, output_slope
        y, signs = modulated_gate.forward(pre, bias, scale, shift, residual, *own)
        for more in (None, y):
            modulated_gate.backward(y, signs if signs.numel() else None, more, pre, bias, scale, False, *own)

    yield from by_width(run, "leaky_relu", activation="leaky_relu")
    for activation in ACTIVATIONS:
        yield Call(f"{activation} C=64", partial(run, width=64, activation=activation))
    yield Call("silu C=24", partial(run, width=24, activation="silu"), ("fp16", "fp32"))
    yield Call("silu C=6", partial(run, width=6, activation="silu"))
    yield from by_width(block, "last block", output_slope=0.2)
    yield Call("block C=48", partial(block, width=48, output_slope=1.0))


def leaky_shortcut_calls() -> Iterator[Call]:
    """Both passes and the derivative at every width, and with less behind the convolution at one."""

    def run(dtype: torch.dtype, width: int, shortcut: bool, pool: bool) -> None:
        pre, bias = images(dtype, width), torch.empty(width, dtype=dtype, device="meta")
        given = (pre, bias, *((pre, bias) if shortcut else (None, None)))
        y, pooled, signs = leaky_shortcut.forward(*given, 0.5, 0.2, pool)
        leaky_shortcut.backward(y, pooled if pool else None, signs, shortcut, True, 0.5, 0.2)
        leaky_shortcut.tangent(*given, signs, 0.5, 0.2, pool)

    yield from by_width(run, "block", shortcut=True, pool=True)
    for label, shortcut, pool in (("plain", False, False), ("pooled", False, True), ("shortcut", True, False)):
        yield Call(f"{label} C=48", partial(run, width=48, shortcut=shortcut, pool=pool))
