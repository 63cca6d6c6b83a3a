"""Where the time of a training step goes: a trace, the costliest operations, waits, arithmetic and memory."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fastt2i.engine.precision import Precision
from fastt2i.engine.step import StepInputs, TrainStep
from fastt2i.limits import matrix_rate

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

#: Steps before the first that is looked at (kernels are timed and graphs captured then), and how many are.
SKIPPED, LOOKED_AT = 30, 10
#: Operations that are printed.
SHOWN = 15


class StepProfile:
    """Looks at some steps of a run, from the side of its inputs: between two of them lies a step.

    Args:
        step: what a step computes.
        precision: of the networks.
        device: where they are.
        path: of the trace, in Chrome's format.
        say: tells the user what was found.
    """

    def __init__(
        self, step: TrainStep, precision: Precision, device: torch.device, path: Path, say: Callable[[str], None]
    ) -> None:
        self._step, self._precision, self._device = step, precision, device
        self._path, self._say = path, say

    def watch(self, batches: Iterable[StepInputs]) -> Iterator[StepInputs]:
        """The same batches; looks at what is done between asking for the first and for the last of some."""
        source = iter(batches)
        yield from itertools.islice(source, SKIPPED)
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (self._device.type == "cuda")]
        waited, inputs = 0.0, None
        with profile(activities=activities) as record:
            self._synchronize()
            began = time.perf_counter()
            for _ in range(LOOKED_AT):
                asked = time.perf_counter()
                inputs = next(source, None)
                waited += time.perf_counter() - asked
                if inputs is None:
                    return
                yield inputs
            self._synchronize()
            seconds = time.perf_counter() - began
        self._path.parent.mkdir(parents=True, exist_ok=True)
        record.export_chrome_trace(str(self._path))
        assert inputs is not None
        self._tell(record, inputs, seconds / LOOKED_AT, waited / LOOKED_AT)
        yield from source

    def _tell(self, record: Any, inputs: StepInputs, seconds: float, waited: float) -> None:
        batch = len(inputs.images)
        flops, rate = self._flops(inputs), matrix_rate(self._device, self._precision.dtype)
        lines = [
            f"profile of {LOOKED_AT} steps; trace in {self._path} (chrome://tracing, Perfetto)",
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
                f"  GPU busy {busy / LOOKED_AT / seconds:.1%} of the step, "
                f"{1e3 * (seconds - busy / LOOKED_AT):.2f} ms of gaps, {launches / LOOKED_AT:.0f} kernels"
            )
        key = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        averages = sorted(record.key_averages(), key=lambda event: -getattr(event, key))
        whole = sum(getattr(event, key) for event in averages) or 1.0
        lines += [f"  {'share':>6} {'ms/step':>8} {'calls':>6}  operation"]
        lines += [
            f"  {getattr(event, key) / whole:6.1%} {getattr(event, key) / 1e3 / LOOKED_AT:8.3f} "
            f"{event.count / LOOKED_AT:6.0f}  {event.key[:90]}"
            for event in averages[:SHOWN]
        ]
        self._say("\n".join(lines))

    def _flops(self, inputs: StepInputs) -> int:
        """Of a step without the gradient penalty, which few steps have: two for every multiply-add."""
        import fastt2i.ops.flops  # noqa: F401  registers the operators' formulas

        with FlopCounterMode(display=False) as counter:
            self._step.rehearse(inputs, penalty=False)
        return counter.get_total_flops()

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


def _busy(events: Iterable[FunctionEvent]) -> tuple[float, int]:
    """Seconds in which at least one kernel or copy ran on the GPU, and how many there were."""
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
