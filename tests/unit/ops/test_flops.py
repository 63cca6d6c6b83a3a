"""Operations of the fused operators are counted as torch counts its own."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

import fastt2i.ops.flops
from fastt2i.ops import region_keyword_scores


def test_scores_are_counted_forward_and_backward() -> None:
    regions, keywords = torch.randn(4, 64, 32, requires_grad=True), torch.randn(5, 8, 32, requires_grad=True)
    product = 2 * 4 * 5 * 8 * 64 * 32
    with FlopCounterMode(display=False) as forward:
        scores = region_keyword_scores(regions, keywords, impl="torch")
    with FlopCounterMode(display=False) as backward:
        scores.sum().backward()
    assert forward.get_total_flops() == fastt2i.ops.flops.FORWARD * product
    assert backward.get_total_flops() == fastt2i.ops.flops.BACKWARD * product
