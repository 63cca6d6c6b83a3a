"""The gate and the gated convolutions, forward and backward, and forward alone.

The upsampling operator's definition is a convolution of the upsampled image, as peers write it; AttnGAN and its
followers gate it without an activation, by `torch.nn.functional.glu`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import roofline
from benchmarks.harness.operator_case import Operator, OperatorCase, compare_operator
from benchmarks.harness.result import Series
from benchmarks.harness.suite import Suite
from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.ops import gate, gated_conv2d, upsample_gated_conv2d

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Shape(NamedTuple):
    """Of a layer's input, and its output channels."""

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
#: Image sizes of the growth curve.
SIZES, SIZES_CUDA = (16, 32, 64), (64, 128, 256)


def glu_after_upsampling(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """An up-block of AttnGAN without its normalisation."""
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.glu(F.conv2d(upsampled, weight, bias, padding=1), dim=1)


def randn(suite: Suite, *shape: int, dtype: torch.dtype, scale: float = 1.0, training: bool = True) -> Tensor:
    x = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
    x = x.to(suite.device, dtype)
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_(training)


def compare(
    suite: Suite,
    shape: Shape,
    dtype: str,
    training: bool = True,
    *,
    op: Operator = gated_conv2d,
    kernel: int = 3,
    stride: int = 1,
    upsampling: bool = False,
    note: str = "",
    **more: Any,
) -> None:
    """Compare an operator of input, weight and bias; `note`: what else tells the case; `more`: its other fields."""
    if dtype == "bf16" and not multiplies_bf16(suite.device):
        pytest.skip("this processor has no instructions for bfloat16, and takes seconds for each convolution")
    make = partial(randn, suite, dtype=DTYPES[dtype], training=training)
    x = make(shape.batch, shape.channels, shape.size, shape.size)
    weight = make(2 * shape.out, shape.channels, kernel, kernel, scale=1 / (kernel * shape.channels**0.5))
    outputs = shape.batch * shape.out * (2 * shape.size if upsampling else shape.size // stride) ** 2
    # Of the nine taps of the upsampled image, those that see the same pixel are one: 2x2.
    taps = shape.channels * (4 if upsampling else kernel**2)
    work = roofline.of_gated_convolution(x.numel(), weight.numel(), outputs, taps, x.element_size(), training)
    name, case = "upsample_gated_conv2d" if upsampling else "gated_conv2d", f"{shape}{note}"
    arguments = (x, weight, make(2 * shape.out))
    compare_operator(suite, OperatorCase(name, case, op, arguments, training, work, images=shape.batch, **more))


compare_upsampling = partial(compare, op=upsample_gated_conv2d, upsampling=True)


def compare_plain(
    suite: Suite, shape: Shape, dtype: str, training: bool = True, kernel: int = 3, stride: int = 1, **more: Any
) -> None:
    op = partial(gated_conv2d, padding=kernel // 2, stride=stride)
    note = f", {kernel}x{kernel}{f', stride {stride}' * (stride > 1)}"
    compare(suite, shape, dtype, training, op=op, kernel=kernel, stride=stride, note=note, **more)


@pytest.mark.importance(9)
@pytest.mark.on("cpu")
@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.importance(6))])
@pytest.mark.parametrize("shape", UPSAMPLING, ids=str)
def test_upsampling(benchmark: Suite, shape: Shape, dtype: str) -> None:
    compare_upsampling(benchmark, shape, dtype, headline=dtype == "fp32" or shape == UPSAMPLING[0])


@pytest.mark.importance(9)
@pytest.mark.on("cuda")
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.importance(3))])
@pytest.mark.parametrize("shape", UPSAMPLING_CUDA, ids=str)
def test_upsampling_on_a_gpu(benchmark: Suite, shape: Shape, dtype: str) -> None:
    compare_upsampling(benchmark, shape, dtype, headline=dtype == "bf16" and shape == UPSAMPLING_CUDA[0])


