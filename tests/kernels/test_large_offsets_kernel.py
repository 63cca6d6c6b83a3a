"""Offsets that 32 bits do not hold: memory of which next to nothing is touched, and counts that no test could fill."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastt2i.kernels import gate as gate_kernels
from fastt2i.kernels import gated_conv as conv_kernels
from fastt2i.kernels.tiles import CONFIGS
from fastt2i.kernels.transposed_weight import packed_phases
from fastt2i.ops import gate

FAR = 2**30
#: It takes any number of channels.
TILE = next(config for config in CONFIGS if config.any_layout)


def far_apart(x: Tensor, dim: int) -> Tensor:
    """x with 2^30 elements from one index of a dimension to the next; a system gives memory when it is touched."""
    strides = list(x.contiguous().stride())
    strides[dim] = FAR
    # Not by `torch.empty`: tests poison what that gives, and would touch all of it.
    far = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)
    return far.copy_(x)


def draw(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, torch.float16)


def test_a_gate_half_that_lies_far_behind(device: torch.device) -> None:
    pre = draw(1, 4, 2, 3, device=device)
    far = far_apart(pre, 1)  # the gate half begins at 2^31
    inputs = {"dy": draw(1, 2, 2, 3, device=device, seed=1), "ddpre": draw(1, 4, 2, 3, device=device, seed=2)}
    results = []
    for each in (pre, far):
        each, dy = each.detach().requires_grad_(), inputs["dy"].requires_grad_()
        y = gate(each, activation="silu", impl="triton")
        (dpre,) = torch.autograd.grad(y, each, dy, create_graph=True)
        results.append([y, dpre, *torch.autograd.grad(dpre, (dy, each), inputs["ddpre"])])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def gated_conv(x: Tensor, weight: Tensor) -> Tensor:
    ones = (1, 1)
    return conv_kernels.forward(x, weight, None, ones, ones, ones, "silu", 0.2, TILE, keep_pre=False)[0]


def upsampled(x: Tensor, weight: Tensor) -> Tensor:
    return conv_kernels.upsample_forward(x, packed_phases(weight), None, "silu", 0.2, TILE, keep_pre=False)[0]


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
@pytest.mark.parametrize("run", [gated_conv, upsampled])
def test_a_convolution_of_what_lies_scattered(run: Callable[..., Tensor], dim: int, device: torch.device) -> None:
    """Images of one tile, channels, rows or columns are 2^31 elements from each other."""
    x, weight = draw(3, 3, 3, 3, device=device), draw(4, 3, 3, 3, device=device, seed=1) / 5
    assert torch.equal(run(far_apart(x, dim), weight), run(x, weight))


def test_images_of_other_tiles_may_lie_anywhere(device: torch.device) -> None:
    """Only what a program reads has to be counted in 64 bits, which cost registers."""
    far, weight = far_apart(draw(3, 3, 3, 3, device=device), 0), torch.empty(1, 4, 3, 3, 3)
    assert conv_kernels._wide(far, weight, 2) and not conv_kernels._wide(far, weight, 1)


def test_the_gate_of_more_positions_than_32_bits_count(device: torch.device) -> None:
    """The first program of a launch for 2^32 positions: their number must not come out as 0."""
    channels, positions, block = 2, 2**32, 512
    pre = draw(block, 2 * channels, device=device)
    y = torch.full((block, channels), torch.nan, dtype=pre.dtype, device=device)
    gate_kernels.forward_kernel[(1, 1)](
        pre, y, positions // block, positions, *[0] * 6, CHANNELS=channels, ROW=channels, WIDE=False,
        ACTIVATION="silu", NEGATIVE_SLOPE=0.2, BLOCK_P=block, BLOCK_C=channels, **gate_kernels.OPTIONS,
    )  # fmt: skip
    assert torch.equal(y, gate(pre, activation="silu", impl="triton"))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_convolution_to_more_positions_than_32_bits_count(channels_last: bool, device: torch.device) -> None:
    batch, channels, side = 2**20, 2, 2**6
    x, weight = draw(1, 3, side, side, device=device), draw(2 * channels, 3, 1, 1, device=device, seed=1)
    y = torch.full((1, channels, side, side), torch.nan, dtype=x.dtype, device=device)
    if channels_last:
        x, y = (image.to(memory_format=torch.channels_last) for image in (x, y))
    constants = dict.fromkeys(("STRIDE_H", "STRIDE_W", "DILATION_H", "DILATION_W", "KERNEL_H", "KERNEL_W", "PHASES"), 1)
    constants |= dict.fromkeys(("PAD_H", "PAD_W"), 0) | {"IN_CHANNELS": 3, "CHANNELS": channels, "ROWS": channels_last}
    constants |= dict.fromkeys(("BIASED", "KEEP_PRE", "WIDE", "WIDEN"), False)
    conv_kernels.forward_kernel[(1, 1, 1)](
        x, conv_kernels.pack(weight[None]), x, y, y, batch, side, side, side, side, 1,
        *([0] * 12 if channels_last else [*x.stride(), *y.stride(), *y.stride()]), **constants,
        ACTIVATION="silu", NEGATIVE_SLOPE=0.2, PRECISION="ieee",
        BLOCK_P=TILE.positions, BLOCK_C=TILE.channels, BLOCK_K=TILE.depth, num_warps=TILE.num_warps,
    )  # fmt: skip
    expected = conv_kernels.forward(x, weight, None, (1, 1), (0, 0), (1, 1), "silu", 0.2, TILE, keep_pre=False)[0]
    assert torch.equal(y.flatten(2)[..., : TILE.positions], expected.flatten(2)[..., : TILE.positions])
