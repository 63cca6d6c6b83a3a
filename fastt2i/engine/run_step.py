"""How a step is run: as it is or captured, compiled or not, with the clock before it and the books after it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastt2i.config import EngineConfig
from fastt2i.engine.clock import Clock
from fastt2i.engine.graphs import GraphedStep, Run
from fastt2i.engine.loss_log import LossLog
from fastt2i.engine.step import StepInputs, TrainStep


class StepRunner:
    """Runs the steps of a training run; the host never waits for the device in it.

    Args:
        step: what a step computes.
        clock: what of it depends on its number.
        config: how to run it.
        device: where.
        say: tells the user what is going on.

    Attributes:
        losses: of the steps since they were read last.
    """

    def __init__(
        self, step: TrainStep, clock: Clock, config: EngineConfig, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self.losses = LossLog()
        self._step, self._clock = step, clock
        self._run: Run = self._take
        if config.graphs != "off":
            if device.type == "cuda":
                self._run = GraphedStep(self._take, device, say)
            elif config.graphs == "on":
                say(
                    f"engine.graphs is on, but only steps on a GPU can be captured and this is {device}: they run as is"
                )

    def __call__(self, inputs: StepInputs, step: int) -> None:
        """Take step number `step`, counted from 0."""
        self._clock.set(step)
        self._run(inputs, self._step.has_penalty(step))

    def _take(self, inputs: StepInputs, with_penalty: bool) -> None:
        losses = self._step(inputs, self._clock.ema_weight, with_penalty)
        self.losses.add(losses, self._clock.step)
