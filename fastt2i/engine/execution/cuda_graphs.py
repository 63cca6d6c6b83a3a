"""Training steps as CUDA graphs: after a warm-up, a step is a copy of its inputs and the replay of a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.engine.step import StepInputs

#: Eager steps before a capture, in which kernels are compiled and timed and optimizer state is made.
WARM_UP = 3
#: Graphs at most: with and without the penalty, for a few numbers of keywords. Steps of other shapes run eagerly.
MAX_GRAPHS = 16

#: A step on these inputs, with the penalty or without, which keeps its results in tensors of its own.
StepFunction = Callable[[StepInputs, bool], None]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: StepInputs


class GraphedStep:
    """Captures steps in CUDA graphs, one for each combination of input shapes and with the penalty or without.

    The first steps of a combination run eagerly, so capturing changes nothing of what is trained. Kernels, memory and
    streams of a graph are fixed; what changes from step to step is read from the input buffers and the `StepSchedule`.

    Args:
        run: the step.
        device: a GPU.
        print_line: prints a line for the user.

    Attributes:
        peak_bytes: the most memory that a capture has taken beyond what was allocated before it; a replay allocates
            nothing, so this is what a captured step takes.
    """

    def __init__(self, run: StepFunction, device: torch.device, print_line: Callable[[str], None]) -> None:
        self._run = run
        self._device = device
        self._print_line = print_line
        self._eager_steps: Counter[Any] = Counter()
        self._graphs: dict[Any, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._enabled = True
        self._limit_reported = False
        self.peak_bytes = 0

    def __call__(self, inputs: StepInputs, with_penalty: bool) -> None:
        """Run a step."""
        key = (with_penalty, *((tensor.shape, tensor.dtype) for tensor in _tensors(inputs)))
        if key not in self._graphs and self._should_capture(key):
            self._capture(key, inputs, with_penalty)
        graph = self._graphs.get(key)
        if graph is None:
            self._eager_steps[key] += 1
            self._run_on_capture_stream(inputs, with_penalty)
            return
        torch._foreach_copy_(_tensors(graph.inputs), _tensors(inputs))
        graph.graph.replay()

    def _should_capture(self, key: Any) -> bool:
        ready = self._enabled and self._eager_steps[key] >= WARM_UP
        if ready and len(self._graphs) >= MAX_GRAPHS:
            if not self._limit_reported:
                self._limit_reported = True
                self._print_line(
                    f"{MAX_GRAPHS} kinds of steps are captured in CUDA graphs; those of other shapes run as they are"
                )
            return False
        return ready

    def _run_on_capture_stream(self, inputs: StepInputs, with_penalty: bool) -> None:
        """Run eagerly on the stream that is captured later: autograd remembers the stream of the forward pass."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run(inputs, with_penalty)
        current.wait_stream(self._stream)

    def _capture(self, key: Any, inputs: StepInputs, with_penalty: bool) -> None:
        static = _like(inputs)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        try:
            with _capturing(graph, self._pool, self._stream):
                self._run(static, with_penalty)
        except Exception as error:  # what is wrong with the step itself is raised by the eager one that follows
            self._enabled = False
            reason = str(error).strip().partition("\n")[0]
            self._print_line(f"warning: a step cannot be captured in a CUDA graph, and steps run as they are: {reason}")
            return
        self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated(self._device) - before)
        self._graphs[key] = _Graph(graph, static)


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> Iterator[None]:
    """Capture what the block launches; where that fails, all is as before, and what failed first is raised.

    After a forbidden operation `capture_end` raises before it closes anything: `stream` would stay the current one, and
    the allocator would hold that a capture is under way. While it does, memory that was given to another stream by
    `record_stream`, as every step's inputs are, is not used again.
    """
    current = torch.cuda.current_stream(stream.device)
    first: BaseException | None = None
    try:
        # Threads of the loader may call CUDA meanwhile, which is no concern of this thread's graph.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            try:
                yield
            except BaseException as error:
                first = error
                raise
    except BaseException as error:
        torch.cuda.set_stream(current)
        with suppress(RuntimeError):  # raised where the allocator knows of no capture: it was ended, or never began
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            torch._C._cuda_releasePool(stream.device_index, pool)
        torch.cuda.synchronize(stream.device)
        raise first or error from None


def _tensors(inputs: StepInputs) -> list[Tensor]:
    flat = (tensor for part in inputs for tensor in (part if isinstance(part, tuple) else (part,)))
    return [tensor for tensor in flat if tensor is not None]


def _like(part: Any) -> Any:
    """Buffers of the same shapes, empty."""
    if isinstance(part, tuple):
        return type(part)(*(_like(p) for p in part))
    return None if part is None else torch.empty_like(part)
