"""What every loader gives, whatever decodes the images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastt2i.data.loaders.quarantine import Quarantine
from fastt2i.data.sampler import Plan

if TYPE_CHECKING:
    from typing_extensions import Self


#: What gives the batches: `memory` decodes all images once, up front; the others decode anew each time.
LoaderName = Literal["memory", "pillow", "dali"]


class Batch(NamedTuple):
    """One rank's part of a step, B samples."""

    images: Tensor
    """uint8 (B, S, S, 3), RGB."""
    caption_ids: Tensor
    """int64 (B,): rows of the text cache."""
    mismatched_ids: Tensor
    """int64 (B,): captions of other samples."""
    samples: Tensor
    """int64 (B,): places in the dataset."""


class Loader(ABC, Iterator[Batch]):
    """Batches, one a step, without end. Close it when done, or use it in a `with` statement."""

    quarantine: Quarantine
    """The images found so far that cannot be decoded."""

    @abstractmethod
    def close(self) -> None:
        """Stop what works in the background; no batch follows."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def to_batch(images: NDArray[np.uint8], plan: Plan, margin: int) -> Batch:
    """images: uint8 (B, S + margin, S + margin, 3) of the plan's samples, neither mirrored nor cut yet."""
    pixels = torch.from_numpy(images)
    if plan.flips.any():
        pixels = torch.where(torch.from_numpy(plan.flips)[:, None, None, None], pixels.flip(2), pixels)
    return cut_batch(pixels, plan, margin)


def cut_batch(images: Tensor, plan: Plan, margin: int) -> Batch:
    """images: uint8 (B, S + margin, S + margin, 3) of the plan's samples, mirrored as it says, on any device."""
    if margin:
        corners = torch.from_numpy(plan.corners).to(images.device)
        within = torch.arange(images.shape[1] - margin, device=images.device)
        rows, columns = corners[:, :1] + within, corners[:, 1:] + within
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        images = images[batch, rows[:, :, None], columns[:, None, :]]
    return Batch(images, *map(torch.from_numpy, (plan.caption_ids, plan.mismatched_ids, plan.samples)))
