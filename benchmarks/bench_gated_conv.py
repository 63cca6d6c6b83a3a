"""Gated convolutions and the gate, forward and backward, beside the definition in PyTorch.

    python -m pytest benchmarks/bench_gated_conv.py --benchmark-only -s

The upsampling operator's definition is a convolution of the upsampled image, as peers write it. What is compared is
checked against the definition in float64 first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.turns import in_turns
from fastt2i.ops import gate, gated_conv2d, upsample_gated_conv2d
from fastt2i.ops.agreement import BOUNDS, relative_error

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Batch, channels in and out, height and width of the input.
UPSAMPLING = [(16, 128, 64, 16), (16, 64, 64, 32), (8, 256, 128, 16), (16, 64, 32, 64), (32, 64, 32, 8)]
PLAIN = [(16, 64, 64, 32), (16, 32, 32, 64), (8, 128, 128, 16), (32, 64, 64, 8), (32, 24, 24, 32)]
Run = Callable[..., Tensor]


def both_ways(run: Run, inputs: list[Tensor]) -> list[Tensor]:
    """The result and the gradients of a fixed weighting of it."""
    y = run(*inputs)
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).to(y.dtype).view(y.shape)
    return [y, *torch.autograd.grad(y, inputs, weights)]


def compare(benchmark: Any, op: Run, inputs: list[Tensor]) -> None:
    ours, reference = op, partial(op, impl="reference")
    smooth = {"activation": "silu"}  # at a kink, rounding may choose its side
    exact = both_ways(partial(reference, **smooth), [t.detach().double().requires_grad_() for t in inputs])
    found, usual = (both_ways(partial(run, **smooth), inputs) for run in (ours, reference))
    for mine, its, right in zip(found, usual, exact, strict=True):
        # Gradients of weights add up many roundings: the definition's own error counts where it is the larger.
        assert relative_error(mine, right) <= max(BOUNDS[mine.dtype], 2 * relative_error(its, right))

    def leave(run: Run) -> None:
        both_ways(run, inputs)

    in_turns(benchmark, {"reference": partial(leave, reference), "ours": partial(leave, ours)}, rounds=21)


def draw(*shape: int, device: torch.device, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    x = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
    x = x.to(device, dtype)
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_()


def layer(shape: tuple[int, int, int, int], kernel: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    batch, channels, out, size = shape
    return [
        draw(batch, channels, size, size, device=device, dtype=dtype),
        draw(2 * out, channels, kernel, kernel, device=device, dtype=dtype, scale=1 / (kernel * channels**0.5)),
        draw(2 * out, device=device, dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", UPSAMPLING, ids=str)
def test_upsampling(benchmark: Any, shape: tuple[int, int, int, int], dtype: str, device: torch.device) -> None:
    benchmark.group = f"upsample_gated_conv2d {shape} {dtype}, forward and backward"
    compare(benchmark, upsample_gated_conv2d, layer(shape, 3, device, DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_gated_conv2d(
    benchmark: Any, shape: tuple[int, int, int, int], kernel: int, stride: int, dtype: str, device: torch.device
) -> None:
    benchmark.group = f"gated_conv2d {shape} {kernel}x{kernel} stride {stride} {dtype}, forward and backward"
    op = partial(gated_conv2d, padding=kernel // 2, stride=stride)
    compare(benchmark, op, layer(shape, kernel, device, DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_gate(benchmark: Any, shape: tuple[int, int, int, int], dtype: str, device: torch.device) -> None:
    batch, _, out, size = shape
    benchmark.group = f"gate {shape} {dtype}, forward and backward"
    compare(benchmark, gate, [draw(batch, 2 * out, size, size, device=device, dtype=DTYPES[dtype])])
