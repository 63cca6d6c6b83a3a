"""Failure detection: a rank that dies ends all ranks, with a sentence that names it.

A collective operation does not tell which rank is missing, and on a GPU it does not even return. So every rank polls in
threads of its own: the processes of its node by their ids and states, and the other nodes by a counter that one rank of
each node increments in the store of the rendezvous.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

#: Seconds between two polls.
POLL_SECONDS = 1.0
#: Seconds without a heartbeat after which a node counts as dead: far more than a thread is ever kept waiting, and so
#: few that all ranks have ended within a minute.
TIMEOUT_SECONDS = 25.0
#: Seconds between two polls that tell a process that it was stopped itself, as by Ctrl-Z, and has heard nobody since.
PAUSE_SECONDS = 10.0
#: Exit status of ranks that end because another one has.
EXIT_STATUS = 1

_ENDED = "ended"


class Member(NamedTuple):
    """A process of the run."""

    rank: int
    node: int
    """Number of the torchrun that started it."""
    host: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


class Heartbeat:
    """Ends this process, from a thread, once another process of the run has died.

    The main thread may be inside an operation that never returns. Files are written so that a process may end at any
    moment.

    Args:
        store: the key-value store of the rendezvous.
        members: all processes, by rank.
        rank: of this one.
        address: of the store, for the error when it does not answer.
    """

    def __init__(self, store: dist.Store, members: Sequence[Member], rank: int, address: str) -> None:
        # A connection for each thread: one that waits for an answer does not block the other.
        self._read, self._write = store.clone(), store.clone()  # type: ignore[attr-defined]
        self._me = members[rank]
        self._address = address
        self._local_members = [m for m in members if m.node == self._me.node and m.rank != rank]
        self._nodes: dict[int, list[Member]] = {}
        for member in members:
            self._nodes.setdefault(member.node, []).append(member)
        self._sends_heartbeat = self._nodes[self._me.node][0] is self._me
        self._closed = threading.Event()
        self._ending = threading.Lock()
        self._last_answer = time.monotonic()
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._poll_local, self._poll_nodes)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop polling: this rank is about to leave, and the others know."""
        self._closed.set()

    def wait_for_verdict(self) -> None:
        """Wait for the threads to find a dead rank after a collective has failed; returns if all are alive."""
        time.sleep(TIMEOUT_SECONDS + 5 * POLL_SECONDS)

    def check_local(self) -> None:
        """End at once if a process of this node is gone."""
        for member in self._local_members:
            if not _is_running(member.pid):
                self._end(f"{member} has ended without a word: it was killed, or has crashed")

    def announce_end(self, sentence: str) -> tuple[int, str]:
        """Announce to all ranks why the run ends; returns the rank that announced an end first, and its reason."""
        mine = json.dumps([self._me.rank, sentence])
        try:
            first: tuple[int, str] = tuple(json.loads(self._write.compare_set(_ENDED, "", mine)))
        except RuntimeError:  # the store's process has ended too
            return self._me.rank, sentence
        return first

    def _poll_local(self) -> None:
        stopped: dict[int, float] = {}
        last = time.monotonic()
        while not self._closed.wait(POLL_SECONDS):
            self.check_local()
            now = time.monotonic()
            if _was_stopped(last, now):  # it hears again from now on
                self._last_answer = now
                stopped.clear()
            last = now
            for member in self._local_members:
                if not _is_stopped(member.pid):
                    stopped.pop(member.rank, None)
                elif now - stopped.setdefault(member.rank, now) > TIMEOUT_SECONDS:
                    self._end(f"{member} has been stopped for {TIMEOUT_SECONDS:.0f} seconds")
            if now - self._last_answer > TIMEOUT_SECONDS:
                first = self._nodes[min(self._nodes)][0]
                self._end(
                    f"{first.host} with rank 0, at {self._address}, has been silent for {TIMEOUT_SECONDS:.0f} seconds"
                )

    def _poll_nodes(self) -> None:
        heard = {node: (b"", time.monotonic()) for node in self._nodes if node != self._me.node}
        beats, last = 0, time.monotonic()
        try:
            while not self._closed.wait(POLL_SECONDS):
                if self._read.check([_ENDED]):
                    self._end("another rank has ended")
                if self._sends_heartbeat and heard:
                    beats += 1
                    self._read.set(_heartbeat_key(self._me.node), str(beats))
                    self._read_heartbeats(heard, last)
                self._last_answer = last = time.monotonic()
        except RuntimeError:
            return  # `_poll_local` notices that there are no more answers

    def _read_heartbeats(self, heard: dict[int, tuple[bytes, float]], last: float) -> None:
        """last: when they were read before."""
        now = time.monotonic()
        paused = _was_stopped(last, now)
        for node, (before, at) in heard.items():
            beat = self._read.get(_heartbeat_key(node)) if self._read.check([_heartbeat_key(node)]) else b""
            if beat != before or paused:
                heard[node] = (beat, now)
            elif now - at > TIMEOUT_SECONDS:
                ranks = ", ".join(str(member.rank) for member in self._nodes[node])
                self._end(
                    f"{self._nodes[node][0].host} with rank {ranks} has been silent for {TIMEOUT_SECONDS:.0f} seconds"
                )

    def _end(self, sentence: str) -> None:
        """End this process; on each node the rank that found the reason prints it, or else the node's first rank."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # the other thread is ending the process
        if self._closed.is_set():
            return
        announced: list[tuple[int, str]] = []
        thread = threading.Thread(target=lambda: announced.append(self.announce_end(sentence)), daemon=True)
        thread.start()
        thread.join(3 * POLL_SECONDS)  # a store that cannot be reached does not answer
        finder, reason = announced[0] if announced else (self._me.rank, sentence)
        finder_is_here = any(member.rank == finder for member in self._nodes[self._me.node])
        if finder == self._me.rank or (self._sends_heartbeat and not finder_is_here):
            # A line of its own: another thread's progress bar may stand on this one.
            print(f"\nfastt2i: error: {reason}; all ranks end; go on with --resume", file=sys.stderr, flush=True)
        os._exit(EXIT_STATUS)


def _heartbeat_key(node: int) -> str:
    return f"heartbeat/{node}"


def _was_stopped(last: float, now: float) -> bool:
    """Whether this process was stopped itself between two polls."""
    return now - last > PAUSE_SECONDS


def _is_running(pid: int) -> bool:
    """Whether a process has not ended; one that has, and that nobody has waited for yet, has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _state(pid) != b"Z"


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP; False where the system does not tell."""
    return _state(pid) in (b"T", b"t")


def _state(pid: int) -> bytes:
    """The letter that Linux has for the state of a process; empty where it is gone or the system is another."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return b""
