"""Modules: they are their functions, and start at a scale that lasts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastt2i import ops
from fastt2i.nn import Gate, GatedConv2d, RegionKeywordLoss, UpsampleGatedConv2d
from fastt2i.ops.gate.reference import ACTIVATIONS


def test_modules_call_their_functions() -> None:
    x = torch.randn(2, 6, 5, 5)
    conv = GatedConv2d(6, 4, (3, 1), stride=2, padding=1, dilation=(1, 2), groups=2, activation="elu")
    expected = ops.gated_conv2d(
        x, conv.weight, conv.bias, stride=2, padding=1, dilation=(1, 2), groups=2, activation="elu"
    )
    assert torch.equal(conv(x), expected) and conv.weight.shape == (8, 3, 3, 1)
    up = UpsampleGatedConv2d(6, 4, bias=False, activation="silu")
    assert torch.equal(up(x), ops.upsample_gated_conv2d(x, up.weight, activation="silu")) and up.bias is None
    assert torch.equal(Gate("tanh")(x), ops.gate(x, activation="tanh"))
    v, e, mask = torch.randn(3, 4, 5), torch.randn(3, 2, 5), torch.tensor([[True, False]] * 3)
    loss = RegionKeywordLoss("damsm", 4.0, 5.0, 10.0)(v, e, mask, exclude=torch.eye(3, dtype=torch.bool))
    expected = ops.region_keyword_loss(
        v, e, mask, variant="damsm", gamma_attention=4.0, gamma_matching=10.0, exclude=torch.eye(3, dtype=torch.bool)
    )
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "tanh"])
@pytest.mark.parametrize("kind", ["plain", "upsample"])
def test_the_first_weights_keep_the_mean_square(kind: str, activation: str) -> None:
    torch.manual_seed(0)
    if kind == "plain":
        module = GatedConv2d(64, 64, 3, padding=1, activation=activation)
    else:
        module = UpsampleGatedConv2d(64, 64, activation=activation)
    y = module(torch.randn(4, 64, 32, 32))
    assert 0.85 < y.square().mean() < 1.15


def conv(*arguments: object, **options: object) -> nn.Conv2d:
    torch.manual_seed(len(str(options)))
    return nn.Conv2d(*arguments, **options, dtype=torch.float64)


SHAPES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (1, 4), "stride": (2, 1), "dilation": (1, 2), "bias": False},
    {"kernel_size": 4, "padding": "same"},
]


@pytest.mark.parametrize("options", SHAPES)
def test_a_pair_of_convolutions_becomes_a_layer_and_back(options: dict[str, Any]) -> None:
    feature, gate = conv(6, 5, **options), conv(6, 5, **{"bias": True} | options)
    layer = GatedConv2d.from_conv(feature, gate, activation="elu")
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.elu(feature(x)) * torch.sigmoid(gate(x)))
    again_feature, again_gate = layer.to_convs()
    assert torch.equal(again_feature(x), feature(x)) and torch.equal(again_gate(x), gate(x))


@pytest.mark.parametrize("options", [*SHAPES, {"kernel_size": 3, "groups": 2}])
def test_a_convolution_before_a_glu_becomes_a_layer_and_back(options: dict[str, Any]) -> None:
    both = conv(6, 8, **options).eval()
    layer = GatedConv2d.from_conv(both, activation="identity")
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.glu(both(x), dim=1))
    assert torch.equal(layer.to_conv()(x), both(x))
    assert not layer.training and not layer.to_conv().training


def test_one_bias_of_two_is_enough() -> None:
    feature, gate = conv(2, 3, kernel_size=1, bias=False), conv(2, 3, kernel_size=1)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    layer = GatedConv2d.from_conv(feature, gate, activation="identity")
    torch.testing.assert_close(layer(x), feature(x) * torch.sigmoid(gate(x)))


def test_an_upsampling_block_becomes_a_layer() -> None:
    both, x = conv(6, 8, kernel_size=3, padding=1), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    layer = UpsampleGatedConv2d.from_conv(both, activation="identity")
    torch.testing.assert_close(layer(x), F.glu(both(F.interpolate(x, scale_factor=2.0)), dim=1))
    assert torch.equal(layer.to_conv()(x), both(x))


def test_a_layer_made_of_others_has_weights_of_its_own() -> None:
    both = conv(2, 4, kernel_size=1)
    layer = GatedConv2d.from_conv(both)
    layer.weight.data.zero_()
    assert both.weight.any()


def test_what_cannot_become_a_layer_is_one_sentence() -> None:
    c = partial(conv, kernel_size=3)
    for convs, message in [
        ((c(4, 5),), "the convolution has 5 output channels; there must be an even number"),
        ((c(4, 4), c(4, 6)), "out_channels is 4 in feature_conv and 6 in gate_conv; they must agree"),
        ((c(4, 4), c(4, 4, padding=1)), r"padding is \(0, 0\) in feature_conv and \(1, 1\) in gate_conv"),
        ((c(4, 4, groups=2), c(4, 4, groups=2)), r"two convolutions with groups \(2, 2\) are not one with groups"),
        ((c(4, 4, padding_mode="reflect"),), "padding_mode is 'reflect'; it must be 'zeros'"),
    ]:
        with pytest.raises(ValueError, match=message):
            GatedConv2d.from_conv(*convs)
    with pytest.raises(TypeError, match="from_conv: ConvTranspose2d is not torch.nn.Conv2d itself"):
        GatedConv2d.from_conv(nn.ConvTranspose2d(4, 4, 3))
    with pytest.raises(ValueError, match="it must have a 3x3 kernel, a padding of 1 and neither stride"):
        UpsampleGatedConv2d.from_conv(c(4, 4))
    with pytest.raises(ValueError, match="a layer of 2 groups is no pair of convolutions; use to_conv"):
        GatedConv2d(4, 4, 3, groups=2).to_convs()


class Doubled(nn.Conv2d):
    """A subclass whose outputs are others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # old-style weight_norm is what many models have
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (nn.utils.weight_norm, ValueError, r"the convolution has a hook \(WeightNorm\), which would be lost"),
        (nn.utils.spectral_norm, ValueError, r"the convolution has a hook \(SpectralNorm\), which would be lost"),
        (nn.utils.parametrizations.spectral_norm, TypeError, "ParametrizedConv2d is not torch.nn.Conv2d itself"),
        (lambda c: Doubled(4, 4, 3), TypeError, "from_conv: Doubled is not torch.nn.Conv2d itself"),
    ],
)
def test_what_does_more_than_its_weights_say_is_no_layer(change: Any, error: type[Exception], message: str) -> None:
    changed = change(nn.Conv2d(4, 4, 3))
    for convs in ((changed,), (nn.Conv2d(4, 4, 3), changed)):
        with pytest.raises(error, match=message):
            GatedConv2d.from_conv(*convs)


