"""Profiles training steps: a trace, the costliest operations, waits for inputs, FLOP/s and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from fastt2i.devices.limits import matrix_rate
from fastt2i.engine.precision import Precision
from fastt2i.engine.step import StepInputs, TrainStep

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

#: Steps before the profile, by which kernels are timed and graphs captured, and steps in it.
SKIPPED, PROFILED = 30, 10
#: Operations that are printed.
SHOWN = 15


class StepProfile:
    """Profiles some steps of a run by wrapping the iterator of their inputs: between two inputs lies a step.

    The profile starts some steps after the compile trial is over; earlier, or with fewer steps, in a short run.

    Args:
        step: the training step, uncompiled.
        precision: of the networks.
        device: where they are.
        path: of the trace, in Chrome's format.
        steps: of the run, from `first_step` on to the last.
        settled: whether it is decided how steps are run from now on.
        print_line: prints a line for the user.
    """

    def __init__(
        self,
        step: TrainStep,
        precision: Precision,
        device: torch.device,
        path: Path,
        *,
        steps: range,
        settled: Callable[[], bool],
        print_line: Callable[[str], None],
    ) -> None:
        self._step, self._precision, self._device = step, precision, device
        self._path, self._print_line = path, print_line
        self._steps, self._settled = steps, settled

    def watch(self, batches: Iterable[StepInputs]) -> Iterator[StepInputs]:
        """The same batches; profiles what happens between asking for the first and for the last of some."""
        source, number = iter(batches), self._steps.start
        # The end of a step is seen when the next one asks for its inputs.
        profiled = min(PROFILED, len(self._steps) - 1)
        if profiled < 1:
            self._print_line("profile: there is nothing to see in a run of one step; take two or more")
            yield from source
            return
        waiting, latest = SKIPPED, self._steps.stop - profiled - 1
        while waiting and number < latest:
            yield next(source)
            number += 1
            if self._settled():
                waiting -= 1
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (self._device.type == "cuda")]
        waited = 0.0
        with profile(activities=activities) as record:
            self._synchronize()
            began = time.perf_counter()
            for _ in range(profiled):
                asked = time.perf_counter()
                inputs = next(source)
                waited += time.perf_counter() - asked
                yield inputs
            self._synchronize()
            seconds = time.perf_counter() - began
        self._path.parent.mkdir(parents=True, exist_ok=True)
        record.export_chrome_trace(str(self._path))
        self._report(record, inputs, range(number, number + profiled), seconds / profiled, waited / profiled)
        yield from source

    def _report(self, record: Any, inputs: StepInputs, steps: range, seconds: float, waited: float) -> None:
        """seconds, waited: of a step on average."""
        batch, count = len(inputs.images), len(steps)
        penalties = sum(map(self._step.has_penalty, steps))
        flops = self._flops(inputs, penalties / count)
        with self._precision.in_force():
            rate = matrix_rate(self._device, self._precision.dtype)
        lines = [
            f"profile of {count} steps from {steps.start} on, {penalties} with the penalty; trace in {self._path} "
            "(chrome://tracing, Perfetto)",
            f"  {1e3 * seconds:.2f} ms a step of {batch} images, {batch / seconds:.0f} img/s",
            f"  {1e3 * waited:.2f} ms of it ({waited / seconds:.1%}) waiting for inputs",
            f"  {flops / 1e9:.1f} GFLOP in matrix products and convolutions, {flops / seconds / 1e12:.3f} TFLOP/s: "
            f"{flops / seconds / rate:.1%} of the {rate / 1e12:.3f} TFLOP/s that a product of large "
            f"{self._precision.name} matrices measures here",
            f"  {self._memory()}",
        ]
        if self._device.type == "cuda":
            busy, launches = _busy(record.events())
            lines.append(
                f"  GPU busy {busy / count / seconds:.1%} of the step, "
                f"{1e3 * (seconds - busy / count):.2f} ms of gaps, {launches / count:.0f} kernels"
            )
        key = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        averages = sorted(record.key_averages(), key=lambda event: -getattr(event, key))
        whole = sum(getattr(event, key) for event in averages) or 1.0
        lines += [f"  {'share':>6} {'ms/step':>8} {'calls':>6}  operation"]
        lines += [
            f"  {getattr(event, key) / whole:6.1%} {getattr(event, key) / 1e3 / count:8.3f} "
            f"{event.count / count:6.0f}  {event.key[:90]}"
            for event in averages[:SHOWN]
        ]
        self._print_line("\n".join(lines))

    def _flops(self, inputs: StepInputs, penalties: float) -> float:
        """FLOPs of a step that has the penalty so many times on average, a multiply-add being two."""
        plain = count_flops(lambda: self._step.forward_backward_only(inputs, penalty=False))
        if not penalties:
            return plain
        return plain + penalties * (count_flops(lambda: self._step.forward_backward_only(inputs)) - plain)

    def _memory(self) -> str:
        if self._device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self._device) / 2**30
            reserved = torch.cuda.max_memory_reserved(self._device) / 2**30
            return f"at most {allocated:.2f} GiB in tensors, {reserved:.2f} GiB taken from the GPU"
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return f"at most {peak / 2**30:.2f} GiB of memory in this process"

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _NoModuleTracker(ModuleTracker):
    """Tracks no modules: the hooks of `ModuleTracker` fail under the `autograd.grad` of a penalty."""

    def __enter__(self) -> _NoModuleTracker:
        return self

    def __exit__(self, *_: object) -> None: ...


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in a call, a multiply-add being two."""
    import fastt2i.ops.flops  # noqa: F401  registers the operators' formulas

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModuleTracker()
    with counter:
        run()
    return counter.get_total_flops()


def _busy(events: Iterable[FunctionEvent]) -> tuple[float, int]:
    """Seconds in which at least one kernel or copy ran on the GPU, and the number of launches."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, reached = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / 1e6, len(spans)
