"""SIGKILL at random moments: what is begun again ends as if nothing had happened, byte for byte."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

from tests.campaign.parts import Outcome, Part
from tests.campaign.processes import Process, run
from tests.campaign.works import Files, Inputs, Work, all_works

#: In how many of a work's first trials it is killed; training, which keeps the most, more often than the others.
WEIGHTS = {"training": 4}
#: Times that a work is killed before it may end.
MOST_KILLS = 3


class Kills(Part):
    name, unit, planned, share = "kills", "kill", 100, 0.25

    def prepare(self, folder: Path) -> None:
        inputs = Inputs.make(folder / "inputs")
        self._log = folder / "output.txt"
        works = all_works(folder / "work", inputs)
        self._works = [work for work in works for _ in range(WEIGHTS.get(work.name, 1))]
        self._whole: dict[str, Files] = {}
        self._seconds: dict[str, float] = {}
        for work in works:
            self._whole[work.name] = work.undisturbed(self._log)
            started = time.monotonic()
            work.undisturbed(self._log)
            self._seconds[work.name] = time.monotonic() - started
            work.assert_result(self._whole[work.name])  # or the comparisons say nothing

    def trial(self, number: int, moments: random.Random) -> Outcome:
        work = self._works[number % len(self._works)]
        work.clear()
        kills = 0
        for _ in range(moments.randint(1, MOST_KILLS)):
            if not self._kill(work, moments.uniform(0, self._seconds[work.name])):
                break
            kills += 1
            work.check()
        run(work.go_on, self._log, work.environment).succeeded()
        work.assert_result(self._whole[work.name])
        work.check()
        return Outcome(kills, Counter({work.name: kills}))

    def _kill(self, work: Work, moment: float) -> bool:
        """Begin or go on, and kill it after so many seconds; whether it had not ended before."""
        process = Process(work.go_on, self._log, work.environment)
        until = time.monotonic() + moment
        while time.monotonic() < until:
            if process.has_ended():
                process.ended().succeeded()
                return False
            time.sleep(0.001)
        process.kill()
        if process.ended().status == -signal.SIGKILL:
            return True
        process.ended().succeeded()
        return False
