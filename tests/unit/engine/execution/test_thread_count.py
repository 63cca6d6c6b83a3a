"""The number of threads beside other programs, on a machine and a clock that are simulated."""

from __future__ import annotations

import pytest
import torch

from fastt2i.devices import cores
from fastt2i.engine.execution.thread_count import ThreadCount, choose_threads


class Machine:
    """Two cores. A step takes 0.1 s with two threads and 0.2 s with one; beside another program 7 s and 0.3 s."""

    def __init__(self, *, may_change: bool = True, one_beside: float = 0.3) -> None:
        self.now, self.threads, self.busy = 1000.0, 2, False
        self.said: list[str] = []
        self.used: list[int] = []
        self.seconds = {(2, False): 0.1, (1, False): 0.2, (2, True): 7.0, (1, True): one_beside}
        self.count = ThreadCount(2, self.set, self.said.append, may_change=may_change, clock=lambda: self.now)

    def set(self, threads: int) -> None:
        self.threads = threads

    def run(self, seconds: float) -> int:
        """Steps in so many seconds."""
        until, steps = self.now + seconds, 0
        while self.now < until:
            self.used.append(self.threads)
            wall = self.seconds[self.threads, self.busy]
            cpu = wall * (1.0 if self.threads == 1 else 1.5 if self.busy else 1.95)
            self.now += wall
            self.count.step_took(wall, cpu)
            steps += 1
        return steps


def test_undisturbed_steps_keep_their_threads() -> None:
    machine = Machine()
    assert machine.run(100) == pytest.approx(1000, abs=2)
    assert machine.threads == 2 and machine.said == []


def test_one_thread_is_taken_beside_another_program_and_all_afterwards() -> None:
    machine = Machine()
    machine.run(30)
    machine.busy = True
    assert machine.run(600) > 0.8 * 600 / 0.3
    assert machine.threads == 1
    assert machine.said == [
        "other programs use the cores: a step takes 0.30 s with one thread and 7.00 s with 2; going on with one, until "
        "more are faster again"
    ]
    machine.busy = False
    machine.run(600)
    assert machine.threads == 2 and machine.said[1:] == ["2 threads are faster again: a step takes 0.10 s"]
    machine.busy = True  # and once more
    machine.run(60)
    assert machine.threads == 1


def test_where_one_thread_is_no_faster_all_stay() -> None:
    machine = Machine(one_beside=8.0)
    machine.busy = True
    machine.run(2000)
    assert machine.used.count(1) < 0.1 * len(machine.used) and machine.said == []


def test_in_fp32_the_number_stays_and_that_is_told_once() -> None:
    machine = Machine(may_change=False)
    machine.busy = True
    machine.run(300)
    assert machine.threads == 2 and len(machine.said) == 1 and "--engine.threads 1 may be faster" in machine.said[0]


@pytest.mark.parametrize(
    ("setting", "variable", "quota", "alone", "threads", "changes"),
    [
        (0, "", None, True, 4, True),
        (0, "", None, False, 4, False),
        (0, "", 1.5, True, 2, True),
        (0, "", 1.0, True, 1, False),
        (0, "4", 1.0, True, 4, False),
        (3, "", None, True, 3, False),
    ],
)
def test_the_number_to_begin_with(
    monkeypatch: pytest.MonkeyPatch,
    setting: int,
    variable: str,
    quota: float | None,
    alone: bool,
    threads: int,
    changes: bool,
) -> None:
    chosen = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    said: list[str] = []
    count = choose_threads(setting, torch.device("cpu"), exact=False, alone=alone, print_line=said.append)
    assert (chosen[-1], count is not None) == (threads, changes)
    assert len(said) == (quota is not None and not variable)
