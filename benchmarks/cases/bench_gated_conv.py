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
from _pytest.mark import ParameterSet
from torch import Tensor

from benchmarks.harness import roofline
from benchmarks.harness.operator_case import OperatorCase, compare_operator
from benchmarks.harness.result import Series
from benchmarks.harness.suite import Suite
from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.ops import gate, gated_conv2d, upsample_gated_conv2d

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: What training computes in on a device.
TRAINED_IN = {"cpu": "fp32", "cuda": "bf16"}


class Shape(NamedTuple):
    """Of a layer's input, and its output channels."""

    batch: int
    channels: int
    out: int
    size: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.size}x{self.size} to {self.out}"


#: The demo's and the 64 px preset's layers, and those of a larger generator; on a GPU, layers of a 256 px generator at
#: the batch of AttnGAN's and DF-GAN's training.
UPSAMPLING = {
    "cpu": [Shape(16, 128, 64, 16), Shape(16, 64, 64, 32), Shape(8, 256, 128, 16), Shape(16, 64, 32, 64)],
    "cuda": [Shape(32, 128, 64, 128), Shape(32, 256, 128, 64), Shape(32, 512, 256, 32), Shape(32, 64, 32, 128)],
}
PLAIN = {
    "cpu": [Shape(16, 64, 64, 32), Shape(16, 32, 32, 64), Shape(8, 128, 128, 16)],
    "cuda": [Shape(32, 64, 64, 256), Shape(32, 128, 128, 128), Shape(32, 256, 256, 64), Shape(32, 32, 32, 256)],
}
#: Image sizes of the growth curve.
SIZES = {"cpu": (16, 32, 64), "cuda": (64, 128, 256)}


def call(device: str, shape: Shape, dtype: str, importance: int, *marks: Any, **options: Any) -> ParameterSet:
    """A case of one device; options: of `compare`."""
    label = "-".join([device, str(shape), dtype, *(f"{name} {value}" for name, value in options.items())])
    marks = (pytest.mark.on(device), pytest.mark.importance(importance), *marks)
    return pytest.param(shape, dtype, options, id=label, marks=marks)


