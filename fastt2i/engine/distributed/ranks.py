"""Several processes as one run, through torch.distributed: NCCL on GPUs, Gloo on CPUs."""

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

from fastt2i.engine.distributed.heartbeat import EXIT_STATUS, Heartbeat, Member
from fastt2i.engine.distributed.world import World
from fastt2i.errors import UserError
from fastt2i.ops import gather_batch

T = TypeVar("T")

#: How long a rank waits for the others at the start.
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
#: How long an operation may take. The first rank evaluates and saves while the others wait, and a language model may
#: run for hours on one node; a rank that has died is found by `Heartbeat`, and not by this.
COLLECTIVE_TIMEOUT = timedelta(hours=24)
#: Seconds at the end in which this thread releases the interpreter's lock to others.
RELEASE_SECONDS = 0.2


class _CollectiveError(Exception):
    """Ends all ranks at the same place; rank 0 raises `cause` in its stead, the others exit silently."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ranks(World):
    """The collective operations of `World` among the processes that torchrun started.

    Raises:
        UserError: the others cannot be reached.
    """

    def __init__(self, rank: int, size: int, local_rank: int, *, address: str, port: int, restarted: bool) -> None:
        super().__init__(restarted=restarted)
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._vote: tuple[Tensor, dist.Work] | None = None
        store = self._open_store(address, port)
        # Before anything that waits for the others: one that dies while they connect is found out too.
        self._heartbeat = Heartbeat(store, self._gather_members(store), rank, f"{address}:{port}")
        self._previous = signal.signal(signal.SIGTERM, self._terminate)
        with self._awaiting_verdict():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore("group", store),
                rank=rank,
                world_size=size,
                timeout=COLLECTIVE_TIMEOUT,
            )
        self.group = dist.group.WORLD

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave together; if this rank fails by itself, it announces that to all, and all end."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what torchrun sends now would only cut off a last sentence
        if error is None or isinstance(error, _CollectiveError):
            with self._awaiting_verdict():
                self._finish_vote()
                self.all_gather_object(None)  # the first rank may still be saving
            self._heartbeat.close()
            self._leave()  # no rank is gone while another one polls
            signal.signal(signal.SIGTERM, self._previous)
            if isinstance(error, _CollectiveError):
                raise error.cause if self.is_first else SystemExit(EXIT_STATUS)
            return
        if _is_collective_failure(error):
            self._heartbeat.wait_for_verdict()
        self._heartbeat.close()
        where = f"rank {self.rank} on {socket.gethostname()}"
        self._heartbeat.announce_end(f"{where} has ended: {' '.join(str(error).split()) or type(error).__name__}")
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
        result = [(made, ended is not None)]
        dist.broadcast_object_list(result, src=0)
        made, failed = result[0]
        if failed:
            raise _CollectiveError(ended or SystemExit(EXIT_STATUS))
        return made  # type: ignore[return-value]

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        errors = self.all_gather_object(None if failure is None else (socket.gethostname(), str(failure)))
        failed = [rank for rank, error in enumerate(errors) if error]
        if not failed:
            return
        host, sentence = errors[failed[0]] or ("", "")
        everywhere = len({error and error[1] for error in errors}) == 1
        where = "" if everywhere or not failed[0] else f"rank {failed[0]} on {host}: "
        raise _CollectiveError(UserError(where + sentence)) from failure

    def as_collective_error(self, error: UserError) -> BaseException:
        return _CollectiveError(error)

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

    @contextmanager
    def _awaiting_verdict(self) -> Iterator[None]:
        """Operations of all ranks, which fail at once where another one dies: time to find out which."""
        try:
            yield
        except RuntimeError as error:
            if _is_collective_failure(error):
                self._heartbeat.wait_for_verdict()
            raise

    def _leave(self) -> None:
        """The last operation of all.

        Gloo's threads let go of an operation's tensors some time after it has returned, and take the interpreter's lock
        for those that nobody else holds. A thread that waits for it when the interpreter ends aborts the process.
        """
        self._last = torch.zeros(1)
        try:
            dist.all_reduce(self._last)
        except RuntimeError as error:
            if not _is_collective_failure(error):
                raise
            # A rank is gone already, which had nothing left to do either.
        time.sleep(RELEASE_SECONDS)
        dist.destroy_process_group()

    def _finish_vote(self) -> int:
        if self._vote is None:
            return 0
        (vote, work), self._vote = self._vote, None
        work.wait()
        return int(vote)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Outside the steps: torchrun ends its processes, as one of them has died or as it is ended itself."""
        self._heartbeat.check_local()
        os._exit(128 + number)

    def _open_store(self, address: str, port: int) -> dist.Store:
        serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
        if not serves:
            self._wait_for_server(address, port)
        store = dist.TCPStore(address, port, self.size, serves, timeout=RENDEZVOUS_TIMEOUT, wait_for_workers=False)
        # torchrun's store outlives the processes that it starts anew.
        return dist.PrefixStore(f"fastt2i/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _wait_for_server(self, address: str, port: int) -> None:
        until = time.monotonic() + RENDEZVOUS_TIMEOUT.total_seconds()
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

    def _gather_members(self, store: dist.Store) -> list[Member]:
        me = Member(self.rank, int(os.environ.get("GROUP_RANK", "0")), socket.gethostname(), os.getpid())
        store.set(_member(self.rank), json.dumps(me))
        members = []
        for rank in range(self.size):
            try:
                members.append(Member(*json.loads(store.get(_member(rank)))))
            except RuntimeError as error:
                raise UserError(
                    f"rank {rank} of {self.size} has not come within {RENDEZVOUS_TIMEOUT.total_seconds():.0f} seconds"
                ) from error
        return members


def _member(rank: int) -> str:
    return f"member/{rank}"


def _is_collective_failure(error: BaseException) -> bool:
    """Gloo raises a plain RuntimeError that names its source file."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
