"""Retrieval against a count by hand."""

from __future__ import annotations

import torch

from fastt2i.engine.scoring.scores import retrieval_scores
from fastt2i.metrics.retrieval import retrieval_ranks


def test_ranks_by_hand() -> None:
    real = torch.tensor([[1.0, 0], [0, 2], [1, 1]])
    drawn = torch.tensor([[3.0, 0.1], [3.0, 0.1], [0.1, 0.5], [1, 1]])
    # The first is nearest to row 0, then 2, then 1; the third to row 1, then 2, then 0.
    assert retrieval_ranks(drawn, real, torch.tensor([0, 1, 2, 2])).tolist() == [1, 3, 2, 1]


def test_one_image_for_all_captions_finds_at_most_one() -> None:
    real = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    ranks = retrieval_ranks(real[:1].expand(50, -1), real, torch.arange(50))
    assert sorted(ranks.tolist()) == list(range(1, 51))


def test_an_image_that_is_as_near_as_the_own_one_is_before_it() -> None:
    real = torch.tensor([[1.0, 0], [2.0, 0], [0, 1]])
    assert retrieval_ranks(torch.tensor([[1.0, 0]]), real, torch.tensor([0])).tolist() == [2]


def test_samples_without_an_image_and_further_images_of_a_sample_do_not_count() -> None:
    real = torch.eye(20)
    drawn = torch.cat([real, real.roll(1, dims=0)])  # a second round, all wrong
    drawn[3], drawn[4] = real[5], real[5] + 0.5 * real[4]
    missing = real.clone()
    missing[3] = float("nan")
    scores = retrieval_scores(missing, drawn)
    assert scores == {"retrieval_r1": 18 / 19, "retrieval_r10": 1.0, "retrieval_rank": 1.0}