def glu_after_upsampling(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """An up-block of AttnGAN without its normalisation."""
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.glu(F.conv2d(upsampled, weight, bias, padding=1), dim=1)


UPSAMPLING_CALLS = [
    *(call("cpu", shape, "fp32", 9, headline=True) for shape in UPSAMPLING["cpu"]),
    *(call("cpu", shape, "bf16", 6, headline=shape == UPSAMPLING["cpu"][0]) for shape in UPSAMPLING["cpu"]),
    *(call("cuda", shape, "bf16", 9, headline=shape == UPSAMPLING["cuda"][0]) for shape in UPSAMPLING["cuda"]),
    *(call("cuda", shape, "fp32", 3) for shape in UPSAMPLING["cuda"]),
    *(call(device, shapes[0], TRAINED_IN[device], 7, activation="identity") for device, shapes in UPSAMPLING.items()),
    call("cpu", UPSAMPLING["cpu"][1], "fp32", 7, pytest.mark.quick, training=False, headline=True),
    call("cuda", UPSAMPLING["cuda"][0], "bf16", 7, training=False, headline=True),
]
PLAIN_CALLS = [
    call("cpu", PLAIN["cpu"][0], "fp32", 8, pytest.mark.quick, headline=True),
    *(call("cpu", shape, "fp32", 8) for shape in PLAIN["cpu"][1:]),
    *(call("cuda", shape, "bf16", 8, headline=shape == PLAIN["cuda"][0]) for shape in PLAIN["cuda"]),
    *(call("cuda", shape, "fp32", 3) for shape in PLAIN["cuda"]),
    *(
        call(device, shapes[0], dtype, 5, kernel=kernel, stride=stride)
        for device, shapes in PLAIN.items()
        for kernel, stride in ((1, 1), (3, 2))
        for dtype in DTYPES
    ),
    *(
        call(device, shapes[0], TRAINED_IN[device], 7, training=False, headline=True)
        for device, shapes in PLAIN.items()
    ),
]


def randn(suite: Suite, *shape: int, dtype: str, scale: float = 1.0, training: bool = True) -> Tensor:
    x = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
    x = x.to(suite.device, DTYPES[dtype])
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_(training)


def compare(
    suite: Suite,
    shape: Shape,
    dtype: str,
    *,
    upsampling: bool = False,
    activation: str = "leaky_relu",
    kernel: int = 3,
    stride: int = 1,
    training: bool = True,
    **more: Any,
) -> None:
    """Compare an operator of input, weight and bias; more: other fields of the case."""
    if dtype == "bf16" and not multiplies_bf16(suite.device):
        pytest.skip("this processor has no instructions for bfloat16, and takes seconds for each convolution")
    make = partial(randn, suite, dtype=dtype, training=training)
    x = make(shape.batch, shape.channels, shape.size, shape.size)
    weight = make(2 * shape.out, shape.channels, kernel, kernel, scale=1 / (kernel * shape.channels**0.5))
    if upsampling:
        op, name, case = upsample_gated_conv2d, "upsample_gated_conv2d", str(shape)
        # Of the nine taps of the upsampled image, those that see the same pixel are one: 2x2.
        size, taps = 2 * shape.size, 4
    else:
        op, name = partial(gated_conv2d, padding=kernel // 2, stride=stride), "gated_conv2d"
        case = f"{shape}, {kernel}x{kernel}{f', stride {stride}' * (stride > 1)}"
        size, taps = shape.size // stride, kernel**2
    if activation == "identity":  # as AttnGAN gates
        case, more = f"{case}, identity", {**more, "peers": {"GLU after upsampling": glu_after_upsampling}}
    outputs, products = shape.batch * shape.out * size**2, taps * shape.channels
    work = roofline.of_gated_convolution(x.numel(), weight.numel(), outputs, products, x.element_size(), training)
    arguments, op = (x, weight, make(2 * shape.out)), partial(op, activation=activation)
    compare_operator(suite, OperatorCase(name, case, op, arguments, training, work, images=shape.batch, **more))


@pytest.mark.parametrize(("shape", "dtype", "options"), UPSAMPLING_CALLS)
def test_upsampling(benchmark: Suite, shape: Shape, dtype: str, options: dict[str, Any]) -> None:
    compare(benchmark, shape, dtype, upsampling=True, **options)


@pytest.mark.parametrize(("shape", "dtype", "options"), PLAIN_CALLS)
def test_gated_conv2d(benchmark: Suite, shape: Shape, dtype: str, options: dict[str, Any]) -> None:
    compare(benchmark, shape, dtype, **options)


@pytest.mark.importance(4)
@pytest.mark.parametrize("place", range(3))
def test_gated_conv2d_by_resolution(benchmark: Suite, place: int) -> None:
    size = SIZES[benchmark.device.type][place]
    series = Series("gated_conv2d over the resolution", "pixels", size)
    compare(benchmark, Shape(16, 48, 48, size), TRAINED_IN[benchmark.device.type], series=series)


def compare_gate(suite: Suite, batch: int, channels: int, size: int, dtype: str, headline: bool = False) -> None:
    pre = randn(suite, batch, channels, size, size, dtype=dtype)
    work = roofline.of_gate(pre.numel() // 2, pre.element_size(), training=True)
    name = f"{batch}x{channels}x{size}x{size}"
    compare_operator(suite, OperatorCase("gate", name, gate, (pre,), True, work, images=batch, headline=headline))


@pytest.mark.importance(8)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", range(2))
def test_gate(benchmark: Suite, place: int, dtype: str) -> None:
    shape = PLAIN[benchmark.device.type][place]
    compare_gate(benchmark, shape.batch, 2 * shape.out, shape.size, dtype, headline=place == 0)


@pytest.mark.importance(5)
@pytest.mark.quick
def test_gate_of_odd_channels(benchmark: Suite) -> None:
    """Rows of channels that are no multiple of a vector, as pruned networks have them."""
    compare_gate(benchmark, *((32, 102, 128) if benchmark.on_cuda else (16, 102, 48)), "fp32")
