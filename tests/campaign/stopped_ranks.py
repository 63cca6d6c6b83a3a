"""One of two processes of a run is killed, stopped for good, stopped for a while, or slowed.

The run ends with a sentence or goes on; nothing waits for longer than its time limit, and what is resumed ends as if
nothing had happened.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from fastt2i.engine.distributed import heartbeat, ranks
from tests.campaign.parts import Outcome, Part
from tests.campaign.processes import LIMIT, Ended, Fault, Process
from tests.campaign.works import Inputs, training
from tests.integration.test_distributed import free_port

KINDS = ("killed", "stopped for good", "stopped for a while", "slowed")
#: Seconds of silence after which ranks are dead here; 25 in the field.
SILENCE = 12.0
#: How long a rank waits for the other at the start; five minutes in the field.
MEETING = timedelta(seconds=40)


class StoppedRanks(Part):
    name, unit, planned, share = "ranks", "rank", 60, 0.12

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        options = ("--train.precision", "fp32", "--train.batch-size", 8)
        self._work = training(folder / "work", Inputs.make(folder / "inputs"), *options)
        for _ in range(2):
            self._work.clear()
            started = time.monotonic()
            for ended in self._end(self._begin()):
                ended.succeeded()
            self._seconds = time.monotonic() - started
        self._whole = self._work.result()

    def trial(self, number: int, moments: random.Random) -> Outcome:
        kind, rank = KINDS[number % len(KINDS)], moments.randrange(2)
        self._work.clear()
        begun = self._begin()
        time.sleep(moments.uniform(0, self._seconds))
        if begun[rank].has_ended():
            return self._compare(begun, "had ended before")
        if kind == "killed":
            begun[rank].kill()
        elif kind == "stopped for good":
            _send(begun[rank], signal.SIGSTOP)
        else:
            for _ in range(1 if kind == "stopped for a while" else 20):
                _send(begun[rank], signal.SIGSTOP)
                time.sleep(moments.uniform(0, SILENCE / 3 if kind == "stopped for a while" else 0.3))
                _send(begun[rank], signal.SIGCONT)
                time.sleep(moments.uniform(0, 0.1))
            return self._compare(begun, kind)
        other = begun[1 - rank].wait(SILENCE + LIMIT / 2)
        if kind != "killed":
            begun[rank].kill()
        if other.status:
            other.told()
            kind += ", told"
        self._work.check()
        return self._compare(self._begin(), kind)

    def _compare(self, begun: list[Process], kind: str) -> Outcome:
        for ended in self._end(begun):
            ended.succeeded()
        self._work.assert_result(self._whole)
        return Outcome(1, Counter({kind: 1}))

    def _begin(self) -> list[Process]:
        port = str(free_port())
        return [Process(self._job, self._log(rank), self._environment(rank, port)) for rank in range(2)]

    def _job(self) -> int:
        heartbeat.TIMEOUT_SECONDS = SILENCE
        ranks.RENDEZVOUS_TIMEOUT = MEETING
        return self._work.go_on()

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.txt"

    def _environment(self, rank: int, port: str) -> dict[str, str]:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        return {**self._work.environment, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}

    def _end(self, begun: list[Process]) -> list[Ended]:
        try:
            return [process.wait() for process in begun]
        except Fault:
            for process in begun:
                if not process.has_ended():
                    process.kill()
            raise


def _send(process: Process, number: signal.Signals) -> None:
    if not process.has_ended():
        os.kill(process.pid, number)
