"""Who of the ranks is alive: one that ends before its time ends all.

A collective operation does not tell who is missing, and on a GPU it does not even return. So every rank looks itself,
in threads of its own: at the processes of its node by their ids, and at the other nodes by signs of life that one
rank of each leaves in the store where torchrun's processes meet.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist

#: Seconds between two looks.
EVERY = 1.0
#: Seconds of silence after which a node counts as dead: far more than what keeps a thread from running, and so few that
#: all ranks have ended within a minute.
SILENCE = 25.0
#: Status of ranks that end because another one has.
STATUS = 1

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


class Watch:
    """Ends this process, from a thread, once another one of the run has ended before its time.

    The main thread may be inside an operation that never returns. Files are written so that a process may end at any
    moment.

    Args:
        store: where the ranks meet.
        members: all processes, by rank.
        rank: of this one.
        address: of the store, to be named when it does not answer.
    """

    def __init__(self, store: dist.Store, members: Sequence[Member], rank: int, address: str) -> None:
        # A connection each: one that waits for an answer keeps nobody else from asking.
        self._read, self._write = store.clone(), store.clone()  # type: ignore[attr-defined]
        self._me = members[rank]
        self._address = address
        self._neighbours = [m for m in members if m.node == self._me.node and m.rank != rank]
        self._nodes: dict[int, list[Member]] = {}
        for member in members:
            self._nodes.setdefault(member.node, []).append(member)
        self._leads = self._nodes[self._me.node][0] is self._me
        self._over = threading.Event()
        self._ending = threading.Lock()
        self._answered = time.monotonic()
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._look_around, self._look_afar)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Look no more: this rank is about to leave, and the others know."""
        self._over.set()

    def await_verdict(self) -> None:
        """After a collective operation has failed: wait for what the threads find. Returns if all ranks are alive."""
        time.sleep(SILENCE + 5 * EVERY)

    def look_now(self) -> None:
        """End at once if a process of this node is gone."""
        for member in self._neighbours:
            if not _exists(member.pid):
                self._end(f"{member} has ended without a word: it was killed, or has crashed")

    def tell(self, sentence: str) -> tuple[int, str]:
        """Let all ranks know why the run ends: who has told it first, and what."""
        mine = json.dumps([self._me.rank, sentence])
        try:
            first: tuple[int, str] = tuple(json.loads(self._write.compare_set(_ENDED, "", mine)))
        except RuntimeError:  # the store's process has ended too
            return self._me.rank, sentence
        return first

    def _look_around(self) -> None:
        while not self._over.wait(EVERY):
            self.look_now()
            if time.monotonic() - self._answered > SILENCE:
                first = self._nodes[min(self._nodes)][0]
                self._end(f"{first.host} with rank 0, at {self._address}, has been silent for {SILENCE:.0f} seconds")

    def _look_afar(self) -> None:
        heard = {node: (b"", time.monotonic()) for node in self._nodes if node != self._me.node}
        beats = 0
        try:
            while not self._over.wait(EVERY):
                if self._read.check([_ENDED]):
                    self._end("another rank has ended")
                if self._leads and heard:
                    beats += 1
                    self._read.set(_beat(self._me.node), str(beats))
                    self._listen(heard)
                self._answered = time.monotonic()
        except RuntimeError:
            return  # `_look_around` finds out that there are no more answers

    def _listen(self, heard: dict[int, tuple[bytes, float]]) -> None:
        now = time.monotonic()
        for node, (last, at) in heard.items():
            beat = self._read.get(_beat(node)) if self._read.check([_beat(node)]) else b""
            if beat != last:
                heard[node] = (beat, now)
            elif now - at > SILENCE:
                ranks = ", ".join(str(member.rank) for member in self._nodes[node])
                self._end(f"{self._nodes[node][0].host} with rank {ranks} has been silent for {SILENCE:.0f} seconds")

    def _end(self, sentence: str) -> None:
        """End this process; on each node, who has found the reason tells it, or else the node's first rank."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # the other thread is at it
        if self._over.is_set():
            return
        told: list[tuple[int, str]] = []
        telling = threading.Thread(target=lambda: told.append(self.tell(sentence)), daemon=True)
        telling.start()
        telling.join(3 * EVERY)  # a store that cannot be reached does not answer
        finder, reason = told[0] if told else (self._me.rank, sentence)
        finder_is_here = any(member.rank == finder for member in self._nodes[self._me.node])
        if finder == self._me.rank or (self._leads and not finder_is_here):
            print(f"fastt2i: error: {reason}; all ranks end; go on with --resume", file=sys.stderr, flush=True)
        os._exit(STATUS)


def _beat(node: int) -> str:
    return f"beat/{node}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
