"""The gate and the gated convolutions, forward and backward, and forward alone.

The upsampling operator's definition is a convolution of the upsampled image, as peers write it; AttnGAN and its
followers gate it without an activation, by `torch.nn.functional.glu`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conftest import Suite
from benchmarks.harness import roofline as floors
from benchmarks.harness.operator_case import OperatorCase, Run
from benchmarks.harness.result import Series
from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.ops import gate, gated_conv2d, upsample_gated_conv2d

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Shape(NamedTuple):
    """Of a layer's input, and the channels that it puts out."""

    batch: int
    channels: int
    out: int
    size: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.size}x{self.size} to {self.out}"


#: The demo's and the 64 px preset's layers, and those of a larger generator.
UPSAMPLING = [Shape(16, 128, 64, 16), Shape(16, 64, 64, 32), Shape(8, 256, 128, 16), Shape(16, 64, 32, 64)]
PLAIN = [Shape(16, 64, 64, 32), Shape(16, 32, 32, 64), Shape(8, 128, 128, 16)]
#: Layers of a 256 px generator, at the batch of AttnGAN's and DF-GAN's training.
UPSAMPLING_CUDA = [Shape(32, 128, 64, 128), Shape(32, 256, 128, 64), Shape(32, 512, 256, 32), Shape(32, 64, 32, 128)]
PLAIN_CUDA = [Shape(32, 64, 64, 256), Shape(32, 128, 128, 128), Shape(32, 256, 256, 64), Shape(32, 32, 32, 256)]
#: By how large the image is, a layer's time grows.
SIZES = (16, 32, 64)
SIZES_CUDA = (64, 128, 256)


def glu_after_upsampling(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """An up-block of AttnGAN without its normalisation."""
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.glu(F.conv2d(upsampled, weight, bias, padding=1), dim=1)


def draw(*shape: int, device: torch.device, dtype: torch.dtype, scale: float = 1.0, training: bool = True) -> Tensor:
    x = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
    x = x.to(device, dtype)
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_(training)


def skip_emulated(suite: Suite, dtype: str) -> None:
    """Convolutions in half precision take seconds each where a processor has no instructions for it."""
    if dtype == "bf16" and not multiplies_bf16(suite.device):
        pytest.skip("this processor has no instructions for bfloat16")


def layer(shape: Shape, kernel: int, device: torch.device, dtype: torch.dtype, training: bool) -> tuple[Tensor, ...]:
    """Input, weight and bias."""
    make = partial(draw, device=device, dtype=dtype, training=training)
    return (
        make(shape.batch, shape.channels, shape.size, shape.size),
        make(2 * shape.out, shape.channels, kernel, kernel, scale=1 / (kernel * shape.channels**0.5)),
        make(2 * shape.out),
    )


def upsampling(
    suite: Suite,
    shape: Shape,
    dtype: str,
    training: bool = True,
    *,
    op: Run = upsample_gated_conv2d,
    peers: dict[str, Run] | None = None,
    note: str = "",
    headline: bool = False,
) -> None:
    skip_emulated(suite, dtype)
    arguments = layer(shape, 3, suite.device, DTYPES[dtype], training)
    x, weight, _ = arguments
    outputs = shape.batch * shape.out * (2 * shape.size) ** 2
    # Of the nine taps of the upsampled image, those that see the same pixel are one: 2x2.
    work = floors.of_gated_convolution(
        x.numel(), weight.numel(), outputs, 4 * shape.channels, x.element_size(), training
    )
    suite.compete(
        OperatorCase(
            "upsample_gated_conv2d",
            f"{shape}{note}",
            op,
            arguments,
            training,
            work,
            peers=peers,
            images=shape.batch,
            headline=headline,
        )
    )


def gated(
    suite: Suite,
    shape: Shape,
    dtype: str,
    training: bool = True,
    *,
    kernel: int = 3,
    stride: int = 1,
    headline: bool = False,
    series: Series | None = None,
) -> None:
    skip_emulated(suite, dtype)
    arguments = layer(shape, kernel, suite.device, DTYPES[dtype], training)
    x, weight, _ = arguments
    outputs = shape.batch * shape.out * (shape.size // stride) ** 2
    work = floors.of_gated_convolution(
        x.numel(), weight.numel(), outputs, shape.channels * kernel**2, x.element_size(), training
    )
    suite.compete(
        OperatorCase(
            "gated_conv2d",
            f"{shape}, {kernel}x{kernel}{f', stride {stride}' * (stride > 1)}",
            partial(gated_conv2d, padding=kernel // 2, stride=stride),
            arguments,
            training,
            work,
            images=shape.batch,
            headline=headline,
            series=series,
        )
    )


@pytest.mark.importance(9)
@pytest.mark.on("cpu")
@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.importance(6))])
@pytest.mark.parametrize("shape", UPSAMPLING, ids=str)
def test_upsampling(suite: Suite, shape: Shape, dtype: str) -> None:
    upsampling(suite, shape, dtype, headline=dtype == "fp32" or shape == UPSAMPLING[0])


