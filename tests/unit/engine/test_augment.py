"""DiffAugment: what the policies do to pixels, and that gradients pass."""

from __future__ import annotations

import pytest
import torch

from fastt2i.engine.augment import augment, draws_per_image

POLICIES = ("translation", "cutout", "color")


def uniform(n: int, *policies: str) -> torch.Tensor:
    return torch.rand(n, draws_per_image(policies), generator=torch.Generator().manual_seed(3))


def test_no_policy_changes_nothing() -> None:
    images = torch.randn(4, 3, 8, 8)
    assert augment(images, (), uniform(4)) is images


def test_translation_moves_by_whole_pixels_and_lets_zeros_in() -> None:
    size = 16
    images = torch.rand(64, 3, size, size) + 1
    u = uniform(64, "translation")
    moved = augment(images, ("translation",), u)
    seen = set()
    for image, result, (row, column) in zip(images, moved, ((u * 5).long() - 2).tolist(), strict=True):
        expected = torch.zeros_like(image)
        for y in range(size):
            for x in range(size):
                if 0 <= y + row < size and 0 <= x + column < size:
                    expected[:, y, x] = image[:, y + row, x + column]
        torch.testing.assert_close(result, expected)
        seen.add((row, column))
    assert (len(seen) > 15 and (2, 2) in seen) or (-2, -2) in seen


def test_cutout_removes_at_most_a_quarter() -> None:
    images = torch.ones(200, 3, 32, 32)
    removed = (augment(images, ("cutout",), uniform(200, "cutout")) == 0).float().mean(dim=(1, 2, 3))
    assert removed.max() == 0.25 and removed.min() >= 0.0625 and removed.unique().numel() > 20


def test_color_keeps_shapes_and_differs_between_images() -> None:
    images = torch.rand(2, 3, 8, 8).expand(2, -1, -1, -1)
    changed = augment(images, ("color",), uniform(2, "color"))
    assert changed.shape == images.shape and not torch.equal(changed[0], changed[1])


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_pass(policy: str) -> None:
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    u = uniform(3, policy).double()
    assert torch.autograd.gradcheck(lambda x: augment(x, (policy,), u), images)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, (policy,), u).square(), images)


def test_a_translation_back_is_the_gradient_of_a_translation() -> None:
    images = torch.randn(40, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    upstream, u = torch.randn_like(images), uniform(40, "translation").double()
    (gradient,) = torch.autograd.grad(augment(images, ("translation",), u), images, upstream)
    reach = 2
    shift = (u * (2 * reach + 1)).long() - reach
    expected = torch.zeros_like(images)
    for n, (row, column) in enumerate(shift.tolist()):
        for y in range(max(0, -row), min(16, 16 - row)):
            for x in range(max(0, -column), min(16, 16 - column)):
                expected[n, :, y + row, x + column] += upstream[n, :, y, x]
    assert torch.equal(gradient, expected)
