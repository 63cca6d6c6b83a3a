"""The processes of a run: one alone as a rule, or several that torchrun starts, which `engine.distributed` joins.

Neither this module nor a run of one process imports torch.distributed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fastt2i.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

#: What torchrun tells every process that it starts.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class World:
    """A run of one process: what several would have to agree on, it decides.

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
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was opened."""

    def print_rank0(self, sentence: str) -> None:
        """Tell the user, once for all processes."""
        if self.is_first:
            print(sentence, flush=True)

    def run_on_rank0(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on all ranks; what it raises to end the program ends all."""
        return make()

    def raise_together(self) -> AbstractContextManager[None]:
        """A block that fails on all ranks, with one sentence, if it fails on any with a `UserError`."""
        return nullcontext()

    def as_collective_error(self, error: UserError) -> BaseException:
        """What to raise for a mistake that all ranks see at the same place, so that it is told once."""
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
        """A signal's number, 0 for none, that some rank has received; all ranks are told the same at the same call."""
        return number


def join() -> World:
    """The processes that this one belongs to.

    Raises:
        UserError: the variables that torchrun sets are incomplete, or the other processes cannot be reached.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"}.intersection(os.environ):
        return World()
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        found = next(name for name in VARIABLES if os.environ.get(name))
        raise UserError(
            f"the environment has {found}, as for one of several processes, but not {', '.join(missing)}: start them "
            f"with torchrun, which sets all, or unset {found} to run in one process"
        )
    rank, size, local_rank, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
    if not 0 <= rank < size:
        raise UserError(f"RANK is {rank}; of WORLD_SIZE {size} processes it must be at least 0 and less than {size}")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if size == 1:
        return World(restarted=restarted)
    from fastt2i.engine.distributed.ranks import Ranks  # brings torch, which --help does without

    return Ranks(rank, size, local_rank, address=os.environ["MASTER_ADDR"], port=port, restarted=restarted)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"{name} is {os.environ[name]!r} in the environment; torchrun sets it to a number") from None
