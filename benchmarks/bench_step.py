"""The whole training step, measure by measure: from the way peers write it to the engine's.

    python -m pytest benchmarks/bench_step.py --benchmark-only

Each row has what the row above has and one measure more, on the same networks and inputs; rows of a group take turns,
so that none has the better minutes of the machine. A step is weighed as in training: one in `loss.penalty_every` has
the gradient penalty.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.steps import SeparatePasses, make_inputs, make_step
from benchmarks.turns import in_turns
from fastt2i.config import preset
from fastt2i.engine.compilation import compile_step
from fastt2i.engine.memory import keep_freed_memory
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.ops.dispatch import forced

#: Rounds that are timed, after those that are not.
ROUNDS, WARM_UP = 12, 2


@dataclass(frozen=True)
class Way:
    """How a step is taken."""

    precision: str
    kind: type[TrainStep] = TrainStep
    draws_once: bool = True
    operators: str | None = None
    compiled: bool = False

    def prepare(self, name: str, device: torch.device) -> Callable[[StepInputs, bool], None]:
        """What takes a step of a preset."""
        config = preset(name)
        config.train = dataclasses.replace(config.train, precision=self.precision)
        step = make_step(config, device, self.kind)
        if isinstance(step, SeparatePasses):
            step.draws_once = self.draws_once
        if self.compiled:
            step = compile_step(step)
        weight = torch.tensor(0.01, device=device)

        def take(inputs: StepInputs, with_penalty: bool) -> None:
            with self._operators():
                step(inputs, weight, with_penalty)

        return take

    def _operators(self) -> AbstractContextManager[None]:
        return forced(self.operators) if self.operators else nullcontext()


WAYS = {
    "separate passes, fp32": Way("fp32", SeparatePasses, draws_once=False, operators="reference"),
    "+ one generator pass": Way("fp32", SeparatePasses, operators="reference"),
    "+ one trunk pass, text in the head": Way("fp32", operators="reference"),
    "+ fused operators": Way("fp32"),
    "+ bf16": Way("bf16"),
    "+ torch.compile": Way("bf16", compiled=True),
}


def seconds_of_steps(take: Callable[[StepInputs, bool], None], inputs: StepInputs, every: int) -> float:
    """Of a step on average, where one in `every` has the penalty: one with it and two without are timed."""
    taken = {}
    for with_penalty, number in ((True, 1), (False, 2)):
        began = time.perf_counter()
        for _ in range(number):
            take(inputs, with_penalty)
        if inputs.images.is_cuda:
            torch.cuda.synchronize()
        taken[with_penalty] = (time.perf_counter() - began) / number
    return taken[False] + (taken[True] - taken[False]) / every


@pytest.mark.parametrize(
    "name", ["demo", pytest.param("64px", marks=pytest.mark.slow), pytest.param("256px", marks=pytest.mark.slow)]
)
def test_step(benchmark: Any, name: str, device: torch.device) -> None:
    keep_freed_memory()
    config = preset(name)
    if device.type == "cpu" and name == "256px":
        config.train = dataclasses.replace(config.train, batch_size=4)
    inputs = make_inputs(config, device)
    ways = {way: WAYS[way].prepare(name, device) for way in WAYS}
    benchmark.group = f"a training step, {name}, batch {config.train.batch_size}"
    candidates = {way: partial(seconds_of_steps, take, inputs, config.loss.penalty_every) for way, take in ways.items()}
    taken = in_turns(benchmark, candidates, rounds=ROUNDS if name == "demo" else 4, warm_up=WARM_UP)
    for way, times in taken.items():
        benchmark.extra_info[way]["images_per_second"] = config.train.batch_size / statistics.median(times)
