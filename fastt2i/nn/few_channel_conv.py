"""A convolution to few channels, such as an image's, with a weight gradient that is fast on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastt2i.ops.autocast import cast_for_autocast
from fastt2i.ops.transforms import under_transform


class FewChannelConv2d(nn.Conv2d):
    """A `Conv2d` of stride 1 to few channels that keeps height and width; on a CPU its training takes less time.

    Args:
        in_channels, out_channels: as of `torch.nn.Conv2d`.
        kernel_size: odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"FewChannelConv2d: kernel_size is {kernel_size}; it must be odd")
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or under_transform():
            return super().forward(x)
        return _FewChannelConv.apply(*cast_for_autocast(x, self.weight, self.bias))


class _FewChannelConv(torch.autograd.Function):
    """The convolution; for the gradient of its weight, image and input change places.

    dw[o, i, u, v] sums dy[o] times x[i] moved by (u, v), and so, mirrored, x[i] times dy[o] moved: the gradient of the
    weight of a convolution from the image's few channels to the input's many, for which oneDNN has a kernel, as first
    layers are such. For the other it fills up its registers: from 24 to 3 channels it took 3 to 4 times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx, _, _ = _backward(dy, x, weight, (True, False))
        if ctx.needs_input_grad[1]:
            _, mirrored, _ = _backward(x, dy, weight.transpose(0, 1), (False, True))
            dweight = mirrored.flip(2, 3).transpose(0, 1)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(dim=(0, 2, 3))
        return dx, dweight, dbias


def _backward(dy: Tensor, x: Tensor, weight: Tensor, output_mask: tuple[bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
    padding = [weight.shape[2] // 2] * 2
    return torch.ops.aten.convolution_backward(
        dy, x, weight, [0], [1, 1], padding, [1, 1], False, [0, 0], 1, [*output_mask, False]
    )