@pytest.mark.importance(7)
def test_upsampling_as_attngan_gates_it(benchmark: Suite) -> None:
    shape, dtype = (UPSAMPLING_CUDA[0], "bf16") if benchmark.on_cuda else (UPSAMPLING[0], "fp32")
    op, peers = partial(upsample_gated_conv2d, activation="identity"), {"GLU after upsampling": glu_after_upsampling}
    compare_upsampling(benchmark, shape, dtype, op=op, peers=peers, note=", identity")


@pytest.mark.importance(7)
@pytest.mark.quick
def test_upsampling_inference(benchmark: Suite) -> None:
    shape, dtype = (UPSAMPLING_CUDA[0], "bf16") if benchmark.on_cuda else (UPSAMPLING[1], "fp32")
    compare_upsampling(benchmark, shape, dtype, training=False, headline=True)


@pytest.mark.importance(8)
@pytest.mark.on("cpu")
@pytest.mark.parametrize("shape", [pytest.param(PLAIN[0], marks=pytest.mark.quick), *PLAIN[1:]], ids=str)
def test_gated_conv2d(benchmark: Suite, shape: Shape) -> None:
    compare_plain(benchmark, shape, "fp32", headline=shape == PLAIN[0])


@pytest.mark.importance(8)
@pytest.mark.on("cuda")
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.importance(3))])
@pytest.mark.parametrize("shape", PLAIN_CUDA, ids=str)
def test_gated_conv2d_on_a_gpu(benchmark: Suite, shape: Shape, dtype: str) -> None:
    compare_plain(benchmark, shape, dtype, headline=dtype == "bf16" and shape == PLAIN_CUDA[0])


@pytest.mark.importance(5)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2)])
def test_gated_conv2d_other_kernels(benchmark: Suite, kernel: int, stride: int, dtype: str) -> None:
    compare_plain(benchmark, (PLAIN_CUDA if benchmark.on_cuda else PLAIN)[0], dtype, kernel=kernel, stride=stride)


@pytest.mark.importance(7)
def test_gated_conv2d_inference(benchmark: Suite) -> None:
    shape, dtype = (PLAIN_CUDA[0], "bf16") if benchmark.on_cuda else (PLAIN[0], "fp32")
    compare_plain(benchmark, shape, dtype, training=False, headline=True)


@pytest.mark.importance(4)
@pytest.mark.parametrize("place", range(len(SIZES)))
def test_gated_conv2d_by_resolution(benchmark: Suite, place: int) -> None:
    size = (SIZES_CUDA if benchmark.on_cuda else SIZES)[place]
    series = Series("gated_conv2d over the resolution", "pixels", size)
    compare_plain(benchmark, Shape(16, 48, 48, size), "bf16" if benchmark.on_cuda else "fp32", series=series)


def compare_gate(suite: Suite, batch: int, channels: int, size: int, dtype: str, headline: bool = False) -> None:
    pre = randn(suite, batch, channels, size, size, dtype=DTYPES[dtype])
    work = roofline.of_gate(pre.numel() // 2, pre.element_size(), training=True)
    name = f"{batch}x{channels}x{size}x{size}"
    compare_operator(suite, OperatorCase("gate", name, gate, (pre,), True, work, images=batch, headline=headline))


@pytest.mark.importance(8)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", range(2))
def test_gate(benchmark: Suite, place: int, dtype: str) -> None:
    shape = (PLAIN_CUDA if benchmark.on_cuda else PLAIN)[place]
    compare_gate(benchmark, shape.batch, 2 * shape.out, shape.size, dtype, headline=place == 0)


@pytest.mark.importance(5)
@pytest.mark.quick
def test_gate_of_odd_channels(benchmark: Suite) -> None:
    """Rows of channels that are no multiple of a vector, as pruned networks have them."""
    compare_gate(benchmark, *((32, 102, 128) if benchmark.on_cuda else (16, 102, 48)), "fp32")
