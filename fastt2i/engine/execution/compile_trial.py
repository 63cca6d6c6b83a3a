"""torch.compile for the parts of a step, and the trial that finds out whether it pays."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fastt2i.engine.distributed.world import World
from fastt2i.engine.execution.cuda_graphs import Run
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.errors import UserError
from fastt2i.files.user_cache import user_cache

#: Steps that are run before any is timed, and that are timed.
WARM_UP, TIMED = 8, 12
#: Seconds that a run must still take for a trial to be worth it: compiling takes a minute or more.
WORTHWHILE = 20 * 60


def compile_step(step: TrainStep) -> TrainStep:
    """The same step with its parts compiled, without a graph break; what is compiled is kept on disk for other runs."""
    _keep_for_other_runs()
    # A compiled forward cannot be differentiated twice: the penalty is compiled together with its own derivative, by
    # versions of torch that can trace one, and left as it is by others.
    config = torch._dynamo.config
    whole = hasattr(config, "trace_autograd_ops")
    if whole:
        config.trace_autograd_ops = True
    # Where the host computes what it calls for, it calls from C++: from Python that is 3 ms of the demo's 90.
    options: dict[str, Any] = {"cpp_wrapper": next(step.generator.module.parameters()).device.type == "cpu"}
    return step.with_parts(
        lambda part: torch.compile(part, fullgraph=True, dynamic=False, options=options), penalty=whole
    )


def _keep_for_other_runs() -> None:
    """Have torch keep what it compiles in the user's cache, unless TORCHINDUCTOR_CACHE_DIR names another place.

    Its own default, a temporary folder, torch writes into that variable as soon as its compiler is imported, which
    making an optimizer does.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # brings the compiler: seconds

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(user_cache("compile"))


class CompileTrial:
    """Takes steps as they are and then compiled, all of them part of the training, and keeps the faster way.

    Of several ranks all change their way at the same step, for the times that the first one takes.

    Args:
        plain: takes a step as it is.
        compile: compiles for inputs, changing nothing else, and returns what takes a step then.
        device: which is waited for while steps are timed.
        steps: of the whole run.
        choice: whether to compile, where that is known.
        demanded: whether the run is to end where compiling fails.
        penalised: whether usual steps have the penalty; others are not timed.
        world: the processes of the run; one by default.
        say: tells the user what was found.

    Attributes:
        choice: whether to compile; None while that is open.
        faster: whether compiled steps are the faster ones; None where that was not measured.
        findings: what was decided and measured, by name; for whoever logs it, who empties it.
    """

    def __init__(
        self,
        plain: Run,
        compile: Callable[[StepInputs], Run],
        *,
        device: torch.device,
        steps: int,
        choice: bool | None,
        demanded: bool = False,
        penalised: bool = False,
        world: World | None = None,
        say: Callable[[str], None],
    ) -> None:
        self.choice = choice
        self.faster: bool | None = None
        self.findings: dict[str, float] = {}
        self._run, self._compile = plain, compile
        #: The way before the one that is tried.
        self._plain: Run | None = None
        self._begun = False
        self._demanded, self._penalised = demanded, penalised
        self._device, self._steps, self._say = device, steps, say
        self._world = world or World()
        self._seconds: list[float] = []
        self._plain_seconds = 0.0

    def __call__(self, inputs: StepInputs, with_penalty: bool, step: int) -> None:
        """Take step number `step`.

        Raises:
            UserError: compiling fails, and it is demanded.
        """
        if not self._begun:
            self._begin(inputs, self._steps - step)
        if self.choice is not None:
            self._run(inputs, with_penalty)
            return
        began = self._now()
        self._run(inputs, with_penalty)
        if with_penalty == self._penalised:
            self._seconds.append(self._now() - began)
        if len(self._seconds) == WARM_UP + TIMED:
            median = statistics.median(self._seconds[WARM_UP:])
            self._seconds.clear()
            if self._plain is None:
                self._go_on(median, inputs, self._steps - step - 1)
            else:
                self._judge(median)

    def _begin(self, inputs: StepInputs, steps_left: int) -> None:
        self._begun = True
        if self.choice:
            if self._try(inputs):
                self._decide(True)
        elif self.choice is None and steps_left < 2 * (WARM_UP + TIMED):
            self._decide(False)
            self._say(f"torch.compile is off: {steps_left} steps are too few to find out whether it pays")

    def _go_on(self, seconds: float, inputs: StepInputs, steps_left: int) -> None:
        """From steps as they are to compiled ones, where that may pay and is possible."""
        self._plain_seconds = seconds
        self.findings["ms_uncompiled"] = 1e3 * seconds
        if self._world.run_on_rank0(lambda: seconds * steps_left >= WORTHWHILE):
            self._try(inputs)
            return
        self._decide(False)
        self._say(
            f"torch.compile is off: what is left takes {seconds * steps_left / 60:.1f} min at {1e3 * seconds:.1f} ms a "
            f"step, and compiling is tried where it is {WORTHWHILE // 60} or more"
        )

    def _try(self, inputs: StepInputs) -> bool:
        """Compiled steps from now on, if all ranks can have them."""
        compiled, failure = None, ""
        try:
            compiled = self._compile(inputs)
        except Exception as error:  # of the compiler, of which there are many kinds
            failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        failures = [failure for failure in self._world.all_gather_object(failure) if failure]
        if compiled and not failures:
            self._plain, self._run = self._run, compiled
            return True
        if self._demanded:
            raise self._world.as_collective_error(
                UserError(
                    f"engine.compile is on, but torch.compile fails here: {failures[0]}; put that right, or take "
                    "--engine.compile off"
                )
            )
        self._say(f"warning: torch.compile is off, for it fails: {failures[0]}")
        self._decide(False)
        return False

    def _judge(self, seconds: float) -> None:
        faster = self.faster = self._world.run_on_rank0(lambda: seconds < self._plain_seconds)
        self.findings["ms_compiled"] = 1e3 * seconds
        told = f"{1e3 * seconds:.1f} ms a step, {1e3 * self._plain_seconds:.1f} without"
        self._say(f"torch.compile is {'on' if faster else 'off'}: {told}")
        if not faster and self._plain is not None:
            self._run = self._plain
        self._decide(faster)

    def _decide(self, compiled: bool) -> None:
        """For the rest of the run; the other way is let go, with the memory of its graphs."""
        self.choice = compiled
        self.findings["compiled"] = float(compiled)
        self._plain = None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
