"""Runs training steps eagerly or from CUDA graphs, compiled or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastt2i.config import EngineConfig
from fastt2i.engine.execution.compile_trial import CompileTrial, compile_step
from fastt2i.engine.execution.cuda_graphs import GraphedStep, StepFunction
from fastt2i.engine.execution.thread_count import ThreadCount
from fastt2i.engine.logging.loss_log import LossLog
from fastt2i.engine.schedule import StepSchedule
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.ops import tuning


class StepRunner:
    """Sets the schedule, runs the step, accumulates losses; the host waits for the device only in a compile trial.

    Args:
        step: the training step.
        schedule: its step-dependent scalars.
        config: whether to use CUDA graphs, torch.compile and tuning.
        device: where the step runs.
        steps: of the whole run.
        compiled_before: `compiling_pays` of the run that is resumed; None if there is none.
        print_line: prints a line for the user.
        threads: what changes how many threads compute; None where nothing does.

    Attributes:
        step: the training step, uncompiled.
        losses: of the steps since they were last read.
    """

    def __init__(
        self,
        step: TrainStep,
        schedule: StepSchedule,
        config: EngineConfig,
        *,
        device: torch.device,
        steps: int,
        compiled_before: bool | None,
        print_line: Callable[[str], None],
        threads: ThreadCount | None = None,
    ) -> None:
        self.losses = LossLog(step.world)
        self.step, self._schedule = step, schedule
        self._always_penalized = step.has_penalty(0) and step.has_penalty(1)
        self._compiled_before, self._threads = compiled_before, threads
        self._device = device
        self._tunes = config.tune == "on" or (config.tune == "auto" and device.type == "cuda")
        if config.graphs == "on" and device.type != "cuda":
            print_line(f"engine.graphs is on, but only steps on a GPU can be captured, and this is the {device}")
        use_graphs = config.graphs != "off" and device.type == "cuda"

        def wrap_with_graphs(step: TrainStep) -> StepFunction:
            run_step = self._bind(step)
            return GraphedStep(run_step, device, print_line) if use_graphs else run_step

        def compile(inputs: StepInputs) -> StepFunction:
            print_line("compiling; this takes a while where it was not done before")
            compiled = compile_step(step)
            compiled.forward_backward_only(inputs)
            return wrap_with_graphs(compiled)

        self._trial = CompileTrial(
            wrap_with_graphs(step),
            compile,
            device=device,
            steps=steps,
            choice=_compile_choice(config, compiled_before, print_line),
            required=config.compile == "on",
            penalty_every_step=self._always_penalized,
            world=step.world,
            print_line=print_line,
        )

    @property
    def compiled(self) -> bool | None:
        """Whether steps are compiled; None while that is open."""
        return self._trial.choice

    @property
    def compiling_pays(self) -> bool | None:
        """Whether compiled steps are faster, as measured in this run or before it; None if it was not measured."""
        return self._compiled_before if self._trial.faster is None else self._trial.faster

    def findings(self) -> dict[str, float]:
        """Findings on torch.compile since the last call: `compiled`, `ms_compiled`, `ms_uncompiled`."""
        found, self._trial.findings = self._trial.findings, {}
        return found

    def __call__(self, inputs: StepInputs, step: int) -> None:
        """Run step number `step`, counted from 0."""
        self._schedule.set(step)
        with_penalty = self.step.has_penalty(step)
        wall, cpu = time.perf_counter(), time.process_time()
        with self._tuning():
            self._trial(inputs, with_penalty, step)
        # Compiled code has the number of threads in it; steps with a penalty, where only some have one, take longer.
        if self._threads and self.compiled is False and (self._always_penalized or not with_penalty):
            self._threads.step_took(time.perf_counter() - wall, time.process_time() - cpu)

    @contextmanager
    def _tuning(self) -> Iterator[None]:
        """Operators are timed in training steps alone: other calls, as for samples, are too few to be worth it.

        On a GPU cuDNN times its algorithms likewise, unless those that give other bits in every run are ruled out. Both
        happen the first time that shapes come up, so in the eager steps before a capture.
        """
        if not self._tunes:
            yield
            return
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark
        exact = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
        try:
            cudnn.benchmark = self._device.type == "cuda" and not exact
            with tuning():
                yield
        finally:
            cudnn.benchmark = before

    def _bind(self, step: TrainStep) -> StepFunction:
        def run_step(inputs: StepInputs, with_penalty: bool) -> None:
            self.losses.add(step(inputs, self._schedule.ema_weight, with_penalty), self._schedule.step)

        return run_step


def _compile_choice(config: EngineConfig, before: bool | None, print_line: Callable[[str], None]) -> bool | None:
    """Whether to compile; None where that has to be measured."""
    if config.compile != "auto":
        return config.compile == "on"
    if before is not None:
        print_line(f"torch.compile is {'on' if before else 'off'}, as it was before")
    return before
