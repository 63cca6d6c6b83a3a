"""What `--profile` looks at, counts and tells."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from fastt2i.config import LossConfig
from fastt2i.engine.execution import profiler as profile
from fastt2i.engine.execution.profiler import PROFILED, SKIPPED, StepProfile, count_flops
from fastt2i.engine.step import StepInputs, TrainStep
from tests.unit.engine.test_step import CPU, make, make_inputs, take

RATE = 1e12


@pytest.fixture(autouse=True)
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "matrix_rate", lambda device, dtype: RATE)


class Run:
    """A run of some steps that is looked at; `said` is what was told of it."""

    def __init__(self, folder: Path, steps: range, settled_from: int = 0) -> None:
        self.said: list[str] = []
        self.taken = steps.start
        self.step: TrainStep = make(LossConfig(penalty_every=4))
        self.path, self._steps = folder / "profile" / "trace.json.gz", steps
        self._profile = StepProfile(
            self.step,
            self.step.precision,
            CPU,
            self.path,
            steps=steps,
            settled=lambda: self.taken >= settled_from,
            print_line=self.said.append,
        )

    def take(self, computes: bool = True) -> None:
        batches = self._profile.watch(self._batches())
        for number in self._steps:
            inputs = next(batches)
            if computes:
                take(self.step, inputs, number)
            self.taken = number + 1

    def _batches(self) -> Iterator[StepInputs]:
        return (make_inputs(self.step, n) for n in itertools.count())


def test_what_is_told_is_what_was_done(tmp_path: Path) -> None:
    """Of 10 steps, from 8 on, at 8, 12 and 16 with the penalty; the trace has all of them."""
    run = Run(tmp_path, range(8, 19))
    run.take()
    (told,) = run.said
    assert "profile of 10 steps from 8 on, 3 with the penalty" in told and str(run.path) in told
    ((ms, rate),) = re.findall(r"([\d.]+) ms a step of 6 images, (\d+) img/s", told)
    assert float(rate) == pytest.approx(6e3 / float(ms), rel=0.01, abs=1)
    ((waited, share),) = re.findall(r"([\d.]+) ms of it \(([\d.]+)%\) waiting for inputs", told)
    assert 0 < float(waited) < float(ms) and float(share) == pytest.approx(100 * float(waited) / float(ms), abs=0.1)
    ((speed, mfu),) = re.findall(r"GFLOP .*, ([\d.]+) TFLOP/s: ([\d.]+)% of the 1.000 TFLOP/s", told)
    assert float(mfu) == pytest.approx(100 * float(speed) * 1e12 / RATE, abs=0.1)
    assert re.search(r"at most [\d.]+ GiB of memory in this process", told)
    table = told.partition("operation\n")[2].splitlines()
    assert len(table) == profile.SHOWN
    assert any("aten::" in line for line in table) and any("conv" in line for line in table)
    trace = json.loads(gzip.decompress(run.path.read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("discriminator update") == names.count("generator update") == 10
    assert names.count("penalty") == 3


def test_arithmetic_is_counted_with_the_penalties(tmp_path: Path) -> None:
    run = Run(tmp_path, range(0, 6))
    told = [run._profile._flops(make_inputs(run.step), penalties) for penalties in (0.0, 1.0, 0.25)]
    plain, penalised = (count_flops(lambda n=n: take(run.step, make_inputs(run.step), n)) for n in (1, 4))
    assert penalised > plain > 0
    assert told == [plain, penalised, plain + 0.25 * (penalised - plain)]
    with FlopCounterMode(display=False) as counter:
        take(run.step, make_inputs(run.step), 1)
    assert plain == counter.get_total_flops()


@pytest.mark.parametrize(
    ("steps", "settled", "window"),
    [
        (range(100), 0, range(SKIPPED, SKIPPED + PROFILED)),
        (range(200, 300), 250, range(249 + SKIPPED, 249 + SKIPPED + PROFILED)),
        (range(100), 95, range(89, 99)),
        (range(41), 0, range(SKIPPED, SKIPPED + PROFILED)),
        (range(25), 0, range(14, 24)),
        (range(3, 9), 0, range(3, 8)),
        (range(7, 9), 0, range(7, 8)),
    ],
)
def test_it_looks_when_all_is_settled_or_else_before_the_end(
    tmp_path: Path, steps: range, settled: int, window: range
) -> None:
    run = Run(tmp_path, steps, settled)
    run.take(computes=False)
    (told,) = run.said
    assert told.startswith(f"profile of {len(window)} steps from {window.start} on, ")


def test_a_run_of_one_step_is_told_that_there_is_nothing_to_see(tmp_path: Path) -> None:
    run = Run(tmp_path, range(1))
    run.take()
    assert run.said == ["profile: there is nothing to see in a run of one step; take two or more"]
