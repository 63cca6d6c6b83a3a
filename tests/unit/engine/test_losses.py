"""Adversarial losses and penalties against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch

from fastt2i.engine.losses import discriminator_adversarial, generator_adversarial, ma_gp_penalty, r1_penalty

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
    assert r1.item() == pytest.approx(images.square().flatten(1).sum(1).mean().item() / 2)
    squared = images.square().flatten(1).sum(1) + (1.5 * sentences.square()).square().sum(1)
    ma_gp = ma_gp_penalty(quadratic(images, sentences), images, sentences)
    assert ma_gp.item() == pytest.approx((squared**3).mean().item())
    (gradient,) = torch.autograd.grad(r1, images)
    torch.testing.assert_close(gradient, images.detach() / 5)
    assert torch.autograd.grad(ma_gp, sentences)[0].abs().min() > 0
