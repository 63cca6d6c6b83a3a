"""Distances of sets of images against torchmetrics' own, and against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastt2i.errors import UserError
from fastt2i.metrics.distances import (
    Statistics,
    frechet_distance,
    kernel_distance,
    load_statistics,
    precision_recall,
)

torchmetrics = pytest.importorskip("torchmetrics")


def features(count: int, size: int = 24, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) * (1 + shift) + shift


class Given(nn.Module):
    num_features = 24

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_the_frechet_distance_is_torchmetrics_own() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, drawn = features(1500, seed=0), features(900, seed=1, shift=0.2)
    metric = FrechetInceptionDistance(Given())
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    assert frechet_distance(real, drawn) == pytest.approx(float(metric.compute()), rel=1e-9)
    assert abs(frechet_distance(real, real)) < 1e-6


def test_the_frechet_distance_of_diagonal_gaussians_is_known() -> None:
    """The square of the distance of the means, and of the deviations."""
    drawn = torch.linspace(-1, 1, 40)[:, None] * torch.tensor([[1.0]])
    mean, variance = drawn.double().mean(0), drawn.double().var(0)
    reference = Statistics(mean + 3, (variance.sqrt() + 2).square()[:, None])
    assert frechet_distance(reference, drawn) == pytest.approx(9 + 4, abs=1e-6)


def test_statistics_stand_for_the_images_that_they_are_of() -> None:
    real, drawn = features(200, seed=0), features(300, seed=1, shift=0.1)
    statistics = Statistics(real.double().mean(0), torch.cov(real.double().T))
    assert frechet_distance(statistics, drawn) == pytest.approx(frechet_distance(real, drawn), rel=1e-9)


def test_too_few_images_for_their_features() -> None:
    with pytest.raises(ValueError, match="there are 23 generated images, and 24 features need as many"):
        frechet_distance(features(30, seed=0), features(23, seed=1))


def test_the_kernel_distance_of_one_subset_is_its_definition() -> None:
    """With as many images as a subset has, there is one subset, whatever the order."""
    real, drawn = features(4, seed=0).double(), features(4, seed=1, shift=0.5).double()
    kernels = [(a @ b.T / 24 + 1) ** 3 for a, b in ((real, real), (drawn, drawn), (real, drawn))]
    within = [sum(k[i, j] for i in range(4) for j in range(4) if i != j) / 12 for k in kernels[:2]]
    found = kernel_distance(torch.cat([real, real]), torch.cat([drawn, drawn]), subsets=1)
    assert found.subset_size == 4
    from torchmetrics.image.kid import poly_mmd

    assert float(poly_mmd(real, drawn)) == pytest.approx(float(sum(within) - 2 * kernels[2].mean()), rel=1e-12)


def test_the_kernel_distance_of_like_sets_is_0_and_of_others_is_not() -> None:
    first, second = features(1200, seed=0), features(1000, seed=1)
    alike, apart = kernel_distance(first, second), kernel_distance(first, features(1000, seed=2, shift=0.3))
    assert abs(alike.mean) < 3 * alike.deviation and alike.subset_size == 500
    assert apart.mean > 20 * apart.deviation / 10 and apart.mean > 10 * abs(alike.mean)
    assert kernel_distance(first, second) == alike != kernel_distance(first, second, seed=1)
    with pytest.raises(ValueError, match="KID needs 4 images or more of each set, and there are 3"):
        kernel_distance(first, second[:3])


def test_precision_and_recall_are_their_definition() -> None:
    """Every pair of images by itself, and sets that are no multiple of what is compared at once."""
    real, drawn = features(70, 4, seed=0), features(50, 4, seed=1, shift=0.4)

    def covered(points: Tensor, balls: Tensor) -> float:
        radii = [sorted(float((a - b).double().norm()) for b in balls)[3] for a in balls]
        near = [any(float((p - b).double().norm()) <= r for b, r in zip(balls, radii, strict=True)) for p in points]
        return float(np.mean(near))

    assert precision_recall(real, drawn) == pytest.approx((covered(drawn, real), covered(real, drawn)), abs=1e-12)


def test_precision_and_recall_tell_what_is_missing_from_what_is_wrong() -> None:
    real = torch.cat([features(1100, 4, seed=0), features(1100, 4, seed=1) + 50])
    half, noise = features(600, 4, seed=2), features(600, 4, seed=3) - 50
    precision, recall = precision_recall(real, half)
    assert precision > 0.9 and 0.4 < recall < 0.5
    assert precision_recall(real, torch.cat([half, noise]))[0] == pytest.approx(precision / 2)
    with pytest.raises(ValueError, match="need 4 images or more of each set, and there are 3"):
        precision_recall(real, half[:3])


def test_statistics_of_a_file() -> None:
    content = {"mu": np.zeros(3), "sigma": np.eye(3)}
    assert torch.equal(load_statistics(content, "x.npz", 3).covariance, torch.eye(3, dtype=torch.float64))
    with pytest.raises(UserError, match="x.npz holds statistics of 3 features; the network has 2048"):
        load_statistics(content, "x.npz", 2048)
    with pytest.raises(UserError, match="it needs the arrays mu and sigma"):
        load_statistics({"mu": np.zeros(3)}, "x.npz", 3)
