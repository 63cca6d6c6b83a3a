"""Adversarial losses and penalties against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch

from fastt2i.engine.losses import (
    MODE_SEEKING_MARGIN,
    discriminator_adversarial,
    generator_adversarial,
    ma_gp_penalty,
    mode_seeking_loss,
    r1_penalty,
)

REAL, FAKE, WRONG = ([0.5, 2.0, -1.0], [-0.5, -3.0, 1.0], [0.25, -2.0, 4.0])


def tensors() -> list[torch.Tensor]:
    return [torch.tensor(x, dtype=torch.float64) for x in (REAL, FAKE, WRONG)]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_hinge_is_its_formula(weight: float) -> None:
    everything = torch.ones(3, dtype=torch.bool)
    loss = discriminator_adversarial("hinge", *tensors(), everything, weight)
    expected = (
        sum(max(0, 1 - x) for x in REAL) / 3
        + (1 - weight) * sum(max(0, 1 + x) for x in FAKE) / 3
        + weight * sum(max(0, 1 + x) for x in WRONG) / 3
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert generator_adversarial("hinge", tensors()[1]).item() == pytest.approx(-sum(FAKE) / 3)


def test_nonsaturating_is_its_formula() -> None:
    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    loss = discriminator_adversarial("nonsaturating", *tensors(), torch.ones(3, dtype=torch.bool), 0.25)
    expected = (
        sum(softplus(-x) for x in REAL) / 3
        + 0.75 * sum(softplus(x) for x in FAKE) / 3
        + 0.25 * sum(softplus(x) for x in WRONG) / 3
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    generator = generator_adversarial("nonsaturating", tensors()[1])
    assert generator.item() == pytest.approx(sum(softplus(-x) for x in FAKE) / 3)


def test_a_mismatched_caption_that_is_the_same_one_takes_no_part() -> None:
    real, fake, wrong = tensors()
    valid = torch.tensor([True, False, True])
    loss = discriminator_adversarial("hinge", real, fake, wrong, valid, 0.5)
    wrong[1] = 1000.0
    assert discriminator_adversarial("hinge", real, fake, wrong, valid, 0.5) == loss
    none = torch.zeros(3, dtype=torch.bool)
    assert discriminator_adversarial("hinge", real, fake, wrong, none, 0.5).isfinite()


def quadratic(images: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
    return (images.square().flatten(1).sum(1) + (sentences**3).sum(1)) / 2


def test_penalties_are_their_formulas_and_pass_gradients() -> None:
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    sentences = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    r1 = r1_penalty(quadratic(images, sentences), images)
    assert r1.item() == pytest.approx((4 / 32) ** 2 * images.square().flatten(1).sum(1).mean().item() / 2)
    squared = images.square().flatten(1).sum(1) + (1.5 * sentences.square()).square().sum(1)
    ma_gp = ma_gp_penalty(quadratic(images, sentences), images, sentences)
    assert ma_gp.item() == pytest.approx((squared**3).mean().item())
    (gradient,) = torch.autograd.grad(r1, images)
    torch.testing.assert_close(gradient, (4 / 32) ** 2 * images.detach() / 5)
    assert torch.autograd.grad(ma_gp, sentences)[0].abs().min() > 0


@pytest.mark.parametrize("size", [16, 64, 128])
def test_r1_of_one_function_is_the_same_at_every_resolution(size: int) -> None:
    """A function of the image averaged down to 16 px, asked of images that are magnified to `size`."""

    def penalty(images: torch.Tensor) -> float:
        images = images.requires_grad_()
        small = torch.nn.functional.adaptive_avg_pool2d(images, 16)
        return r1_penalty(small.pow(3).flatten(1).sum(dim=1), images).item()

    small = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    large = torch.nn.functional.interpolate(small, size, mode="nearest")
    assert penalty(large) == pytest.approx(penalty(small.clone()), rel=1e-12)


def test_mode_seeking_is_its_formula_and_ends_at_the_distance_of_real_images() -> None:
    images = torch.zeros(3, 3, 4, 4, dtype=torch.float64)
    others = images + torch.tensor([0.0, 0.05, 0.3], dtype=torch.float64)[:, None, None, None]
    others = others.requires_grad_()
    real, margin = 0.2, MODE_SEEKING_MARGIN
    expected = [(1 + margin) * real / (d + margin * real) - 1 for d in (0.0, 0.05)] + [0.0]
    loss = mode_seeking_loss(images, others, real)
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), others)
    assert (gradient[1] < 0).all()  # down the gradient, the second image goes away from the first
    assert not gradient[2].any()