def test_what_is_frozen_stays_so_and_back() -> None:
    feature, gate = conv(2, 3, kernel_size=1), conv(2, 3, kernel_size=1)
    for each in (feature, gate):
        each.weight.requires_grad_(False)
    layer = GatedConv2d.from_conv(feature, gate)
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    for back in (layer.to_conv(), *layer.to_convs()):
        assert not back.weight.requires_grad and back.bias.requires_grad
    feature.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="one bias has requires_grad=False; both must, or none"):
        GatedConv2d.from_conv(feature, gate)
    gate.bias.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in GatedConv2d.from_conv(feature, gate).parameters())


def test_what_no_layer_can_be_is_said_when_it_is_made() -> None:
    for arguments, message in [
        ({"stride": (1, 2, 3)}, r"stride is \(1, 2, 3\); it must be a whole number, or two of them"),
        ({"kernel_size": (3,)}, r"kernel_size is \(3,\); it must be a whole number, or two of them"),
        ({"kernel_size": (0, 3)}, "kernel_height is 0; it must be more than 0"),
        ({"in_channels": 0}, "in_channels is 0; it must be more than 0"),
        ({"padding": "full"}, "padding is 'full'; it must be numbers, 'same' or 'valid'"),
        ({"activation": "gelu"}, "activation is 'gelu'; it must be one of"),
    ]:
        with pytest.raises(ValueError, match="GatedConv2d: " + message):
            GatedConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3} | arguments)
    with pytest.raises(ValueError, match="RegionKeywordLoss: variant is 'clip'; it must be one of xmc, damsm"):
        RegionKeywordLoss("clip")
    with pytest.raises(ValueError, match="RegionKeywordLoss: gamma_matching is inf; it must be more than 0 and finite"):
        RegionKeywordLoss(gamma_matching=float("inf"))


def test_the_loss_hands_on_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(ops, "region_keyword_loss", lambda *features, **settings: given.update(settings))
    group: Any = object()
    gammas = {"gamma_attention": 1.0, "gamma_pooling": 2.0, "gamma_matching": 3.0}
    settings = {"variant": "damsm", "impl": "torch", **gammas}
    RegionKeywordLoss(gather=group, equal_batch_sizes=True, **settings)(torch.ones(1, 1, 1), torch.ones(1, 1, 1))
    assert given == settings | {"gather": group, "equal_batch_sizes": True, "exclude": None}


def test_groups_that_do_not_divide_are_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"groups is 4; it must divide in_channels \(6\) and 2 \* out_channels \(8\)"):
        GatedConv2d(6, 4, 3, groups=4)


def test_modules_say_what_they_are() -> None:
    assert "6, 4, kernel_size=(3, 3), stride=1, padding=1" in repr(UpsampleGatedConv2d(6, 4))
    assert "variant='xmc', gammas=(5.0, 5.0, 50.0)" in repr(RegionKeywordLoss())
