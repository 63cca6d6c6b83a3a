"""Modules: they are their functions, and start at a scale that lasts."""

from __future__ import annotations

import pytest
import torch

from fastt2i import ops
from fastt2i.nn import Gate, GatedConv2d, RegionKeywordLoss, UpsampleGatedConv2d
from fastt2i.ops.reference import ACTIVATIONS


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


def test_groups_that_do_not_divide_are_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"groups is 4; it must divide in_channels \(6\) and 2 \* out_channels \(8\)"):
        GatedConv2d(6, 4, 3, groups=4)


def test_modules_say_what_they_are() -> None:
    assert "6, 4, kernel_size=(3, 3), stride=1, padding=1" in repr(UpsampleGatedConv2d(6, 4))
    assert "variant='xmc', gammas=(5.0, 5.0, 50.0)" in repr(RegionKeywordLoss())
