"""DiffAugment (Zhao et al. 2020): the discriminator sees every image, real or fake, through random changes that
pass gradients. The random numbers are an argument, so that a step is a pure function of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    reach = images.shape[-1] // 8
    shift = (u * (2 * reach + 1)).long() - reach
    # A compiler's own derivative of the gather is fused with what is around it.
    return _shifted(images, shift) if torch.compiler.is_compiling() else _Shift.apply(images, shift)


class _Shift(torch.autograd.Function):
    """A shift whose derivative is the shift back: torch's, of any gather, is a scatter, for which a GPU sorts."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(shift)
        return _shifted(images, shift)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (shift,) = ctx.saved_tensors
        return _Shift.apply(upstream, -shift), None


def _shifted(images: Tensor, shift: Tensor) -> Tensor:
    """images (N, 3, S, S) with what was at (row, column) + shift (N, 2) at (row, column), and zeros from outside."""
    size = images.shape[-1]
    position = torch.arange(size, device=images.device) + shift[:, :, None]  # (N, 2, S)
    nearest = position.clamp(0, size - 1)
    rows, columns = _outer(nearest)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, rows, columns]
    inside_rows, inside_columns = _outer(position == nearest)
    return (moved * (inside_rows & inside_columns)[..., None]).permute(0, 3, 1, 2)


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    size = images.shape[-1]
    half = size // 4
    center = (u * (size + 1)).long()
    position = torch.arange(half, half + size, device=images.device) - center[:, :, None]  # (N, 2, S)
    rows, columns = _outer(position == position.clamp(0, 2 * half - 1))
    return images * ~(rows & columns)[:, None]


def _outer(by_axis: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2, S) as what is of rows, (N, S, 1), and of columns, (N, 1, S)."""
    return by_axis[:, 0, :, None], by_axis[:, 1, None, :]


def _color(images: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = (u[:, k, None, None, None] for k in range(3))
    images = images + (brightness - 0.5)
    gray = images.mean(dim=1, keepdim=True)
    images = gray + (images - gray) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)
