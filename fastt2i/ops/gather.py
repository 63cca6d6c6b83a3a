"""The batches of all ranks of a process group, gathered differentiably."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastt2i.ops.checks import DTYPES
from fastt2i.ops.numerics import upcast
from fastt2i.ops.overrides import overridable

# Since torch 2.13 these two have other names, and warn under the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class GlobalBatch:
    """The batch of all ranks together, by the size of each rank's share.

    Making one is a collective call, for which the host waits, unless batch sizes are known to be equal.

    Args:
        op: the operator, for error messages.
        group: of this rank and the others.
        captions: (B, D) or (B, T, D) features of this rank's captions; B and T may differ from rank to rank.
        exclude: the loss's argument.
        equal_batch_sizes: every rank's B and T are this one's, so that no sizes are exchanged.

    Raises:
        TypeError, ValueError: the group is none that this rank is in, or the ranks do not fit together; then every rank
            raises.
    """

    def __init__(
        self, op: str, group: dist.ProcessGroup, captions: Tensor, exclude: Tensor | None, equal_batch_sizes: bool
    ) -> None:
        check_group(op, group)
        self.group = group
        self.rank, count = dist.get_rank(group), dist.get_world_size(group)
        width = captions.shape[1] if captions.ndim == 3 else 1
        if equal_batch_sizes:
            self.sizes, self.width = [len(captions)] * count, width
            return
        mine = [len(captions), width, captions.shape[-1], DTYPES.index(captions.dtype), exclude is not None]
        local = torch.tensor(mine, device=captions.device)
        gathered = local.new_empty(count * len(mine))
        _all_gather(gathered, local, group=group)
        self.sizes, widths, *others = gathered.view(count, -1).T.tolist()
        self.width = max(widths)
        features, dtypes, excluding = (set(values) for values in others)
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

        The gradient of a row is the sum of all ranks' gradients of it.
        """
        gathered: Tensor = _Gather.apply(x, self.group, self.sizes)
        return gathered

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' tensors of one shape; its gradient is the sum of all ranks' gradients."""
        total: Tensor = _Sum.apply(x, self.group)
        return total

    def logsumexp(self, x: Tensor) -> Tensor:
        """log sum exp over the rows (B, N) of all ranks -> (N,); no column is -inf on all of them."""
        highest = x.new_full(x.shape[1:], -torch.inf) if len(x) == 0 else x.detach().amax(dim=0)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        return highest + self.sum((x - highest).exp().sum(dim=0)).log()

    def pad_keywords(self, x: Tensor, dim: int) -> Tensor:
        """x padded with zeros along its keywords, to as many as the rank with most has."""
        missing = self.width - x.shape[dim]
        return F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, missing]) if missing else x


@overridable
def gather_batch(x: Tensor, group: dist.ProcessGroup, *, equal_batch_sizes: bool = False) -> Tensor:
    """The rows of all ranks of a group, in the order of ranks; a collective call.

    The host waits for it, unless `equal_batch_sizes`.

    The gradient of a row is the sum of all ranks' gradients of it. With `ids` that tell images of one class, or equal
    captions, `ids[:, None] == gather_batch(ids, group)` is the `exclude` of a loss with `gather=group`.

    Args:
        x: (B, ...) of this rank, on the group's device; B may differ from rank to rank, all else must not.
        group: of this rank and the others, such as `torch.distributed.group.WORLD`.
        equal_batch_sizes: every rank has as many rows as this one, which is for the caller to ensure.

    Returns:
        (sum of all B, ...), differentiable once.

    Raises:
        TypeError, ValueError: the group is none that this rank is in.
    """
    check_group("gather_batch", group)
    count = dist.get_world_size(group)
    if equal_batch_sizes:
        sizes = [len(x)] * count
    else:
        size = torch.tensor([len(x)], device=x.device)
        gathered_sizes = size.new_empty(count)
        _all_gather(gathered_sizes, size, group=group)
        sizes = gathered_sizes.tolist()
    gathered: Tensor = _Gather.apply(x, group, sizes)
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
        own = x.contiguous()
        if len(x) < most:
            own = x.new_zeros(most, *x.shape[1:])
            own[: len(x)] = x
        gathered = x.new_empty(ranks * most, *x.shape[1:])
        _all_gather(gathered, own, group=group)
        if min(sizes) == most:
            return gathered
        return torch.cat([rows[:size] for rows, size in zip(gathered.view(ranks, *own.shape), sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        most, ranks = max(ctx.sizes), len(ctx.sizes)
        gathered = gradient.contiguous()
        if min(ctx.sizes) < most:
            gathered = gradient.new_zeros(ranks, most, *gradient.shape[1:])
            for rows, size, part in zip(gathered, ctx.sizes, gradient.split(ctx.sizes), strict=True):
                rows[:size] = part
            gathered = gathered.flatten(0, 1)
        gathered = upcast(gathered)  # so that a sum over many ranks is rounded once
        own = gathered.new_empty(most, *gradient.shape[1:])
        _reduce_scatter(own, gathered, group=ctx.group)
        return own[: ctx.sizes[dist.get_rank(ctx.group)]].to(gradient.dtype), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
