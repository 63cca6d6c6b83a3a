"""Several processes as one run: they meet through torch.distributed, over NCCL on GPUs and Gloo on CPUs."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastt2i.engine.distributed.heartbeat import STATUS, Member, Watch
from fastt2i.engine.distributed.world import World
from fastt2i.errors import UserError
from fastt2i.ops import gather_batch

T = TypeVar("T")

#: How long a rank waits for the others to come.
MEETING = timedelta(minutes=5)
#: How long an operation may take. The first rank evaluates and saves while the others wait, and a language model may
#: run for hours on one node; who has died is found out by `Watch`, and not by this.
PATIENCE = timedelta(hours=24)
#: Seconds at the end in which this thread leaves the interpreter to others.
LETTING_GO = 0.2


class _Agreed(Exception):
    """Ends all ranks at the same place; the first one raises `cause` in its stead, the others end without a word."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ranks(World):
    """This process among those that torchrun started; see `World`.

    Raises:
        UserError: the others cannot be reached.
    """

    def __init__(self, rank: int, size: int, local_rank: int, *, address: str, port: int, restarted: bool) -> None:
        super().__init__(restarted=restarted)
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._vote: tuple[Tensor, dist.Work] | None = None
        store = self._meet(address, port)
        # Before anything that waits for the others: one that dies while they connect is found out too.
        self._watch = Watch(store, self._introduce(store), rank, f"{address}:{port}")
        self._previous = signal.signal(signal.SIGTERM, self._terminate)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
        self.group = dist.group.WORLD

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave together; if this rank fails by itself, all are told and end."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what torchrun sends now would only cut off a last sentence
        if error is None or isinstance(error, _Agreed):
            self._finish_vote()
            self.all_gather_object(None)  # the first rank may still be saving
            self._watch.close()
            self._part()  # no rank is gone while another one looks
            signal.signal(signal.SIGTERM, self._previous)
            if isinstance(error, _Agreed):
                raise error.cause if self.is_first else SystemExit(STATUS)
            return
        if _is_of_a_collective(error):
            self._watch.await_verdict()
        self._watch.close()
        where = f"rank {self.rank} on {socket.gethostname()}"
        self._watch.tell(f"{where} has ended: {' '.join(str(error).split()) or type(error).__name__}")
        if isinstance(error, UserError) and not self.is_first:
            raise UserError(f"{where}: {error}") from error

    def run_on_rank0(self, make: Callable[[], T]) -> T:
        made: T | None = None
        ended: UserError | SystemExit | None = None
        if self.is_first:
            try:
                made = make()
            except (UserError, SystemExit) as error:
                ended = error
        told = [(made, ended is not None)]
        dist.broadcast_object_list(told, src=0)
        made, failed = told[0]
        if failed:
            raise _Agreed(ended or SystemExit(STATUS))
        return made  # type: ignore[return-value]

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        told = self.all_gather_object(None if failure is None else (socket.gethostname(), str(failure)))
        failed = [rank for rank, said in enumerate(told) if said]
        if not failed:
            return
        host, sentence = told[failed[0]] or ("", "")
        everywhere = len({said and said[1] for said in told}) == 1
        where = "" if everywhere or not failed[0] else f"rank {failed[0]} on {host}: "
        raise _Agreed(UserError(where + sentence)) from failure

    def as_collective_error(self, error: UserError) -> BaseException:
        return _Agreed(error)

    def all_gather_object(self, value: T) -> list[T]:
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def all_gather(self, tensor: Tensor) -> Tensor:
        return gather_batch(tensor.detach(), self.group, equal_batch_sizes=True)

    def all_reduce_mean_(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor)
        tensor /= self.size

    def all_reduce_min_(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)

    def broadcast_(self, tensor: Tensor) -> None:
        dense = tensor.detach().contiguous()
        dist.broadcast(dense, src=0)
        tensor.detach().copy_(dense)

    def any_signal(self, number: int) -> int:
        # Hosts ask each other, past the devices, and read the answer one call later: none waits for one that is less
        # than a step behind.
        agreed = self._finish_vote()
        vote = torch.tensor([number])
        work = dist.all_reduce(vote, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._vote = vote, work
        return agreed

    def _part(self) -> None:
        """The last operation of all.

        Gloo's threads let go of an operation's tensors some time after it has returned, and take the interpreter's lock
        for those that nobody else holds. A thread that waits for it when the interpreter ends aborts the process.
        """
        self._last = torch.zeros(1)
        dist.all_reduce(self._last)
        time.sleep(LETTING_GO)
        dist.destroy_process_group()

    def _finish_vote(self) -> int:
        if self._vote is None:
            return 0
        (vote, work), self._vote = self._vote, None
        work.wait()
        return int(vote)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Outside the steps: torchrun ends its processes, as one of them has died or as it is ended itself."""
        self._watch.look_now()
        os._exit(128 + number)

    def _meet(self, address: str, port: int) -> dist.Store:
        serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
        if not serves:
            self._await_server(address, port)
        store = dist.TCPStore(address, port, self.size, serves, timeout=MEETING, wait_for_workers=False)
        # torchrun's store outlives the processes that it starts anew.
        return dist.PrefixStore(f"fastt2i/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _await_server(self, address: str, port: int) -> None:
        until = time.monotonic() + MEETING.total_seconds()
        while True:
            try:
                socket.create_connection((address, port), timeout=10).close()
                return
            except OSError as error:
                if isinstance(error, socket.gaierror) or time.monotonic() > until:
                    raise UserError(
                        f"rank {self.rank} cannot reach {address}:{port}, where the ranks meet ({error}); MASTER_ADDR "
                        "and MASTER_PORT have to name the machine of rank 0"
                    ) from error
            time.sleep(1)

    def _introduce(self, store: dist.Store) -> list[Member]:
        me = Member(self.rank, int(os.environ.get("GROUP_RANK", "0")), socket.gethostname(), os.getpid())
        store.set(_member(self.rank), json.dumps(me))
        members = []
        for rank in range(self.size):
            try:
                members.append(Member(*json.loads(store.get(_member(rank)))))
            except RuntimeError as error:
                raise UserError(
                    f"rank {rank} of {self.size} has not come within {MEETING.total_seconds():.0f} seconds"
                ) from error
        return members


def _member(rank: int) -> str:
    return f"member/{rank}"


def _is_of_a_collective(error: BaseException) -> bool:
    """Gloo raises a plain RuntimeError that names its source file."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
