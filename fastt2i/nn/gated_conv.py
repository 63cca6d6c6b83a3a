"""The gate and the gated convolutions as modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastt2i import ops
from fastt2i.nn.conv_parameters import check_convs, copy_parameters, pair
from fastt2i.nn.init import feature_gain
from fastt2i.ops.checks import check_padding, check_pair, check_positive
from fastt2i.ops.gate.checks import check_activation

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

    Raises:
        ValueError: a setting is none that such a layer can have.
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
        check_activation("GatedConv2d", activation)
        check_pair("GatedConv2d", "stride", stride)
        check_pair("GatedConv2d", "dilation", dilation)
        check_padding("GatedConv2d", padding)
        self.kernel_size = check_pair("GatedConv2d", "kernel_size", kernel_size)
        check_positive(
            "GatedConv2d",
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_height=self.kernel_size[0],
            kernel_width=self.kernel_size[1],
        )
        self.in_channels, self.out_channels = in_channels, out_channels
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

    @classmethod
    def from_conv(
        cls,
        feature_conv: nn.Conv2d,
        gate_conv: nn.Conv2d | None = None,
        *,
        activation: str = "leaky_relu",
        negative_slope: float = 0.2,
        impl: str | None = None,
    ) -> Self:
        """This layer with the weights of existing ones, copied: the same outputs. What is frozen stays so.

        Args:
            feature_conv: the convolution whose output is activated; or, alone, one to 2 * Cout channels whose first
                half is the feature half, as before a GLU.
            gate_conv: the convolution whose output goes through the sigmoid; without groups, and like the first in
                everything but its values.
            activation, negative_slope, impl: as of the layer. A GLU has `activation="identity"`.

        Raises:
            TypeError: it is another kind of layer, be it a subclass of Conv2d, whose outputs may be others.
            ValueError: the convolutions do not fit together, or what they do this layer cannot: hooks, such as those of
                `weight_norm` and `spectral_norm`, belong to what they do.
        """
        layer = cls._like(feature_conv, gate_conv, activation, negative_slope, impl)
        convs = [feature_conv] if gate_conv is None else [feature_conv, gate_conv]
        copy_parameters(convs, layer.weight, layer.bias)
        return layer.train(feature_conv.training)

    def to_conv(self) -> nn.Conv2d:
        """One convolution to 2 * Cout channels with this layer's weights, copied: what comes before the gate.

        It has x itself for its input, also where this layer upsamples: upsample before it then.
        """
        return self._conv(self.weight, self.bias, self.groups)

    def to_convs(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The convolutions of the feature half and of the gate half with this layer's weights, copied.

        Raises ValueError where there are groups, which belong to both halves together.
        """
        if self.groups != 1:
            raise ValueError(f"GatedConv2d: a layer of {self.groups} groups is no pair of convolutions; use to_conv")
        biases = (None, None) if self.bias is None else self.bias.chunk(2)
        feature, gate = (self._conv(w, b, 1) for w, b in zip(self.weight.chunk(2), biases, strict=True))
        return feature, gate

    @classmethod
    def _like(
        cls,
        feature_conv: nn.Conv2d,
        gate_conv: nn.Conv2d | None,
        activation: str,
        negative_slope: float,
        impl: str | None,
    ) -> Self:
        """A layer of the right shape, on the right device."""
        rows = check_convs(feature_conv, gate_conv)
        biased = feature_conv.bias is not None or (gate_conv is not None and gate_conv.bias is not None)
        return cls(
            feature_conv.in_channels,
            rows // 2,
            pair(feature_conv.kernel_size),
            pair(feature_conv.stride),
            feature_conv.padding if isinstance(feature_conv.padding, str) else pair(feature_conv.padding),
            pair(feature_conv.dilation),
            feature_conv.groups,
            biased,
            activation=activation,
            negative_slope=negative_slope,
            impl=impl,
            device=feature_conv.weight.device,
            dtype=feature_conv.weight.dtype,
        )

    def _conv(self, weight: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
        conv = nn.Conv2d(
            self.in_channels,
            len(weight),
            pair(self.kernel_size),
            self.stride,
            self.padding,
            self.dilation,
            groups,
            bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(weight).requires_grad_(self.weight.requires_grad)
            if conv.bias is not None and bias is not None and self.bias is not None:
                conv.bias.copy_(bias).requires_grad_(self.bias.requires_grad)
        return conv.train(self.training)

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

    @classmethod
    def _like(
        cls,
        feature_conv: nn.Conv2d,
        gate_conv: nn.Conv2d | None,
        activation: str,
        negative_slope: float,
        impl: str | None,
    ) -> Self:
        conv, rows = feature_conv, check_convs(feature_conv, gate_conv)
        shape = (conv.kernel_size, conv.stride, conv.dilation, conv.groups)
        if shape != ((3, 3), (1, 1), (1, 1), 1) or conv.padding not in ((1, 1), "same"):
            raise ValueError(
                f"UpsampleGatedConv2d: the convolution is {conv}; it must have a 3x3 kernel, a padding of 1 and "
                "neither stride, dilation nor groups"
            )
        return cls(
            conv.in_channels,
            rows // 2,
            conv.bias is not None or (gate_conv is not None and gate_conv.bias is not None),
            activation=activation,
            negative_slope=negative_slope,
            impl=impl,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
