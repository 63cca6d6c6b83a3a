"""torch.compile for the parts of a step, and the trial that measures whether it is faster."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastt2i.engine.distributed.world import World
from fastt2i.engine.execution.cuda_graphs import StepFunction
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.errors import UserError
from fastt2i.files.user_cache import user_cache

#: Steps of a phase that are not timed, and those after them that are.
WARM_UP, TIMED = 8, 12
#: Seconds that a run must still take for a trial: compiling takes a minute or more.
MIN_REMAINING_SECONDS = 20 * 60


def compile_step(step: TrainStep) -> TrainStep:
    """The same step with its parts compiled, without a graph break; the compiled code is cached on disk."""
    _cache_in_user_directory()
    # A compiled forward cannot be differentiated twice: the penalty is compiled together with its own derivative, by
    # versions of torch that can trace one, and left as it is by others.
    config = torch._dynamo.config
    traceable = hasattr(config, "trace_autograd_ops")
    if traceable:
        config.trace_autograd_ops = True
    # On a CPU kernels are called from C++: calling them from Python takes 3 ms of the demo's 90.
    options: dict[str, Any] = {"cpp_wrapper": next(step.generator.module.parameters()).device.type == "cpu"}
    return step.with_parts(
        lambda part: torch.compile(part, fullgraph=True, dynamic=False, options=options), penalty=traceable
    )


def _cache_in_user_directory() -> None:
    """Have torch keep compiled code in the user's cache, unless TORCHINDUCTOR_CACHE_DIR names another place.

    Its own default, a temporary folder, torch writes into that variable as soon as its compiler is imported, which
    making an optimizer does.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # brings the compiler: seconds

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir()) == default_cache_dir():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(user_cache("compile"))


def _compile_past_damage(compile: Callable[[StepInputs], StepFunction], inputs: StepInputs) -> StepFunction:
    """What `compile` returns; libraries in the compiler's cache that cannot be loaded are made anew.

    A linker writes them where they stay: one that a Ctrl-C or a full disk stopped would fail every later run.
    """
    deleted: set[Path] = set()
    while True:
        try:
            return compile(inputs)
        except Exception as error:  # compilers raise many types
            library = _library_named_in(str(error))
            if library is None or library in deleted:
                raise
            library.unlink(missing_ok=True)  # another rank may have been first
            deleted.add(library)


def _library_named_in(message: str) -> Path | None:
    """The library in the compiler's cache that the dynamic loader's message says cannot be loaded, if there is one."""
    named = re.search(r"(/[^:\n]+\.so): ", message)
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if named is None or cache is None or Path(cache) not in Path(named[1]).parents:
        return None
    return Path(named[1])


class CompileTrial:
    """Runs eager steps, then compiled ones, all of them part of the training, and keeps the faster.

    All ranks switch at the same step, by the times of rank 0.

    Args:
        eager: runs a step eagerly.
        compile: compiles for inputs, changing nothing else, and returns a function that runs compiled steps.
        device: synchronized while steps are timed.
        steps: of the whole run.
        choice: whether to compile, where that is known.
        required: whether the run ends where compilation fails.
        penalty_every_step: whether usual steps have the penalty; the others are not timed.
        world: the processes of the run; one by default.
        print_line: prints a line for the user.

    Attributes:
        choice: whether to compile; None while that is open.
        faster: whether compiled steps are faster; None where that was not measured.
        findings: what was decided and measured, by name; whoever logs it empties it.
    """

    def __init__(
        self,
        eager: StepFunction,
        compile: Callable[[StepInputs], StepFunction],
        *,
        device: torch.device,
        steps: int,
        choice: bool | None,
        required: bool = False,
        penalty_every_step: bool = False,
        world: World | None = None,
        print_line: Callable[[str], None],
    ) -> None:
        self.choice = choice
        self.faster: bool | None = None
        self.findings: dict[str, float] = {}
        self._run, self._compile = eager, compile
        #: The eager function while the compiled one is timed.
        self._eager: StepFunction | None = None
        self._started = False
        self._required, self._penalty_every_step = required, penalty_every_step
        self._device, self._steps, self._print_line = device, steps, print_line
        self._world = world or World()
        self._seconds: list[float] = []
        self._eager_seconds = 0.0

    def __call__(self, inputs: StepInputs, with_penalty: bool, step: int) -> None:
        """Run step number `step`.

        Raises:
            UserError: compilation fails, and it is required.
        """
        if not self._started:
            self._start(inputs, self._steps - step)
        if self.choice is not None:
            self._run(inputs, with_penalty)
            return
        started = self._time()
        self._run(inputs, with_penalty)
        if with_penalty == self._penalty_every_step:
            self._seconds.append(self._time() - started)
        if len(self._seconds) == WARM_UP + TIMED:
            median = statistics.median(self._seconds[WARM_UP:])
            self._seconds.clear()
            if self._eager is None:
                self._start_compiled_phase(median, inputs, self._steps - step - 1)
            else:
                self._select_faster(median)

    def _start(self, inputs: StepInputs, steps_left: int) -> None:
        self._started = True
        if self.choice:
            if self._switch_to_compiled(inputs):
                self._decide(True)
        elif self.choice is None and steps_left < 2 * (WARM_UP + TIMED):
            self._decide(False)
            self._print_line(f"torch.compile is off: {steps_left} steps are too few to find out whether it pays")

    def _start_compiled_phase(self, eager_seconds: float, inputs: StepInputs, steps_left: int) -> None:
        """Compile and go on with compiled steps, if the rest of the run is long enough."""
        self._eager_seconds = eager_seconds
        self.findings["ms_uncompiled"] = 1e3 * eager_seconds
        if self._world.run_on_rank0(lambda: eager_seconds * steps_left >= MIN_REMAINING_SECONDS):
            self._switch_to_compiled(inputs)
            return
        self._decide(False)
        self._print_line(
            f"torch.compile is off: what is left takes {eager_seconds * steps_left / 60:.1f} min at "
            f"{1e3 * eager_seconds:.1f} ms a step, and compiling is tried where it is {MIN_REMAINING_SECONDS // 60} or "
            "more"
        )

    def _switch_to_compiled(self, inputs: StepInputs) -> bool:
        """Run compiled steps from now on, if compilation works on all ranks."""
        compiled, failure = None, ""
        try:
            compiled = _compile_past_damage(self._compile, inputs)
        except Exception as error:  # compilers raise many types
            failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        failures = [failure for failure in self._world.all_gather_object(failure) if failure]
        if compiled and not failures:
            self._eager, self._run = self._run, compiled
            return True
        if self._required:
            raise self._world.as_collective_error(
                UserError(
                    f"engine.compile is on, but torch.compile fails here: {failures[0]}; put that right, or take "
                    "--engine.compile off"
                )
            )
        self._print_line(f"warning: torch.compile is off, for it fails: {failures[0]}")
        self._decide(False)
        return False

    def _select_faster(self, compiled_seconds: float) -> None:
        faster = self.faster = self._world.run_on_rank0(lambda: compiled_seconds < self._eager_seconds)
        self.findings["ms_compiled"] = 1e3 * compiled_seconds
        times = f"{1e3 * compiled_seconds:.1f} ms a step, {1e3 * self._eager_seconds:.1f} without"
        self._print_line(f"torch.compile is {'on' if faster else 'off'}: {times}")
        if not faster and self._eager is not None:
            self._run = self._eager
        self._decide(faster)

    def _decide(self, compiled: bool) -> None:
        """For the rest of the run; the other function is released, with the memory of its graphs."""
        self.choice = compiled
        self.findings["compiled"] = float(compiled)
        self._eager = None

    def _time(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
