"""The interface to the processes of a run, and the run of one process, which does not import torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from fastt2i.errors import UserError

T = TypeVar("T")


class World:
    """The collective operations that a run needs, for one process; `Ranks` has them for several.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those of its machine.
        restarted: whether torchrun has started the processes anew after one of them failed.
        group: the process group whose tensors are gathered; None for one process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None

    def __init__(self, *, restarted: bool = False) -> None:
        self.restarted = restarted

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was opened."""

    def print_rank0(self, sentence: str) -> None:
        """Print a line, on rank 0 alone."""
        if self.is_first:
            print(sentence, flush=True)

    def run_on_rank0(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and broadcast its result; a UserError or SystemExit that it raises ends all ranks."""
        return make()

    def raise_together(self) -> AbstractContextManager[None]:
        """A context: a `UserError` raised on any rank in it is raised on all of them, and printed once."""
        return nullcontext()

    def as_collective_error(self, error: UserError) -> BaseException:
        """The exception to raise for an error that all ranks find at the same place, so that it is printed once."""
        return error

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        return [value]

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The (B, ...) tensors of all ranks, one after the other -> (size * B, ...); without a gradient."""
        return tensor

    def all_reduce_mean_(self, tensor: Tensor) -> None:
        """Replace a tensor by its mean over all ranks."""

    def all_reduce_min_(self, tensor: Tensor) -> None:
        """Replace a tensor by its minimum over all ranks."""

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor by that of the first rank."""

    def any_signal(self, number: int) -> int:
        """The number of a signal that any rank has received, 0 for none: the same on all ranks at the same call."""
        return number
