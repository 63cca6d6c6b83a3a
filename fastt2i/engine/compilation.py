"""torch.compile for the parts of a step, and the trial that finds out whether it pays."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

from fastt2i.engine.graphs import Run
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.user_cache import user_cache

#: Steps that are run before any is timed, and that are timed.
WARM_UP, TIMED = 8, 12
#: Seconds that a run must still take for a trial to be worth it: compiling takes a minute or more.
WORTHWHILE = 20 * 60


def compile_step(step: TrainStep) -> TrainStep:
    """The same step with its parts compiled, without a graph break; what is compiled is kept on disk for other runs."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache("compile")))
    # A compiled forward cannot be differentiated twice: the penalty is compiled together with its own derivative, by
    # versions of torch that can trace one, and left as it is by others.
    config = torch._dynamo.config
    whole = hasattr(config, "trace_autograd_ops")
    if whole:
        config.trace_autograd_ops = True
    return step.with_parts(lambda part: torch.compile(part, fullgraph=True, dynamic=False), penalty=whole)


class CompileTrial:
    """Takes steps as they are and then compiled, all of them part of the training, and keeps the faster way.

    Args:
        plain: takes a step as it is.
        compile: compiles for inputs, changing nothing else, and returns what takes a step then.
        device: which is waited for while steps are timed.
        steps: of the whole run.
        choice: whether to compile, where that is known.
        say: tells the user what was found.

    Attributes:
        choice: whether to compile; None while that is open.
    """

    def __init__(
        self,
        plain: Run,
        compile: Callable[[StepInputs], Run],
        *,
        device: torch.device,
        steps: int,
        choice: bool | None,
        say: Callable[[str], None],
    ) -> None:
        self.choice = choice
        self._plain, self._compile = plain, compile
        self._compiled: Run | None = None
        self._device, self._steps, self._say = device, steps, say
        self._seconds: list[float] = []
        self._plain_seconds = 0.0

    def __call__(self, inputs: StepInputs, with_penalty: bool, step: int) -> None:
        """Take step number `step`."""
        if self.choice and self._compiled is None:
            self._compiled = self._compile(inputs)
        if self.choice is not None:
            (self._compiled if self.choice and self._compiled else self._plain)(inputs, with_penalty)
            return
        began = self._now()
        (self._compiled or self._plain)(inputs, with_penalty)
        if not with_penalty:  # it comes too seldom to be timed
            self._seconds.append(self._now() - began)
        if len(self._seconds) == WARM_UP + TIMED:
            median = statistics.median(self._seconds[WARM_UP:])
            self._seconds.clear()
            if self._compiled:
                self._judge(median)
            else:
                self._go_on(median, inputs, self._steps - step - 1)

    def _go_on(self, seconds: float, inputs: StepInputs, steps_left: int) -> None:
        """From steps as they are to compiled ones, where that may pay and is possible."""
        self._plain_seconds = seconds
        if seconds * steps_left < WORTHWHILE:
            self.choice = False
            return
        try:
            self._compiled = self._compile(inputs)
        except Exception as error:  # of the compiler, of which there are many kinds; the run goes on without it
            reason = str(error).strip().partition("\n")[0]
            self._say(f"warning: torch.compile is off, for it fails: {type(error).__name__}: {reason}")
            self.choice = False

    def _judge(self, seconds: float) -> None:
        self.choice = seconds < self._plain_seconds
        told = f"{1e3 * seconds:.1f} ms a step, {1e3 * self._plain_seconds:.1f} without"
        self._say(f"torch.compile is {'on' if self.choice else 'off'}: {told}")

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
