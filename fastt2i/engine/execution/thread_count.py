"""How many threads compute a step on a CPU that other programs use too.

The threads of a step wait for each other many hundred times: where one of them has to share its core, all wait, and a
step can take far longer with several threads than with one. Whether they share is seen from the processor time that the
process gets; how many threads are faster then is measured.

Sums are taken in parts, one for each thread, so that their last bits depend on the number of threads: of the 26
gradients of the demo's generator in float32 and its images, 5 differ between one and two threads, by up to 3e-6 of
their norm (torch 2.13.0, AMD EPYC); between two runs of two threads none does.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastt2i.devices.cores import usable_cores

if TYPE_CHECKING:
    import torch

#: Share of the processor time of all its threads that an undisturbed step gets at least: waiting threads spin.
UNDISTURBED = 0.85
#: Disturbed steps in a row after which one thread is tried: so many, or two that take so many seconds together.
PATIENCE, SLOW_SECONDS = 4, 2.0
#: Steps that are timed with one thread, after one that is not.
TIMED = 3
#: Seconds until another number is tried again, which double each time up to the second number.
FIRST_WAIT, LONGEST_WAIT = 60.0, 600.0


class ThreadCount:
    """Takes one thread while other programs keep several from getting on, and all of them otherwise.

    Args:
        most: threads of a step that is undisturbed; more than 1.
        set_threads: sets how many compute from now on.
        print_line: prints a line for the user.
        may_change: whether to act, or only to tell once. The last bits of sums depend on the number of threads.
        clock: seconds.
    """

    def __init__(
        self,
        most: int,
        set_threads: Callable[[int], None],
        print_line: Callable[[str], None],
        *,
        may_change: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._set_threads, self._print_line = most, set_threads, print_line
        self._may_change, self._clock = may_change, clock
        self._disturbed: list[float] = []
        self._alone: list[float] = []
        self._wait, self._next_trial = FIRST_WAIT, 0.0
        self._phase: Callable[[float, float], None] = self._watch

    def step_took(self, wall: float, cpu: float) -> None:
        """Note a step: its seconds, and the processor time of all threads in it."""
        self._phase(wall, cpu)

    def _watch(self, wall: float, cpu: float) -> None:
        """All threads compute."""
        if cpu >= UNDISTURBED * wall * self._most:
            self._disturbed = []
            return
        self._disturbed.append(wall)
        count, total = len(self._disturbed), sum(self._disturbed)
        if (count < PATIENCE and (count < 2 or total < SLOW_SECONDS)) or self._clock() < self._next_trial:
            return
        if self._may_change:
            self._use(1, self._try_one)
        elif self._next_trial == 0:
            self._next_trial = float("inf")
            self._print_line(
                f"other programs use the cores that the {self._most} threads of a step wait for; their number stays, "
                "as the last bits of fp32 depend on it: --engine.threads 1 may be faster"
            )

    def _try_one(self, wall: float, cpu: float) -> None:
        """One thread computes, and is timed."""
        self._alone.append(wall)
        if len(self._alone) <= TIMED:
            return
        one, all_ = statistics.median(self._alone[1:]), statistics.median(self._disturbed)
        self._postpone()
        if one >= all_:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            self._use(self._most, self._watch)
            return
        self._phase = self._stay_with_one
        self._print_line(
            f"other programs use the cores: a step takes {one:.2f} s with one thread and {all_:.2f} s with "
            f"{self._most}; going on with one, until more are faster again"
        )

    def _stay_with_one(self, wall: float, cpu: float) -> None:
        """One thread computes, until it is time to see whether all are faster again."""
        self._alone = [*self._alone[-TIMED:], wall]
        if self._clock() >= self._next_trial:
            self._use(self._most, self._try_all)

    def _try_all(self, wall: float, cpu: float) -> None:
        """All threads compute, for two steps at most unless they are faster."""
        self._disturbed.append(wall)
        if wall < statistics.median(self._alone):
            self._wait = FIRST_WAIT
            self._print_line(f"{self._most} threads are faster again: a step takes {wall:.2f} s")
            self._use(self._most, self._watch)
        elif len(self._disturbed) == 2:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            self._postpone()
            self._use(1, self._stay_with_one)

    def _use(self, threads: int, phase: Callable[[float, float], None]) -> None:
        self._set_threads(threads)
        self._phase = phase
        if phase == self._try_one:
            self._alone = []
        elif phase != self._stay_with_one:
            self._disturbed = []

    def _postpone(self) -> None:
        self._next_trial = self._clock() + self._wait


def choose_threads(
    threads: int,
    device: torch.device,
    *,
    exact: bool,
    alone: bool,
    print_line: Callable[[str], None],
) -> ThreadCount | None:
    """Set how many threads compute, and return what changes that; None where it is settled.

    Args:
        threads: as `engine.threads` says; 0 leaves it to the variable OMP_NUM_THREADS, or else to the cores.
        device: where steps run.
        exact: whether a run that is resumed has to go on with the same bits, as in fp32.
        alone: whether this is the only process of the run; the steps of several wait for each other.
        print_line: prints a line for the user.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if threads or os.environ.get("OMP_NUM_THREADS") or device.type != "cpu":
        return None
    most = min(torch.get_num_threads(), usable_cores())  # torch does not know of a container's quota
    if most < torch.get_num_threads():
        print_line(f"a step has {most} threads, as the quota of this container amounts to")
        torch.set_num_threads(most)
    if most == 1 or not alone:
        return None
    return ThreadCount(most, torch.set_num_threads, print_line, may_change=not exact)
