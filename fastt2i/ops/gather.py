"""The batches of all ranks of a process group, gathered so that gradients find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastt2i.ops.checks import DTYPES


class Ranks:
    """How large every rank's batch is; making one is a collective call, and the host waits for it.

    Args:
        op: who asks, for what is said of mistakes.
        group: of this rank and the others.
        captions: (B, D) or (B, T, D) features of this rank's captions; B and T may differ from rank to rank.
        exclude: what the loss got.

    Raises:
        TypeError, ValueError: the group is none that this rank is in, or the ranks do not fit together; then every rank
            raises.
    """

    def __init__(self, op: str, group: dist.ProcessGroup, captions: Tensor, exclude: Tensor | None) -> None:
        check_group(op, group)
        self.group = group
        self.rank, count = dist.get_rank(group), dist.get_world_size(group)
        width = captions.shape[1] if captions.ndim == 3 else 1
        mine = [len(captions), width, captions.shape[-1], DTYPES.index(captions.dtype), exclude is not None]
        told = torch.tensor(mine, device=captions.device)
        everyone = told.new_empty(count * len(mine))
        dist.all_gather_into_tensor(everyone, told, group=group)
        self.sizes, widths, *same = everyone.view(count, -1).T.tolist()
        self.width: int = max(widths)
        features, dtypes, excluding = (set(values) for values in same)
        if len(features) > 1 or len(dtypes) > 1:
            kinds = sorted(str(DTYPES[number]) for number in dtypes)
            raise ValueError(
                f"{op}: the ranks have features of sizes {sorted(features)} and of {', '.join(kinds)}; size and dtype "
                "must be the same on every rank"
            )
        if len(excluding) > 1:
            raise ValueError(f"{op}: some ranks gave exclude and others did not; all must, or none")

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' rows, in the order of ranks; x: (B, ...) of this rank.

        The gradient of a row is the sum of what all ranks have for it.
        """
        gathered: Tensor = _Gather.apply(x, self.group, self.sizes)
        return gathered

    def widen(self, x: Tensor, dim: int) -> Tensor:
        """x with zeros behind its keywords, up to those of the rank that has most."""
        missing = self.width - x.shape[dim]
        return F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, missing]) if missing else x


def gather_batch(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The rows of all ranks of a group, in the order of ranks; a collective call, for which the host waits.

    The gradient of a row is the sum of what all ranks have for it. With `ids` that tell images of one class, or equal
    captions, `ids[:, None] == gather_batch(ids, group)` is the `exclude` of a loss with `gather=group`.

    Args:
        x: (B, ...) of this rank, on the group's device; B may differ from rank to rank, all else must not.
        group: of this rank and the others, such as `torch.distributed.group.WORLD`.

    Returns:
        (sum of all B, ...), differentiable once.

    Raises:
        TypeError, ValueError: the group is none that this rank is in.
    """
    check_group("gather_batch", group)
    size = torch.tensor([len(x)], device=x.device)
    sizes = size.new_empty(dist.get_world_size(group))
    dist.all_gather_into_tensor(sizes, size, group=group)
    gathered: Tensor = _Gather.apply(x, group, sizes.tolist())
    return gathered


def check_group(op: str, group: Any) -> None:
    """It is a process group, and this process is in it."""
    # What `new_group` gives to a process that is left out is no group but a number.
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{op}: gather is a process group that this process is not in")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{op}: gather is {group!r}; it must be a process group, such as torch.distributed.group.WORLD, or None"
        )


class _Gather(torch.autograd.Function):
    """Batches are padded to the largest on the way, since collectives take tensors of one size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, sizes: list[int]) -> Tensor:
        ctx.group, ctx.sizes = group, sizes
        most, ranks = max(sizes), len(sizes)
        own = x.new_zeros(most, *x.shape[1:])
        own[: len(x)] = x
        everyone = x.new_empty(ranks * most, *x.shape[1:])
        dist.all_gather_into_tensor(everyone, own, group=group)
        return torch.cat([rows[:size] for rows, size in zip(everyone.view(ranks, *own.shape), sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        most, ranks = max(ctx.sizes), len(ctx.sizes)
        everyone = gradient.new_zeros(ranks, most, *gradient.shape[1:])
        for rows, size, part in zip(everyone, ctx.sizes, gradient.split(ctx.sizes), strict=True):
            rows[:size] = part
        own = gradient.new_empty(most, *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, everyone.flatten(0, 1), group=ctx.group)
        return own[: ctx.sizes[dist.get_rank(ctx.group)]], None, None
