"""Modules that hold parameters and call `fastt2i.ops`."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from fastt2i import ops
from fastt2i.ops.reference import activate

Pair = int | tuple[int, int]


class Gate(nn.Module):
    """act(f) * sigmoid(g) of (B, 2C, ...) = [f, g]; see `fastt2i.ops.gate`."""

    def __init__(self, activation: str = "leaky_relu", negative_slope: float = 0.2, *, impl: str | None = None) -> None:
        super().__init__()
        self.activation = activation
        self.negative_slope = negative_slope
        self.impl = impl

    def forward(self, pre: Tensor) -> Tensor:
        return ops.gate(pre, activation=self.activation, negative_slope=self.negative_slope, impl=self.impl)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, negative_slope={self.negative_slope}"


class GatedConv2d(nn.Module):
    """A gated convolution; see `fastt2i.ops.gated_conv2d`.

    Weights start so that unit-variance inputs give outputs of about unit mean square, whatever the activation (for
    `tanh`, which cannot, less).

    Args:
        in_channels, out_channels: Cin and Cout; the convolution has 2 * Cout rows.
        kernel_size, stride, padding, dilation, groups, bias: as of `torch.nn.Conv2d`.
        activation: of the feature half.
        negative_slope: of `leaky_relu`.
        impl: None lets the dispatcher choose.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        impl: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or 2 * out_channels % groups:
            raise ValueError(
                f"GatedConv2d: groups is {groups}; it must divide in_channels ({in_channels}) and 2 * out_channels "
                f"({2 * out_channels})"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.activation, self.negative_slope, self.impl = activation, negative_slope, impl
        shape = (2 * out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(2 * out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; biases become zero."""
        with torch.no_grad():
            std = 1 / math.sqrt(self.weight[0].numel())
            nn.init.normal_(self.weight, std=std)
            self.weight[: self.out_channels] *= feature_gain(self.activation, self.negative_slope)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return ops.gated_conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            negative_slope=self.negative_slope,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"activation={self.activation!r}"
        )


class UpsampleGatedConv2d(GatedConv2d):
    """A gated 3x3 convolution of the nearest-neighbour 2x upsampling; see `fastt2i.ops.upsample_gated_conv2d`.

    Args:
        in_channels, out_channels: Cin and Cout; the convolution has 2 * Cout rows.
        bias: whether there is one.
        activation: of the feature half.
        negative_slope: of `leaky_relu`.
        impl: None lets the dispatcher choose.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        impl: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            3,
            padding=1,
            bias=bias,
            activation=activation,
            negative_slope=negative_slope,
            impl=impl,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        return ops.upsample_gated_conv2d(
            x,
            self.weight,
            self.bias,
            activation=self.activation,
            negative_slope=self.negative_slope,
            impl=self.impl,
        )


class RegionKeywordLoss(nn.Module):
    """Contrastive loss of images and captions by their regions and keywords; see `fastt2i.ops.region_keyword_loss`.

    Args:
        variant: `xmc` or `damsm`.
        gamma_attention, gamma_pooling, gamma_matching: sharpness of attention, pooling and matching.
        impl: None lets the dispatcher choose.
    """

    def __init__(
        self,
        variant: str = "xmc",
        gamma_attention: float = 5.0,
        gamma_pooling: float = 5.0,
        gamma_matching: float = 50.0,
        *,
        impl: str | None = None,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.gamma_attention, self.gamma_pooling, self.gamma_matching = gamma_attention, gamma_pooling, gamma_matching
        self.impl = impl

    def forward(
        self,
        regions: Tensor,
        keywords: Tensor,
        keyword_mask: Tensor | None = None,
        *,
        exclude: Tensor | None = None,
    ) -> Tensor:
        return ops.region_keyword_loss(
            regions,
            keywords,
            keyword_mask,
            variant=self.variant,
            gamma_attention=self.gamma_attention,
            gamma_pooling=self.gamma_pooling,
            gamma_matching=self.gamma_matching,
            exclude=exclude,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        gammas = f"{self.gamma_attention}, {self.gamma_pooling}, {self.gamma_matching}"
        return f"variant={self.variant!r}, gammas=({gammas})"


@cache
def feature_gain(activation: str, negative_slope: float) -> float:
    """The standard deviation a of the feature half at which E[act(a f)^2] E[sigmoid(g)^2] = 1 for f, g ~ N(0, 1).

    `tanh` cannot reach 1; it gets 5/3, which `torch.nn.init.calculate_gain` recommends.
    """
    if activation == "tanh":
        return nn.init.calculate_gain("tanh")
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64, device="cpu")  # whatever the default device is
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)

    def mean_square(values: Tensor) -> float:
        return torch.trapezoid(values.square() * density, x).item()

    gate = mean_square(torch.sigmoid(x))
    low, high = 0.0, 100.0
    for _ in range(60):  # bisection: the mean square grows with the gain
        gain = (low + high) / 2
        if mean_square(activate(gain * x, activation, negative_slope)) * gate < 1:
            low = gain
        else:
            high = gain
    return gain
