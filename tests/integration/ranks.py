"""One rank of four, run by test_gathered_losses.py: `python ranks.py RANK FOLDER`; what it finds goes into FOLDER."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastt2i.nn import RegionKeywordLoss
from fastt2i.ops import gather_batch, global_match_loss

WORLD = 4


class Case(NamedTuple):
    """What a rank does, and what one process with the whole batch does."""

    variant: str
    impl: str
    exclude: bool
    sizes: tuple[int, ...]
    """Of the ranks' batches."""


CASES = [
    Case("xmc", "torch", True, (2, 2)),
    Case("damsm", "reference", False, (3, 1)),
    Case("xmc", "reference", True, (4, 0)),
    Case("damsm", "torch", True, (2, 2, 2, 2)),
    Case("xmc", "torch", False, (2, 3, 1, 4)),
    Case("damsm", "torch", True, (1, 0, 5, 2)),
    Case("xmc", "reference", False, (0, 0, 3, 0)),
]


class Encoders(nn.Module):
    """Images and words to features; and both losses of these."""

    def __init__(self, case: Case, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 8), nn.Linear(5, 8)
        self.region_loss = RegionKeywordLoss(case.variant, 4.0, 5.0, 10.0, gather=group, impl=case.impl)
        self.group = group

    def forward(self, images: Tensor, words: Tensor, mask: Tensor, exclude: Tensor | None) -> Tensor:
        regions, keywords = self.image(images), self.text(words)
        sentences = (keywords * mask[..., None]).sum(dim=1)
        loss = self.region_loss(regions, keywords, mask, exclude=exclude)
        return torch.stack(
            [loss, global_match_loss(regions.mean(dim=1), sentences, exclude=exclude, gather=self.group)]
        )


def batch(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole batch: images (B, 7, 6), words (B, 5, 5), mask, classes."""
    random = torch.Generator().manual_seed(3)
    size = sum(case.sizes)
    lengths = torch.randint(0, 6, (size, 1), generator=random)
    return (
        torch.randn(size, 7, 6, generator=random),
        torch.randn(size, 5, 5, generator=random),
        torch.arange(5) < lengths,
        torch.randint(0, 3, (size,), generator=random),
    )


def results(model: nn.Module, losses: Tensor) -> list[Tensor]:
    """Both losses, and the gradients of a sum of them."""
    (losses * torch.tensor([1.0, 0.5])).sum().backward()
    return [losses.detach(), *(p.grad for p in model.parameters())]


def alone(case: Case) -> list[Tensor]:
    """What one process finds."""
    model, (images, words, mask, classes) = Encoders(case, None), batch(case)
    exclude = classes[:, None] == classes if case.exclude else None
    return results(model, model(images, words, mask, exclude))


def together(case: Case, group: dist.ProcessGroup) -> list[Tensor]:
    """What this rank finds of its share, whose captions are cut to the longest of them."""
    rank = dist.get_rank(group)
    images, words, mask, classes = (x.split(case.sizes)[rank] for x in batch(case))
    width = max(1, int(mask.sum(dim=1).amax())) if len(mask) else 1
    model = DistributedDataParallel(Encoders(case, group), process_group=group)
    exclude = classes[:, None] == gather_batch(classes, group) if case.exclude else None
    return results(model, model(images, words[:, :width], mask[:, :width], exclude))


def mistakes(group: dist.ProcessGroup) -> list[str]:
    """What is said of batches that do not fit together."""
    rank, said = dist.get_rank(group), []
    x = torch.randn(2, 3)
    longer, wider = torch.randn(2, 3 + rank), x.double() if rank % 2 else x
    for run in (
        lambda: global_match_loss(longer, longer, gather=group),
        lambda: global_match_loss(wider, wider, gather=group),
        lambda: global_match_loss(x, x, exclude=None if rank else torch.zeros(2, 8).bool(), gather=group),
        lambda: global_match_loss(x, x, exclude=torch.zeros(2, 2).bool(), gather=group),
    ):
        try:
            run()
        except ValueError as error:
            said.append(str(error))
    return said


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    pair, world = dist.new_group([0, 1]), dist.group.WORLD
    found: dict[str, object] = {}
    for case in CASES:
        if len(case.sizes) == WORLD:
            found[str(case)] = together(case, world)
        elif rank < 2:
            found[str(case)] = together(case, pair)
    if rank >= 2:
        try:
            gather_batch(torch.zeros(1), pair)
        except ValueError as error:
            found["outside"] = str(error)
    found["mistakes"] = mistakes(world)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # a thread of Gloo that still lets go of a tensor while the interpreter ends would abort it


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
