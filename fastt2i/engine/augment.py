"""DiffAugment (Zhao et al. 2020): the discriminator sees every image, real or fake, through random changes that
pass gradients. The random numbers are an argument, so that a step is a pure function of its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Uniform random numbers an image needs, by policy.
DRAWS = {"translation": 2, "cutout": 2, "color": 3}


def draws_per_image(policies: Sequence[str]) -> int:
    """How many uniform random numbers `augment` takes for each image."""
    return sum(DRAWS[p] for p in policies)


def augment(images: Tensor, policies: Sequence[str], uniform: Tensor) -> Tensor:
    """Change images at random, differentiably.

    Args:
        images: (N, 3, S, S) in [-1, 1].
        policies: any of `translation` (by up to an eighth, zeros come in), `cutout` (a square of half the size is set
            to zero), `color` (brightness, saturation and contrast).
        uniform: (N, draws_per_image(policies)) uniform in [0, 1).
    """
    numbers = uniform.split([DRAWS[p] for p in policies], dim=1) if policies else ()
    for policy, u in zip(policies, numbers, strict=True):
        images = {"translation": _translate, "cutout": _cutout, "color": _color}[policy](images, u)
    return images


def _translate(images: Tensor, u: Tensor) -> Tensor:
    size = images.shape[-1]
    reach = size // 8
    shift = (u * (2 * reach + 1)).long() - reach
    at = torch.arange(size, device=images.device)
    rows, columns = (at + shift[:, k, None] for k in (0, 1))
    inside = _within(rows, size)[:, :, None] & _within(columns, size)[:, None, :]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[
        batch, rows.clamp(0, size - 1)[:, :, None], columns.clamp(0, size - 1)[:, None, :]
    ]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    size = images.shape[-1]
    half = size // 4
    center = (u * (size + 1)).long()
    at = torch.arange(size, device=images.device)
    rows, columns = (_within(at - center[:, k, None] + half, 2 * half) for k in (0, 1))
    return images * ~(rows[:, :, None] & columns[:, None, :])[:, None]


def _color(images: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = (u[:, k, None, None, None] for k in range(3))
    images = images + (brightness - 0.5)
    gray = images.mean(dim=1, keepdim=True)
    images = gray + (images - gray) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def _within(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)
