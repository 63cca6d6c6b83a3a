"""How a step is run: as it is or captured, compiled or not, with the clock before it and the books after it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastt2i.config import EngineConfig
from fastt2i.engine.execution.compile_trial import CompileTrial, compile_step
from fastt2i.engine.execution.cuda_graphs import GraphedStep, Run
from fastt2i.engine.logging.loss_log import LossLog
from fastt2i.engine.schedule import Clock
from fastt2i.engine.step import StepInputs, TrainStep


class StepRunner:
    """Runs the steps of a training run; outside the trial of torch.compile, the host never waits for the device in it.

    Args:
        step: what a step computes.
        clock: what of it depends on its number.
        config: how to run it.
        device: where.
        steps: of the whole run.
        compiled_before: what `compiling_pays` was in the run that is gone on with; None if there is none.
        say: tells the user what is going on.

    Attributes:
        step: what a step computes, as it is.
        losses: of the steps since they were read last.
    """

    def __init__(
        self,
        step: TrainStep,
        clock: Clock,
        config: EngineConfig,
        *,
        device: torch.device,
        steps: int,
        compiled_before: bool | None,
        say: Callable[[str], None],
    ) -> None:
        self.losses = LossLog(step.world)
        self.step, self._clock = step, clock
        self._compiled_before = compiled_before
        if config.graphs == "on" and device.type != "cuda":
            say(f"engine.graphs is on, but only steps on a GPU can be captured, and this is the {device}")
        graphed = config.graphs != "off" and device.type == "cuda"

        def way(step: TrainStep) -> Run:
            take = self._taking(step)
            return GraphedStep(take, device, say) if graphed else take

        def compile(inputs: StepInputs) -> Run:
            say("compiling; this takes a while where it was not done before")
            compiled = compile_step(step)
            compiled.rehearse(inputs)
            return way(compiled)

        choice = compiled_before if config.compile == "auto" else config.compile == "on"
        if config.compile == "auto" and step.gathers:
            choice = False
            say("torch.compile is off: what gathers the captions of several processes cannot be compiled")
        elif config.compile == "auto" and choice is not None:
            say(f"torch.compile is {'on' if choice else 'off'}, as it was before")
        self._trial = CompileTrial(
            way(step),
            compile,
            device=device,
            steps=steps,
            choice=choice,
            demanded=config.compile == "on",
            penalised=step.has_penalty(0) and step.has_penalty(1),
            world=step.world,
            say=say,
        )

    @property
    def compiled(self) -> bool | None:
        """Whether steps are compiled; None while that is open."""
        return self._trial.choice

    @property
    def compiling_pays(self) -> bool | None:
        """Whether compiled steps are the faster ones, as was measured in this run or before it; None if it was not."""
        return self._compiled_before if self._trial.faster is None else self._trial.faster

    def findings(self) -> dict[str, float]:
        """What was found of torch.compile since this was asked last: `compiled`, `ms_compiled`, `ms_uncompiled`."""
        found, self._trial.findings = self._trial.findings, {}
        return found

    def __call__(self, inputs: StepInputs, step: int) -> None:
        """Take step number `step`, counted from 0."""
        self._clock.set(step)
        self._trial(inputs, self.step.has_penalty(step), step)

    def _taking(self, step: TrainStep) -> Run:
        def take(inputs: StepInputs, with_penalty: bool) -> None:
            self.losses.add(step(inputs, self._clock.ema_weight, with_penalty), self._clock.step)

        return take
