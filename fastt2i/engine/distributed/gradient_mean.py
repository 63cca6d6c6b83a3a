"""The mean of gradients over all ranks, taken while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn

#: Bytes of gradients in one operation: enough for the links' full speed, and so few that the first ones travel while
#: the backward pass computes the rest.
BUCKET = 4 * 2**20


class _Bucket:
    """Parameters whose gradients travel together, and the views of one vector that they travel in."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.flat = parameters[0].new_zeros(sum(p.numel() for p in parameters))
        self.views: list[Tensor] = []
        start = 0
        for parameter in parameters:
            # With the strides of the parameter, which fused optimizers walk along.
            dense = torch.empty_like(parameter)
            self.views.append(self.flat.as_strided(parameter.shape, dense.stride(), start))
            start += parameter.numel()
        self.missing = len(parameters)
        self.work: dist.Work | None = None


class GradientMean:
    """While the context is open, `backward` leaves the mean over all ranks in every `grad`.

    In place of DistributedDataParallel, which wraps a module's forward pass and expects one pass and one backward for
    it: here the discriminator is called for the update of both players, once more for a penalty that is differentiated
    twice, and one generator pass serves two updates. What has to be averaged is simply what an update's one `backward`
    leaves in the parameters, whatever was called before it; hooks on the parameters see exactly that, once each.

    Buckets are filled and sent in one fixed order, that in which a backward pass finishes them, so all ranks send the
    same thing at the same time. The vectors stay where they are, so it can be part of a CUDA graph.

    Args:
        parameters: of one dtype and device; every backward must reach the same ones on all ranks.
        size: number of ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], size: int) -> None:
        self._size = size
        self._buckets = [_Bucket(group) for group in _grouped(list(parameters)[::-1])]
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        self._open = False
        self._sent = 0
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._note)

    @property
    def groups(self) -> list[list[nn.Parameter]]:
        """The parameters whose gradients travel together."""
        return [bucket.parameters for bucket in self._buckets]

    def __enter__(self) -> None:
        self._open, self._sent = True, 0
        for bucket in self._buckets:
            bucket.missing, bucket.work = len(bucket.parameters), None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if error is not None:
            return
        while self._sent < len(self._buckets):  # those with a parameter that this backward did not reach
            self._send()
        for bucket in self._buckets:
            assert bucket.work is not None
            bucket.work.wait()
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                if parameter.grad is not None:
                    parameter.grad = view

    def _note(self, parameter: Tensor) -> None:
        if not self._open:
            return
        self._bucket_of[parameter].missing -= 1  # type: ignore[index]
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self._buckets[self._sent]
        self._sent += 1
        reached = [(v, p.grad) for v, p in zip(bucket.views, bucket.parameters, strict=True) if p.grad is not None]
        if len(reached) < len(bucket.views):
            bucket.flat.zero_()
        if reached:
            views, gradients = zip(*reached, strict=True)
            torch._foreach_copy_(views, gradients)
        bucket.flat /= self._size
        bucket.work = dist.all_reduce(bucket.flat, async_op=True)


def _grouped(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if not groups or parameter.nbytes > room:
            groups.append([])
            room = BUCKET
        groups[-1].append(parameter)
        room -= parameter.nbytes
    return groups
