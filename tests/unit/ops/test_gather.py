"""Gathered batches: mistakes that a single process can make."""

from __future__ import annotations

import pytest
import torch

from fastt2i.ops import gather_batch, global_match_loss, region_keyword_loss


def test_what_is_no_group_is_one_sentence() -> None:
    x = torch.randn(2, 3)
    for run in (
        lambda: global_match_loss(x, x, gather=True),
        lambda: region_keyword_loss(x[None], x[None], gather=True),
        lambda: gather_batch(x, True),
    ):
        with pytest.raises(TypeError, match="gather is True; it must be a process group, such as torch.distributed"):
            run()