@pytest.mark.importance(9)
@pytest.mark.on("cuda")
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.importance(3))])
@pytest.mark.parametrize("shape", UPSAMPLING_CUDA, ids=str)
def test_upsampling_on_a_gpu(suite: Suite, shape: Shape, dtype: str) -> None:
    upsampling(suite, shape, dtype, headline=dtype == "bf16" and shape == UPSAMPLING_CUDA[0])


@pytest.mark.importance(7)
def test_upsampling_as_attngan_gates_it(suite: Suite) -> None:
    shape, dtype = (UPSAMPLING_CUDA[0], "bf16") if suite.on_cuda else (UPSAMPLING[0], "fp32")
    upsampling(
        suite,
        shape,
        dtype,
        op=partial(upsample_gated_conv2d, activation="identity"),
        peers={"GLU after upsampling": glu_after_upsampling},
        note=", identity",
    )


@pytest.mark.importance(7)
@pytest.mark.quick
def test_upsampling_inference(suite: Suite) -> None:
    shape, dtype = (UPSAMPLING_CUDA[0], "bf16") if suite.on_cuda else (UPSAMPLING[1], "fp32")
    upsampling(suite, shape, dtype, training=False, headline=True)


@pytest.mark.importance(8)
@pytest.mark.on("cpu")
@pytest.mark.parametrize("shape", [pytest.param(PLAIN[0], marks=pytest.mark.quick), *PLAIN[1:]], ids=str)
def test_gated_conv2d(suite: Suite, shape: Shape) -> None:
    gated(suite, shape, "fp32", headline=shape == PLAIN[0])


@pytest.mark.importance(8)
@pytest.mark.on("cuda")
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.importance(3))])
@pytest.mark.parametrize("shape", PLAIN_CUDA, ids=str)
def test_gated_conv2d_on_a_gpu(suite: Suite, shape: Shape, dtype: str) -> None:
    gated(suite, shape, dtype, headline=dtype == "bf16" and shape == PLAIN_CUDA[0])


@pytest.mark.importance(5)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2)])
def test_gated_conv2d_other_kernels(suite: Suite, kernel: int, stride: int, dtype: str) -> None:
    gated(suite, (PLAIN_CUDA if suite.on_cuda else PLAIN)[0], dtype, kernel=kernel, stride=stride)


@pytest.mark.importance(7)
def test_gated_conv2d_inference(suite: Suite) -> None:
    shape, dtype = (PLAIN_CUDA[0], "bf16") if suite.on_cuda else (PLAIN[0], "fp32")
    gated(suite, shape, dtype, training=False, headline=True)


@pytest.mark.importance(4)
@pytest.mark.parametrize("place", range(len(SIZES)))
def test_gated_conv2d_by_resolution(suite: Suite, place: int) -> None:
    size = (SIZES_CUDA if suite.on_cuda else SIZES)[place]
    gated(
        suite,
        Shape(16, 48, 48, size),
        "bf16" if suite.on_cuda else "fp32",
        series=Series("gated_conv2d over the resolution", "pixels", size),
    )


@pytest.mark.importance(8)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", range(2))
def test_gate(suite: Suite, place: int, dtype: str) -> None:
    shape = (PLAIN_CUDA if suite.on_cuda else PLAIN)[place]
    pre = draw(shape.batch, 2 * shape.out, shape.size, shape.size, device=suite.device, dtype=DTYPES[dtype])
    work = floors.of_gate(pre.numel() // 2, pre.element_size(), training=True)
    case = f"{shape.batch}x{2 * shape.out}x{shape.size}x{shape.size}"
    suite.compete(OperatorCase("gate", case, gate, (pre,), True, work, images=shape.batch, headline=place == 0))


@pytest.mark.importance(5)
@pytest.mark.quick
def test_gate_of_odd_channels(suite: Suite) -> None:
    """Rows of channels that are no multiple of a vector, as pruned networks have them."""
    batch, size = (32, 128) if suite.on_cuda else (16, 48)
    pre = draw(batch, 2 * 51, size, size, device=suite.device, dtype=torch.float32)
    work = floors.of_gate(pre.numel() // 2, pre.element_size(), training=True)
    suite.compete(OperatorCase("gate", f"{batch}x102x{size}x{size}", gate, (pre,), True, work, images=batch))
