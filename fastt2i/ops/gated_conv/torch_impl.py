"""The upsampling gated convolution without the upsampled tensor, in PyTorch.

Every output pixel of a 3x3 convolution over a nearest-neighbour 2x upsampling reads a 2x2 neighbourhood of the small
image, and which one depends only on the pixel's phase, (row mod 2, column mod 2). So it is four 2x2 convolutions: 4
multiply-adds for an output instead of 9. The same four make one transposed 4x4 convolution of stride 2.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops.convolution import PIXEL_BY_PIXEL, Steps, conv2d, conv2d_backward
from fastt2i.ops.gate import torch_impl as gate_torch
from fastt2i.ops.numerics import upcast

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


def phase_weights(weight: Tensor) -> Tensor:
    """The four 2x2 kernels of a 3x3 one: (O, I, 3, 3) → (2, 2, O, I, 2, 2), phase rows and columns first.

    Taps are added up in float32 or wider, so that half-precision kernels are rounded once.
    """
    taps = _fold_taps(_fold_taps(upcast(weight), 2), 4)  # (O, I, p, u, q, v)
    return taps.permute(2, 4, 0, 1, 3, 5).contiguous().to(weight.dtype)


def transposed_weight(weight: Tensor) -> Tensor:
    """The kernel of the transposed convolution (stride 2, padding 1): (O, I, 3, 3) → (I, O, 4, 4).

    Output row 2h + p takes pixel u from row h - 1 + p + u, which a transposed convolution reaches by tap 3 - p - 2u.
    """
    # Output channels stay innermost: to turn them round for every tap took longer than a small image's convolution.
    taps = upcast(weight).permute(1, 2, 3, 0).contiguous()  # (I, 3, 3, O)
    for dim in (1, 2):
        first, second, third = taps.unbind(dim)
        taps = torch.stack((third, second + third, first + second, first), dim)
    return taps.to(weight.dtype).permute(0, 3, 1, 2)


def transposed_weight_backward(dtransposed: Tensor) -> Tensor:
    """The gradient of a 3x3 kernel (O, I, 3, 3), given that of its `transposed_weight` (I, O, 4, 4)."""
    taps = upcast(dtransposed).flip(2, 3).unflatten(3, (2, 2)).unflatten(2, (2, 2))  # (I, O, u, p, v, q)
    return _unfold_taps(_unfold_taps(taps, 2), 3).permute(1, 0, 2, 3).contiguous().to(dtransposed.dtype)


def _fold_taps(x: Tensor, dim: int) -> Tensor:
    """The 3 taps of a dimension, summed by the pixel of the small image that they read: (phase, pixel) in its place."""
    # Sums, not a product with a table: to bring a table to a GPU is what no CUDA graph can capture.
    first, second, third = x.unbind(dim)
    return torch.stack((first, second + third, first + second, third), dim).unflatten(dim, (2, 2))


def _unfold_taps(x: Tensor, dim: int) -> Tensor:
    """The transpose of `_fold_taps`: gradients of (pixel, phase), at `dim` and behind it, to those of the 3 taps."""
    (a, c), (b, d) = (pixel.unbind(dim) for pixel in x.unbind(dim))
    return torch.stack((a + c, b + c, b + d), dim)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps) -> Tensor:
    """The convolution of x (B, I, H, W), whose second derivatives are `conv2d`'s in half precision and torch's own in
    float32, where they took a CPU up to a fifth less time.

    In bfloat16 torch's own took a tenth more, and on processors with AMX they are wrong for 2, 4, ... 14 images.
    """
    half = x.dtype in (torch.bfloat16, torch.float16)
    return conv2d(x, weight, bias, steps) if half else F.conv2d(x, weight, bias, *steps)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """The convolution of the upsampled tensor, the fastest form for small images."""
    pre = convolved(_upsample_nearest(x), weight, bias, Steps(padding=(1, 1)))
    return gate_torch.gate(pre, activation, negative_slope)


def _upsample_nearest(x: Tensor) -> Tensor:
    """The nearest-neighbour 2x upsampling."""
    if not torch.compiler.is_compiling():
        return F.interpolate(x, scale_factor=2, mode="nearest")
    # A compiler looks up the index of every pixel of `interpolate`, and its gradient scatters with atomic additions.
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
    return pixels.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def by_phases(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """A 2x2 convolution and its gate for each phase, then their interleaving; the result is channels-last.

    Four convolutions measured faster on a CPU than one with four times the rows.
    """
    kernels = phase_weights(weight)
    parts = _Phases.apply(x, kernels, bias)
    gated = [gate_torch.gate(part, activation, negative_slope) for part in parts]
    # A compiler makes four passes with a condition on every pixel of assignments to some rows and columns.
    return _interleave_by_stack(gated) if torch.compiler.is_compiling() else _Interleave.apply(*gated)


def transposed(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """One transposed convolution, then the gate; the result has the memory format of x."""
    # In float32 on a CPU: without instructions for bfloat16, the second derivative of the bias was off by 1.3e-2.
    dtype = x.dtype
    if x.device.type == "cpu":
        x, weight, bias = upcast(x), upcast(weight), None if bias is None else upcast(bias)
    pre = F.conv_transpose2d(x, transposed_weight(weight), bias, stride=2, padding=1)
    return gate_torch.gate(pre, activation, negative_slope).to(dtype)


class _Phases(torch.autograd.Function):
    """The four convolutions, (B, O, H, W) each. Padded again in the backward, so that x alone is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, kernels)
        return tuple(F.conv2d(_padded(x, p, q), _kernel(kernels, p, q), bias) for p, q in PHASES)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad]
        by_phase = [
            conv2d_backward(dy, _padded(x, p, q), _kernel(kernels, p, q), PIXEL_BY_PIXEL, wanted)
            for dy, (p, q) in zip(upstream, PHASES, strict=True)
        ]
        height, width = x.shape[2:]
        dx = dkernels = dbias = None
        if wanted[0]:
            unpadded = [
                dpadded[:, :, 1 - p : 1 - p + height, 1 - q : 1 - q + width]
                for (dpadded, _, _), (p, q) in zip(by_phase, PHASES, strict=True)
            ]
            dx = unpadded[0] + unpadded[1] + unpadded[2] + unpadded[3]
        if wanted[1]:
            dkernels = torch.stack([dkernel for _, dkernel, _ in by_phase]).unflatten(0, (2, 2))
        if wanted[2]:
            dbias = torch.stack([dpart for _, _, dpart in by_phase]).sum(dim=0)
        return dx, dkernels, dbias


def _padded(x: Tensor, p: int, q: int) -> Tensor:
    return F.pad(x, (1 - q, q, 1 - p, p))


def _kernel(kernels: Tensor, p: int, q: int) -> Tensor:
    return kernels[p, q].contiguous(memory_format=torch.channels_last)


def _interleave_by_stack(parts: list[Tensor]) -> Tensor:
    """What `_Interleave` gives, by one concatenation."""
    batch, channels, height, width = parts[0].shape
    pixels = [part.permute(0, 2, 3, 1) for part in parts]
    rows = [torch.stack(pixels[start : start + 2], dim=3) for start in (0, 2)]  # (B, H, W, column phase, C)
    return torch.stack(rows, dim=2).reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class _Interleave(torch.autograd.Function):
    """Four phases (B, C, H, W) each, into (B, C, 2H, 2W), channels-last; one copy, and none in the backward."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        batch, channels, height, width = parts[0].shape
        shape = (batch, channels, 2 * height, 2 * width)
        dtype, device = parts[0].dtype, parts[0].device
        whole = torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
        for part, (p, q) in zip(parts, PHASES, strict=True):
            whole[:, :, p::2, q::2] = part
        return whole

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        return tuple(upstream[:, :, p::2, q::2] for p, q in PHASES)
