"""Mistakes that were found by comparing the operators with their contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastt2i.ops import (
    gate,
    gated_conv2d,
    global_match_loss,
    leaky_conv2d,
    modulated_gated_block,
    modulated_gated_conv2d,
    modulated_upsample_gated_conv2d,
    region_keyword_loss,
    region_keyword_scores,
    upsample_gated_conv2d,
)
from fastt2i.ops.gated_block.functional import ModulatedConv


@pytest.mark.parametrize("variant", ["xmc", "damsm"])
@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, 1e30])
def test_what_a_masked_row_holds_reaches_no_gradient(variant: str, rubbish: float) -> None:
    """Hiding the score alone would not do: 0 * NaN in a backward is NaN."""
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    results = []
    for filling in (0.0, rubbish):
        random = torch.Generator().manual_seed(0)
        regions = torch.randn(3, 5, 4, dtype=torch.float64, generator=random).requires_grad_()
        words = torch.randn(3, 3, 4, dtype=torch.float64, generator=random)
        words = words.masked_fill(~mask[:, :, None], filling).requires_grad_()
        loss = region_keyword_loss(regions, words, mask, variant=variant)
        results.append([loss, *torch.autograd.grad(loss, (regions, words))])
    torch.testing.assert_close(results[1], results[0])


def test_autocast_does_not_hide_a_wrong_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(TypeError, match="int64"):
            gated_conv2d(torch.ones(1, 3, 4, 4, dtype=torch.int64), torch.ones(4, 3, 3, 3))
        with pytest.raises(TypeError, match="int64"):
            region_keyword_loss(torch.ones(2, 3, 4, dtype=torch.int64), torch.ones(2, 3, 4))


def test_temperature_may_be_positional() -> None:
    images, sentences = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(global_match_loss(images, sentences, 0.5), global_match_loss(images, sentences, temperature=0.5))


def test_the_floor_is_of_the_product_of_norms() -> None:
    """AttnGAN clamps |c| |e| at 1e-8: tiny regions against large keywords keep their cosine."""
    random = torch.Generator().manual_seed(0)
    regions = 1e-10 * torch.randn(2, 5, 4, dtype=torch.float64, generator=random)
    words = 1e4 * torch.randn(2, 3, 4, dtype=torch.float64, generator=random)
    scores = region_keyword_scores(regions, words, variant="damsm")
    rescaled = region_keyword_scores(regions * 1e8, words * 1e-8, variant="damsm")
    torch.testing.assert_close(scores, rescaled)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_host_programs_default_dtype_is_not_that_of_scores(impl: str) -> None:
    regions, words = torch.randn(3, 5, 4), torch.randn(3, 2, 4)
    expected = region_keyword_scores(regions, words, impl=impl)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        scores = region_keyword_scores(regions, words, impl=impl)
        loss = region_keyword_loss(regions, words, impl=impl)
    finally:
        torch.set_default_dtype(before)
    assert scores.dtype == loss.dtype == torch.float32 and torch.equal(scores, expected)


X, WEIGHT, SCALE = torch.ones(2, 4, 3, 3), torch.ones(8, 4, 3, 3), torch.ones(2, 4)
CONV = ModulatedConv(WEIGHT, None, SCALE, SCALE)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("negative_slope", lambda **n: gate(X, **n)),
        ("negative_slope", lambda **n: gated_conv2d(X, WEIGHT, **n)),
        ("negative_slope", lambda **n: upsample_gated_conv2d(X, WEIGHT, **n)),
        ("gain", lambda **n: modulated_gated_conv2d(X, WEIGHT, None, SCALE, SCALE, **n)),
        ("gain", lambda **n: modulated_upsample_gated_conv2d(X, WEIGHT, None, SCALE, SCALE, **n)),
        ("output_slope", lambda **n: modulated_gated_block(X, CONV, CONV, **n)),
        ("gain", lambda **n: leaky_conv2d(X, WEIGHT, **n)),
        ("gamma_attention", lambda **n: region_keyword_scores(X[0], X[0], **n)),
        ("gamma_pooling", lambda **n: region_keyword_loss(X[0], X[0], **n)),
    ],
)
def test_numbers_that_kernels_take_have_no_gradient_and_say_so(name: str, call: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=f"{name} is a tensor that requires a gradient; it must be a number"):
        call(**{name: torch.tensor(0.5, requires_grad=True)})
    call(**{name: torch.tensor(0.5)})


def test_temperatures_may_be_learned() -> None:
    """They scale what the kernels give; so does gamma_attention, in the reference."""
    random = torch.Generator().manual_seed(0)
    regions, words = (torch.randn(3, count, 4, generator=random) for count in (5, 2))
    number = torch.tensor(5.0, requires_grad=True)
    losses: list[Tensor] = [
        region_keyword_loss(regions, words, gamma_matching=number),
        global_match_loss(regions[:, 0], words[:, 0], number),
        region_keyword_loss(regions, words, gamma_attention=number, impl="reference"),
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, number)
        assert gradient != 0
