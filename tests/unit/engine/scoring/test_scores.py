"""Names and bounds of figures."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from fastt2i.engine.saving import Best
from fastt2i.engine.scoring.scores import Features, attribute_scores, frechet_scores, kid_scores
from fastt2i.errors import UserError
from fastt2i.metrics import distances
from fastt2i.metrics.extractors import Extractor

pytest.importorskip("torchmetrics")


def extractor(name: str) -> Extractor:
    return Extractor(
        name="x",
        frechet_name=name,
        digest="0" * 64,
        resize="",
        num_features=4,
        network=lambda x: x,
        device=torch.device("cpu"),
    )


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_a_frechet_distance_is_called_after_its_weights() -> None:
    real, drawn = features(12_000, 0), features(10_500, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = frechet_scores(real, drawn, extractor("FID"))
    assert scores.keys() == {"fid"} and 0 <= scores["fid"] < 0.01
    with pytest.warns(UserWarning, match="FD-01234567 of 50 images is larger than of 10000 or more"):
        assert frechet_scores(real, drawn[:50], extractor("FD-01234567")).keys() == {"fd-01234567"}
    with pytest.raises(UserError, match="FID of 3 images says nothing: it needs 4 real and generated ones or more"):
        frechet_scores(real[:3], drawn, extractor("FID"))
    statistics = distances.Statistics(real.double().mean(0), torch.cov(real.double().T))
    assert frechet_scores(statistics, drawn, extractor("FID"))["fid"] == pytest.approx(scores["fid"], rel=1e-6)


def test_kid_says_how_many_images_it_took() -> None:
    scores, size = kid_scores(Features(features(40, 0), features(30, 1)), seed=0)
    assert scores.keys() == {"kid", "kid_std"} and size == 15
    with pytest.raises(UserError, match="there are 3; take more with --images"):
        kid_scores(Features(features(40, 0), features(3, 1)), seed=0)


def test_attributes_are_right_together_or_not() -> None:
    right = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
    scores = attribute_scores(right)
    assert scores["accuracy_shape"] == 0.75 and scores["accuracy_color"] == 1.0 and scores["accuracy_all"] == 0.5


def test_the_best_is_small_of_distances_and_large_of_shares() -> None:
    kid, share = Best("kid", 0.1, 4), Best("r_precision", 0.5, 4)
    assert kid.is_beaten_by("kid", 0.09) and not kid.is_beaten_by("kid", 0.1) and not kid.is_beaten_by("kid", 0.2)
    assert share.is_beaten_by("r_precision", 0.6) and not share.is_beaten_by("r_precision", 0.5)
    assert kid.is_beaten_by("r_precision", 0.0)  # another score was asked for since
