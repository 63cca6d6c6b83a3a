"""Four mistakes that were found by comparing the operators with their contract."""

from __future__ import annotations

import pytest
import torch

from fastt2i.ops import gated_conv2d, global_match_loss, region_keyword_loss, region_keyword_scores


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
