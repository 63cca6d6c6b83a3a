"""Modules that hold parameters and call `fastt2i.ops`."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Self

from fastt2i import ops
from fastt2i.ops.checks import check_activation, check_padding, check_pair, check_positive, check_variant
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
        with torch.no_grad():
            layer.weight.copy_(torch.cat([conv.weight for conv in convs]))
            if layer.bias is not None:
                rows = [conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias for conv in convs]
                layer.bias.copy_(torch.cat(rows))
                layer.bias.requires_grad_(any(conv.bias is not None and conv.bias.requires_grad for conv in convs))
        layer.weight.requires_grad_(feature_conv.weight.requires_grad)
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
        rows = _rows(feature_conv, gate_conv)
        biased = feature_conv.bias is not None or (gate_conv is not None and gate_conv.bias is not None)
        return cls(
            feature_conv.in_channels,
            rows // 2,
            _pair(feature_conv.kernel_size),
            _pair(feature_conv.stride),
            feature_conv.padding if isinstance(feature_conv.padding, str) else _pair(feature_conv.padding),
            _pair(feature_conv.dilation),
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
            _pair(self.kernel_size),
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
        conv, rows = feature_conv, _rows(feature_conv, gate_conv)
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


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _rows(feature_conv: nn.Conv2d, gate_conv: nn.Conv2d | None) -> int:
    """How many rows a gated convolution made of these has; they have to fit together."""
    given = [feature_conv] if gate_conv is None else [feature_conv, gate_conv]
    for conv in given:
        if type(conv) is not nn.Conv2d:
            raise TypeError(f"from_conv: {type(conv).__name__} is not torch.nn.Conv2d itself, and may do other things")
        if hooks := [*conv._forward_pre_hooks.values(), *conv._forward_hooks.values()]:
            raise ValueError(
                f"from_conv: the convolution has a hook ({_name(hooks[0])}), which would be lost; remove it before"
            )
        if conv.padding_mode != "zeros":
            raise ValueError(f"from_conv: padding_mode is {conv.padding_mode!r}; it must be 'zeros'")
    if gate_conv is None:
        if feature_conv.out_channels % 2:
            raise ValueError(
                f"from_conv: the convolution has {feature_conv.out_channels} output channels; there must be an even "
                "number: the feature half, then the gate half"
            )
        return feature_conv.out_channels
    if feature_conv.groups != 1 or gate_conv.groups != 1:
        groups = (feature_conv.groups, gate_conv.groups)
        raise ValueError(f"from_conv: two convolutions with groups {groups} are not one with groups; they must have 1")
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"):
        ours, theirs = getattr(feature_conv, name), getattr(gate_conv, name)
        if ours != theirs:
            raise ValueError(f"from_conv: {name} is {ours} in feature_conv and {theirs} in gate_conv; they must agree")
    for name in ("weight", "bias"):
        ours, theirs = getattr(feature_conv, name), getattr(gate_conv, name)
        if ours is not None and theirs is not None and ours.requires_grad != theirs.requires_grad:
            raise ValueError(f"from_conv: one {name} has requires_grad=False; both must, or none: they become one")
    return 2 * feature_conv.out_channels


def _name(hook: object) -> str:
    return getattr(hook, "__name__", type(hook).__name__)


class RegionKeywordLoss(nn.Module):
    """Contrastive loss of images and captions by their regions and keywords; see `fastt2i.ops.region_keyword_loss`.

    Args:
        variant: `xmc` or `damsm`.
        gamma_attention, gamma_pooling, gamma_matching: sharpness of attention, pooling and matching.
        gather: a process group whose ranks' batches are one; None is this process alone.
        even: with `gather`, all ranks' batches have the same sizes, and the host waits for none.
        impl: None lets the dispatcher choose.

    Raises:
        ValueError: there is no such variant, or a gamma is not positive and finite.
    """

    def __init__(
        self,
        variant: str = "xmc",
        gamma_attention: float = 5.0,
        gamma_pooling: float = 5.0,
        gamma_matching: float = 50.0,
        *,
        gather: ProcessGroup | None = None,
        even: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__()
        check_variant("RegionKeywordLoss", variant)
        gammas = {"gamma_attention": gamma_attention, "gamma_pooling": gamma_pooling, "gamma_matching": gamma_matching}
        check_positive("RegionKeywordLoss", **gammas)
        self.variant = variant
        self.gamma_attention, self.gamma_pooling, self.gamma_matching = gamma_attention, gamma_pooling, gamma_matching
        self.gather, self.even, self.impl = gather, even, impl

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
            gather=self.gather,
            even=self.even,
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
